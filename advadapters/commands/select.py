"""usage: advadapters select --workdir=DIR[,DIR,...] [--labels=10,100,1000 --suite=...]

Chooses a soup for each shift from a few labelled images of it, and judges the choice on
images that it has not seen. Reads what `evaluate --grid=... --suite=...` found of each soup
and image (DIR/evaluation/), so nothing is computed again:

  advadapters evaluate --workdir=runs/season/soup --grid=0.2 --suite=corruptions
  advadapters select --workdir=runs/season/soup

Such a soup is the most accurate of those that were evaluated. --by=greedy,learn,entropy
adds columns of further searches, on the same labelled and unseen images, and a table of
their soups. These may lie between the evaluated ones. The searches open the run and its
test images again for what was not evaluated:

  greedy   begins with the best ingredient and averages it with each other one that does
           not lower the accuracy (Wortsman et al. 2022)
  learn    follows the gradient of the cross-entropy to the best weights from 0 to 1
  entropy  takes the evaluated soup that is surest of the images; it reads no labels

Accuracies stand side by side on unseen images, and on all images, those that chose
included, as on the poster of Croce et al. (2023). In a mean over corruptions, each labelled
image is in one of its forms, drawn at random, and is judged in all of them. Several
workdirs are seeds of one thing: the table then shows their mean.

{flags}

Beside a soup of its own for each suite it shows the best single ingredient and one soup for
all suites, both chosen on the most labels, and ensembles that were evaluated. Of soups that
are equal on the labelled images, the one that is better on clean ones (on clean ones: in
the other suites) is chosen, where these are the same images. "tied" counts the soups that
these images do not tell from the winner (exact McNemar tests, Holm). The last line tells
how successive halving would have done on the same images. Writes DIR/selection.json and
selection.md, of several workdirs in the first.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from advadapters import configs
from advadapters.errors import UsageError, pick
from advadapters.flags import Overrides, Separated, Shown
from advadapters.schema import Between, OneOf

LABELS = (10, 50, 100, 500, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    workdir: Annotated[
        tuple[str, ...], Separated(part="folder"), Shown("DIR,DIR"), "evaluated runs"
    ]
    name: Annotated[str, "the --name that `evaluate` was given"] = "evaluation"
    labels: Annotated[
        tuple[int, ...],
        Shown("10,50,100,500"),
        "numbers of labelled images of each suite (default: of 10, 50, 100, 500, 1000 "
        "those that leave half of the largest unseen); a suite that has fewer gives half "
        "of its images",
    ] = ()
    draws: Annotated[
        int,
        Between(low=1),
        "random draws of the labelled images, where they are fewer than the most; the "
        "others have one",
    ] = 20
    by: Annotated[
        tuple[str, ...],
        OneOf(("greedy", "learn", "entropy")),
        Shown("greedy,learn,entropy"),
        "further searches, each a column; learn and entropy leave out suites of attacks",
    ] = ()
    floor: Annotated[
        str,
        Shown("clean=0.7"),
        "a suite, and the least accuracy in it that --by=entropy accepts, on labelled "
        "images (default: any, though a network can be sure and wrong)",
    ] = ""
    suite: Annotated[
        tuple[str, ...],
        Shown("imagenet_a,corruptions"),
        "only these suites (default: all but union); corruptions and imagenet_c are the "
        "mean over all corruptions and severities that were evaluated, as one suite",
    ] = ()
    overrides: Annotated[
        Overrides, "is checked as by `evaluate`, and changes nothing here"
    ] = ()


def main(flags: Flags) -> int:
    """Returns the exit code."""
    from etils import epath

    from advadapters.evaluation import choosing, means
    from advadapters.networks import ENSEMBLE
    from advadapters.runs import changes, predictions, workdir
    from advadapters.runs.searching import Searcher

    folders = [epath.Path(name).expanduser() for name in flags.workdir]
    for folder in folders if flags.overrides else ():
        config = workdir.read_config(folder)
        changes.find(folder, config, configs.override(config, flags.overrides))
    evaluations = predictions.read_alike(folders, flags.name, flags.suite)
    if line := predictions.left_out(folders[0], flags.name, evaluations[0].networks):
        print(line)
    networks = evaluations[0].networks
    if sum(network.kind != ENSEMBLE for network in networks) < 3:
        raise UsageError(
            f"{folders[0]} has {len(networks)} networks to choose from: run `advadapters "
            "evaluate --grid=0.2` first"
        )
    runs = [means.read(evaluation.tables, flags.suite) for evaluation in evaluations]
    most = max(len(table.index) for tables in runs for table in tables.values())
    labels = choose_labels(flags.labels, most)
    floor = read_floor(flags.floor, flags.by, evaluations[0].tables)
    rows, halved = [], []
    for folder, evaluation, tables in zip(folders, evaluations, runs, strict=True):
        searches = []
        if flags.by:
            searcher = Searcher(folder, flags.name, evaluation, labels, floor)
            searches = searcher.search(flags.by, tables)
        of_run = choosing.rows(networks, tables, labels, flags.draws, searches)
        rows.append([dataclasses.replace(row, workdir=str(folder)) for row in of_run])
        halved += choosing.halving_rows(networks, tables, labels)
    parts = choosing.selection_table(rows), choosing.search_table(rows)
    text = "\n\n".join(filter(None, (*parts, choosing.describe_halving(halved)))) + "\n"
    content = {
        "rows": [row.plain() for of_run in rows for row in of_run],
        "halving": [dataclasses.asdict(row) for row in halved],
    }
    workdir.write_text(folders[0] / "selection.json", json.dumps(content, indent=1) + "\n")
    workdir.write_text(folders[0] / "selection.md", text)
    print(text + f"written to {folders[0]}: selection.json, selection.md")
    return 0


def read_floor(
    text: str, ways: Sequence[str], tables: Mapping[str, Any]
) -> tuple[str, float] | None:
    """(suite, accuracy) of --floor; None for ""."""
    if not text:
        return None
    suite, _, share = text.rpartition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if "entropy" not in ways or not 0 <= value <= 1:
        raise UsageError(
            "--floor is a suite and an accuracy from 0 to 1, such as clean=0.7, and goes "
            f"with --by=entropy, got {text!r}"
        )
    pick(tables, suite, "suite")
    return suite, value


def choose_labels(numbers: Sequence[int], images: int) -> Any:
    """`choosing.Labels`: growing numbers, fewer than the images; the usual ones for ().

    images: of the largest suite. A smaller one caps its own number only.
    """
    from advadapters.evaluation.choosing import Labels

    if not numbers:
        usual = [n for n in LABELS if n <= images // 2] or [max(1, images // 2)]
        return Labels(tuple(usual), least_unseen=0.5)
    labels = sorted(set(numbers))
    if labels[0] < 1 or labels[-1] >= images:
        raise UsageError(
            f"--labels must be whole numbers from 1 to {images - 1}, so that some of the "
            f"{images} images are unseen, got {','.join(map(str, numbers))!r}"
        )
    return Labels(tuple(labels))
