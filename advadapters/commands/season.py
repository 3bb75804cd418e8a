"""usage: advadapters season --config=FILE --variants=FIRST,OTHER,... --workdir=DIR

Seasoning model soups (Croce et al. 2023) in one command. Trains the first variant of the
config, say an Linf-robust network, in DIR/FIRST; fine-tunes it into the others, which start
from it whatever their config says, in DIR/OTHER; puts them together as DIR/soup (see
`soup`); and evaluates the soups of a grid over the simplex in all suites.

{flags}

A second call goes on where the first was cut off. Writes to DIR/soup what `soup` and
`evaluate` write, and season.md: the table, the best of each suite, and whether the
networks belong together. Choosing on the images that are evaluated flatters the best: see
`select`.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from advadapters import hosts
from advadapters.errors import UsageError
from advadapters.flags import ConfigFile, Examples, Separated, Shown, Statistics
from advadapters.markdown import markdown_table
from advadapters.runs.requests import Request, SuiteText, evaluate

Row = Any  # `evaluation.rows.Row`, which the help of this verb need not import


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    config: Annotated[ConfigFile, "changes all variants"]
    variants: Annotated[
        tuple[str, ...], Shown("FIRST,OTHER,..."), "of the config: the ingredients"
    ]
    workdir: Annotated[str, Shown("DIR"), "the folder of all runs"]
    grid: Annotated[float, "steps of the soups' weights"] = 0.25
    extrapolation: Annotated[float, Shown("0.0"), "how far below 0 a weight may go"] = 0.0
    ensemble: Annotated[
        tuple[str, ...],
        Separated(";", "mixture"),
        Shown("linf=0.5,l2=0.5"),
        "these as well, see `evaluate`",
    ] = ()
    statistics: Statistics = None
    suite: Annotated[SuiteText, "passed to `evaluate`, as are"] = ""
    examples: Annotated[Examples, "the test images, see there"] = None


def main(flags: Flags) -> int:
    """Returns the exit code."""
    flags.config.read()  # what is wrong in the file comes first
    from advadapters import defaults, soups
    from advadapters.training import cases

    names = list(flags.variants)
    if len(names) < 2 or len(set(names)) != len(names):
        raise UsageError(f"--variants must be two or more different ones, got {names}")
    try:
        soups.check_names(names)
    except ValueError as error:
        raise UsageError(f"--variants: {error}") from None
    cases.read_grid(flags.grid, flags.extrapolation, len(names))
    cases.read_mixtures("ensemble", flags.ensemble, names)
    from advadapters import builders, meshes
    from advadapters.runs import assembling, opening, training, workdir

    folder = os.path.abspath(os.path.expanduser(flags.workdir))
    folders = {name: os.path.join(folder, name) for name in names}
    ingredients = {name: flags.config.read(name) for name in names}
    for name, config in ingredients.items():
        if name != names[0]:
            config["start"] |= defaults.NO_START | {"workdir": folders[names[0]]}
    output, mesh = os.path.join(folder, "soup"), meshes.make()
    for config in ingredients.values():  # all of them before the first is trained
        builders.build(config, mesh)
    assembling.need_alike(list(ingredients), list(ingredients.values()))
    there = workdir.holds_run(output)
    if there and workdir.read_config(output)["domains"] != tuple(names):
        made_of = ", ".join(workdir.read_config(output)["domains"])
        raise UsageError(
            f"{output} is made of {made_of}: name these variants, or another workdir"
        )
    for name, config in ingredients.items():
        print(f"--- {name}", flush=True)
        training.train(opening.open_run(config, folders[name], flags.config.keys))
    if not there:
        assembling.assemble(list(folders.values()), output)
    evaluate(
        Request(
            workdir=output,
            grid=flags.grid,
            extrapolation=flags.extrapolation,
            ensemble=flags.ensemble,
            statistics=flags.statistics,
            suite=flags.suite,
            examples=flags.examples,
        )
    )
    summary = summarise(pathlib.Path(output))
    print(f"{summary}\nwritten to {output}: season.md")
    return 0


@hosts.once
def summarise(folder: pathlib.Path) -> str:
    """Writes season.md from evaluation.json; returns the table of the best."""
    from advadapters.evaluation import rows, tables
    from advadapters.runs import workdir

    results = rows.load((folder / "evaluation.json").read_text())
    summary = best(results) + "\n\n" + barriers(results)
    text = tables.results_table(results) + "\n\n" + summary + "\n"
    workdir.write_text(folder / "season.md", text)
    return summary


def barriers(rows: Sequence[Row]) -> str:
    """A table: how far clean accuracy falls below the straight line between ingredients.

    On the soups of two that were evaluated; networks that do not belong together show a
    deep valley (Frankle et al. 2020).
    """
    from advadapters import soups
    from advadapters.networks import ENSEMBLE

    mixed = [row for row in rows if row.network.kind != ENSEMBLE]
    clean = [row for row in mixed if row.suite == "clean"]
    names = list(clean[0].network.mixture)
    errors = {weights_of(row.network.mixture.values()): 1 - row.value for row in clean}
    lines = []
    for first, second in itertools.combinations(range(len(names)), 2):
        edge = [m for m in errors if m[first] >= 0 <= m[second]]
        edge = [m for m in edge if abs(m[first] + m[second] - 1) < 1e-6]
        score = lambda mixtures: [errors[weights_of(m)] for m in mixtures]  # noqa: E731
        barrier = soups.barrier(score, len(names), first, second, points=len(edge))
        pair, height = f"{names[first]} and {names[second]}", f"{100 * barrier.height:.1f}"
        lines.append((pair, height, f"{barrier.at:g} {names[first]}"))
    return markdown_table(("between", "clean accuracy below the line, points", "at"), lines)


def weights_of(mixture: Iterable[float]) -> tuple[float, ...]:
    """Weights without their rounding errors."""
    return tuple(round(weight, 6) for weight in mixture)


def best(rows: Sequence[Row]) -> str:
    """A table: in each suite, the best ingredient and the best soup.

    Of equals, the one with the highest mean in the other suites.
    """
    from advadapters import soups
    from advadapters.evaluation.rows import by_network
    from advadapters.evaluation.tables import percent
    from advadapters.networks import ENSEMBLE

    lines = []
    networks = by_network([row for row in rows if row.network.kind != ENSEMBLE])
    mixed = list(networks.values())
    alone = [rows_ for network, rows_ in networks.items() if network.kind == "mode"]
    suites = [name for name, row in mixed[0].items() if row.metric != "mCE"]
    for suite in suites:
        cells = [suite]
        for part in (alone, mixed):
            values = {s: [results[s].value for results in part] for s in suites}
            others = [values[other] for other in suites if other != suite]
            row = part[soups.best(values[suite], *others)][suite]
            cells += [str(row.network), percent(row)]
        lines.append(cells)
    return markdown_table(("suite", "best ingredient", "", "best soup", ""), lines)
