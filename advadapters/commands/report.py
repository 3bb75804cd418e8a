"""usage: advadapters report --workdir=DIR[,DIR,...] [--name=evaluation]
       advadapters report --papers="NAME=DIR,DIR;NAME=DIR@WAY" --output=FILE
       advadapters report --ledger=docs/ledger.jsonl --output=docs/evidence.md

Tables and pictures of what `evaluate` found, nothing computed again; several workdirs are
seeds of one thing. Writes to DIR (the first):

  report.md           accuracies with the spread over the seeds, the command of each; for
                      each suite, if they are five or fewer, the classes that lose most
                      between the network best on clean images and the one best in it (of
                      equals, the one that is better in the other)
  report_fronts.png   each suite against clean accuracy, a point per soup
  report_simplex.png  the same over the triangle of any three domains, where a grid was
                      evaluated
  report_classes.png  each class along the front between clean images and such a suite

{flags}

--papers fills the table on the poster of Croce et al. (2023) with our rows: for each name
the first network of evaluation.json of each DIR, a seed each, its first ensemble for
DIR@ensemble, or of selection.json the WAY that chose: ingredient, single, specific,
greedy, learn or entropy, once on whole sets, those images included that chose, as the
poster has it, and once on unseen ones. A cell is empty only where its suite was not
evaluated, of C where some of the 75 sets were not, and a list says what is missing.

--ledger makes the page of a ledger of claims that `study` wrote.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np

from advadapters.errors import UsageError
from advadapters.flags import Separated, Shown
from advadapters.markdown import markdown_table

MOST = 5  # suites that are told by class


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    workdir: Annotated[
        tuple[str, ...], Separated(part="folder"), Shown("DIR,DIR"), "evaluated runs"
    ] = ()
    name: Annotated[
        str,
        "of the files to read: the --name that `evaluate` was given, or results, which "
        "`train` wrote",
    ] = "evaluation"
    suite: Annotated[
        tuple[str, ...], Shown("clean,pgd20_linf"), "only these suites; see `select`"
    ] = ()
    papers: Annotated[
        tuple[str, ...], Separated(";"), Shown("NAME=DIR,DIR"), "rows of the poster's table"
    ] = ()
    ledger: Annotated[str, Shown("FILE"), "a ledger of claims"] = ""
    output: Annotated[str, Shown("FILE"), "the page that is made of one of these two"] = ""


def main(flags: Flags) -> int:
    """Returns the exit code."""
    given = [flags.workdir, flags.papers, flags.ledger]
    if sum(map(bool, given)) != 1 or bool(flags.output) == bool(flags.workdir):
        raise UsageError(
            "give either --workdir=..., or --papers=... or --ledger=... with --output=FILE"
        )
    if flags.ledger:
        return write_evidence(flags.ledger, flags.output)
    if flags.papers:
        return write_papers(flags.papers, flags.output, flags.name)
    from etils import epath

    from advadapters.evaluation import means, pictures
    from advadapters.runs import predictions, workdir

    folders = [epath.Path(name).expanduser() for name in flags.workdir]
    runs = predictions.read_alike(folders, flags.name, flags.suite)
    first = folders[0]
    if line := predictions.left_out(first, flags.name, runs[0].networks):
        print(line)
    names = flags.suite or shown_suites(runs[0].tables)
    runs = [run._replace(tables=means.read(run.tables, names)) for run in runs]
    networks, tables = runs[0].networks, runs[0].tables
    drawn = {"fronts": pictures.draw_fronts}
    if pictures.faces(networks):
        drawn["simplex"] = pictures.draw_simplex
    whole = all(table.labels.ndim == 1 for table in tables.values())
    if whole and "clean" in tables and 1 < len(tables) <= 1 + MOST:
        drawn["classes"] = pictures.draw_classes
    if "clean" not in tables:
        del drawn["fronts"]
    files = [f"report_{name}.png" for name in drawn]
    for file, draw in zip(files, drawn.values(), strict=True):
        workdir.write_whole(
            first / file, lambda raw, draw=draw: draw(networks, tables, raw)
        )
    text = describe(folders, runs, "classes" in drawn)
    text += "".join(f"\n![{file}]({file})\n" for file in files)
    workdir.write_text(first / "report.md", text)
    print(text)
    print(f"written to {first}: report.md, {', '.join(files)}")
    return 0


def shown_suites(names: Iterable[str]) -> list[str]:
    """The suites, many corruptions by their mean."""
    from advadapters.evaluation import means

    names = list(names)
    for mean in means.MEANS:
        parts = means.members(mean, names)
        if len(parts) > MOST:
            names = [name for name in names if name not in parts] + [mean]
    return names


def describe(folders: Sequence[Any], runs: Sequence[Any], classes: bool) -> str:
    """The text of report.md; classes: whether there are tables by class."""
    from advadapters.evaluation import classes as by_class
    from advadapters.evaluation.studies import spread

    networks, tables = runs[0].networks, runs[0].tables
    means = {
        suite: np.array([run.tables[suite].share.mean(axis=1) for run in runs])
        for suite in tables
    }
    cells = [
        [str(network), *(spread(list(means[suite][:, n])) for suite in tables)]
        for n, network in enumerate(networks)
    ]
    lines = [markdown_table(["network", *tables], cells)]
    lines += ["", f"percent; {len(runs)} seed(s), half of the 95% interval over them:", ""]
    for folder, run in zip(folders, runs, strict=True):
        commands = dict.fromkeys(run.commands.values())
        commands = commands or [f"advadapters train ... --workdir={folder}"]
        lines += [f"- `{command}`" for command in commands]
    for suite in [name for name in tables if name != "clean"] if classes else []:
        rows = by_class.changes(networks, tables, suite)
        lines += ["", f"Classes by what robustness to {suite} costs them:", ""]
        lines.append(by_class.class_table(rows, suite))
    return "\n".join(lines) + "\n"


def write_evidence(path: str, output: str) -> int:
    """The page of a ledger; returns the exit code."""
    from etils import epath

    from advadapters.evaluation import ledger
    from advadapters.runs import experiments, workdir

    file = epath.Path(path).expanduser()
    page = ledger.evidence_page(experiments.read_ledger(file), file.name)
    workdir.write_text(epath.Path(output).expanduser(), page)
    print(f"written to {output}")
    return 0


def write_papers(parts: Sequence[str], output: str, evaluation: str) -> int:
    """The poster's table with our rows, as markdown; returns the exit code.

    evaluation: the name of the evaluations.
    """
    from etils import epath

    from advadapters.evaluation import published
    from advadapters.runs import poster, workdir

    ours = {}
    for part in parts:
        name, equals, where = part.partition("=")
        folders, _, way = where.partition("@")
        if not equals or not folders:
            raise UsageError(f"--papers: {part!r} is not NAME=DIR,DIR or NAME=DIR@WAY")
        paths = [epath.Path(folder).expanduser() for folder in folders.split(",")]
        ours[name] = poster.lines_of(paths, way, evaluation)
    table = published.poster_table(ours)
    empty = poster.missing(ours)
    table += f"\n\n{empty}" if empty else ""
    workdir.write_text(epath.Path(output).expanduser(), table + "\n")
    print(f"{table}\nwritten to {output}")
    return 0
