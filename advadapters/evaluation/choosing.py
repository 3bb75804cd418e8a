"""Rows and tables of soups that few labelled images chose, judged on unseen ones."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from advadapters import soups
from advadapters.evaluation.accuracy import Table
from advadapters.evaluation.means import Mean
from advadapters.evaluation.studies import spread
from advadapters.intervals import wilson
from advadapters.markdown import markdown_table
from advadapters.networks import ENSEMBLE, Identity
from advadapters.shapes import Bool, Int

Column = tuple[str, int, Identity | None]  # way, labels, which ensemble
SEARCHES = ("greedy", "learn", "entropy")
WAYS = ("ingredient", "single", "specific", *SEARCHES, "ensemble")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionRow:
    """What a way of choosing came to in one suite: a row of selection.json.

    Attributes:
      suite: the suite.
      way: one of `WAYS`.
      labels: how many labelled images were to choose, 0 where no label is looked at.
      used: how many did, fewer in a suite that is too small.
      candidates: how many networks were to choose from; of "learn" the ingredients.
      tied: how many of these the labelled images do not tell from the chosen one; 0 of a
        search.
      draws: how often the labelled images were drawn; accuracies are means over them.
      value: the accuracy on n unseen images; low, high: Wilson's 95% interval.
      whole: the accuracy on all images, those that chose included, as published.
      network: the chosen one, None where several draws chose.
      workdir: the folder of the run, "" before it is known.
    """

    suite: str
    way: str
    labels: int
    used: int
    candidates: int
    tied: float
    draws: int
    value: float
    low: float
    high: float
    n: int
    whole: float
    network: Identity | None = None
    workdir: str = ""

    def plain(self) -> dict[str, Any]:
        """The row as plain values, those of its network among them."""
        fields = dataclasses.asdict(self)
        del fields["network"], fields["workdir"]
        network = self.network.plain() if self.network else {}
        return fields | network | ({"workdir": self.workdir} if self.workdir else {})

    @property
    def title(self) -> str:
        """The title of its column."""
        titles = {
            "ingredient": "best ingredient",
            "single": "one soup for all",
            "specific": f"soup of its own, {self.labels} labels",
            "greedy": f"greedy soup, {self.labels} labels",
            "learn": f"learned soup, {self.labels} labels",
            "entropy": "soup of lowest entropy",
            "ensemble": str(self.network),
        }
        return titles[self.way]

    @property
    def column(self) -> Column:
        """What tells its column from others."""
        return self.way, self.labels, self.network if self.way == "ensemble" else None


class Search(NamedTuple):
    """What a search came to in one suite, whose network need not be a kept one.

    Attributes:
      suite: the suite.
      way: one of `SEARCHES`.
      labels, candidates, network: as of a `SelectionRow`.
      right: whether the network is right about each image of the suite.
    """

    suite: str
    way: str
    labels: int
    candidates: int
    network: Identity
    right: Bool[np.ndarray, " N"]


class Labels(NamedTuple):
    """How many labelled images choose.

    numbers: growing. least_unseen: the share of each suite that is left to judge by, at
    least one image.
    """

    numbers: tuple[int, ...]
    least_unseen: float = 0.0

    @property
    def most(self) -> int:
        """The largest number."""
        return self.numbers[-1]

    def used(self, number: int, images: int) -> int:
        """How many choose in a suite of so many images: half of one that is too small."""
        left = max(1, round(self.least_unseen * images))
        return number if number <= images - left else max(1, images // 2)


def rows(
    networks: Sequence[Identity],
    tables: Mapping[str, Table | Mean],
    labels: Labels,
    draws: int,
    searches: Sequence[Search] = (),
) -> list[SelectionRow]:
    """The rows of one run: each way of choosing on each suite.

    "ingredient", the best of the networks that are mixed, and "single", one soup for all
    suites, are chosen on the most labels. "ensemble" is not chosen. Of equals on the
    labelled images, the one best on the other axis is chosen (`other_axes`). The interval
    is Wilson's for the unseen images.
    """
    whole = np.array([network.kind != ENSEMBLE for network in networks])
    (candidates,), (ensembles,) = np.nonzero(whole), np.nonzero(~whole)
    ingredients = [int(n) for n in candidates if networks[int(n)].kind == "mode"]
    rights = [table.right for table in tables.values()]
    splits = [
        soups.split_images(size, labels.used(labels.most, size))
        for size in (right.shape[1] for right in rights)
    ]
    pools = [pool for pool, _ in splits]
    single = soups.choose_for_all(rights, candidates, pools)
    lines = []
    for suite, right, (pool, unseen) in zip(tables, rights, splits, strict=True):

        def add(
            way: str,
            choice: soups.Verdict,
            count: int,
            candidates: int,
            suite: str = suite,
            unseen: Int[np.ndarray, " N"] = unseen,
            size: int = right.shape[1],
        ) -> None:
            network = networks[choice.winner[0]] if len(choice.winner) == 1 else None
            numbers = count, labels.used(count, size) if count else 0, candidates
            lines.append(row_of(suite, way, choice, numbers, len(unseen), network))

        others, share = other_axes(suite, tables), tables[suite].share
        images = pool[None], unseen, others, share
        if ingredients:
            best = soups.choose(right, np.array(ingredients), *images)
            add("ingredient", best, labels.most, len(ingredients))
        best = soups.choose(right, np.array([single]), *images)
        add("single", best, labels.most, len(candidates))
        for count in labels.numbers:
            used = labels.used(count, right.shape[1])
            subsets = soups.draws_of(pool, min(used, len(pool)), draws)
            best = soups.choose(right, candidates, subsets, unseen, others, share)
            add("specific", best, count, len(candidates))
        for search in searches:
            if search.suite == suite:
                lines.append(row_of_search(search, unseen))
        for n in ensembles:
            add("ensemble", soups.choose(right, np.array([n]), *images), 0, 1)
    return lines


def other_axes(
    suite: str, tables: Mapping[str, Table | Mean]
) -> list[Bool[np.ndarray, "S N"]]:
    """Tables right [S, N] that tell apart soups which are equal in a suite.

    Clean images where there are some, else all other suites, of the same images only.
    """
    names = [name for name in tables if name != suite]
    if "clean" in names:
        names = ["clean"]
    index = tables[suite].index
    same = [tables[name] for name in names if np.array_equal(tables[name].index, index)]
    return [table.right for table in same]


def row_of(
    suite: str,
    way: str,
    choice: soups.Verdict,
    numbers: tuple[int, int, int],
    unseen: int,
    network: Identity | None,
) -> SelectionRow:
    """One row; accuracies are means over the draws of labelled images.

    numbers: labels, used and candidates of the row.
    """
    labels, used, candidates = numbers
    value = float(choice.accuracy.mean())
    low, high = wilson(value * unseen, unseen)
    return SelectionRow(
        suite=suite,
        way=way,
        labels=labels,
        used=used,
        candidates=candidates,
        tied=float(choice.tied.mean()),
        draws=len(choice.winner),
        value=value,
        low=low,
        high=high,
        n=unseen,
        whole=float(choice.whole.mean()),
        network=network,
    )


def row_of_search(search: Search, unseen: Int[np.ndarray, " N"]) -> SelectionRow:
    """The row of a search, judged on the same unseen images as all others."""
    right = search.right
    verdict = soups.Verdict(
        np.zeros(1, int), right[unseen].mean()[None], right.mean()[None], np.zeros(1)
    )
    used = len(right) - len(unseen) if search.labels else 0
    numbers = search.labels, used, search.candidates
    about = verdict, numbers, len(unseen), search.network
    return row_of(search.suite, search.way, *about)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalvingRow:
    """How successive halving did in one suite, in the "halving" of selection.json.

    Attributes:
      suite: the suite.
      passes: its forward passes; brute: those of brute force.
      behind: how much less accurate its winner is than that of brute force, on the images
        that both chose on.
    """

    suite: str
    passes: int
    brute: int
    behind: float


def halving_rows(
    networks: Sequence[Identity], tables: Mapping[str, Table | Mean], labels: Labels
) -> list[HalvingRow]:
    """How a search with a quarter of the forward passes compares, on the same images."""
    candidates = [n for n, network in enumerate(networks) if network.kind != ENSEMBLE]
    lines = []
    for suite, table in tables.items():
        size = len(table.index)
        pool, _ = soups.split_images(size, labels.used(labels.most, size))
        right = table.right[candidates][:, pool]
        search = soups.halving(
            lambda chosen, part, right=right: right[chosen[:, 0], part],
            np.arange(len(right))[:, None],
            len(pool),
        )
        accuracy = right.mean(axis=1)
        behind = float(accuracy.max() - accuracy[search.winner])
        lines.append(
            HalvingRow(suite=suite, passes=search.passes, brute=right.size, behind=behind)
        )
    return lines


def describe_halving(halved: Sequence[HalvingRow]) -> str:
    """What successive halving came to, in a line."""
    same = sum(row.behind == 0 for row in halved)
    share = np.mean([row.passes / row.brute for row in halved])
    return (
        f"successive halving: as good as brute force in {same} of {len(halved)} searches, "
        f"at most {100 * max(row.behind for row in halved):.1f} points behind, with "
        f"{100 * share:.0f}% of the forward passes"
    )


def columns(rows: Sequence[SelectionRow]) -> dict[Column, str]:
    """{column: title} of the rows, in the order of the table."""
    titles = {row.column: row.title for row in rows}
    order = sorted(titles, key=lambda column: (WAYS.index(column[0]), column[1]))
    return {column: titles[column] for column in order}


# Which images an accuracy is of, by the field of the rows.
PROTOCOLS = {
    "value": "unseen images",
    "whole": "all images, those that chose included",
}
TITLE = f"accuracy, %: {' / '.join(PROTOCOLS.values())}"


def selection_table(runs: Sequence[Sequence[SelectionRow]]) -> str:
    """A line per suite and their mean, a column per way; percent, by both PROTOCOLS.

    runs: a list of rows per seed. One run: unseen images with Wilson's interval, the mean
    and whole sets without. Several: the mean over the runs and half of its 95% interval
    (Student's t). A way that has no row in some suite has an empty cell there, and no mean.
    """
    keys = columns(runs[0])
    suites = list(dict.fromkeys(row.suite for row in runs[0]))
    values = [
        {(row.suite, row.column): row for row in rows if row.column in keys}
        for rows in runs
    ]
    lines = []
    for suite in suites:
        cells = [both(cell, [run.get((suite, key)) for run in values]) for key in keys]
        lines.append([suite, *cells, tied(values, suite)])
    means = []
    for key in keys:
        of_runs = [[run.get((suite, key)) for suite in suites] for run in values]
        means.append(both(mean_cell, of_runs))
    lines.append(["mean", *means, ""])
    titles = [TITLE, *keys.values(), "tied"]
    text = markdown_table(titles, lines, right=[len(titles) - 1])
    return "\n\n".join(filter(None, (text, note_of_labels(runs[0]))))


def both(make: Callable[[Any, str], str], rows: Any) -> str:
    """The cell by each of PROTOCOLS, side by side; "" without one."""
    return " / ".join(filter(None, (make(rows, protocol) for protocol in PROTOCOLS)))


def note_of_labels(rows: Sequence[SelectionRow]) -> str:
    """A line on the suites that are too small for so many labels; "" for none."""
    most = max(row.labels for row in rows)
    few = {row.suite: row.used for row in rows if row.labels == most and row.used < most}
    if not few:
        return ""
    shown = ", ".join(f"{used} in {suite}" for suite, used in few.items())
    return f"fewer labels than {most} where a suite is small: {shown}"


def search_table(runs: Sequence[Sequence[SelectionRow]]) -> str:
    """The soups that searches chose: a line per run, suite and search; "" without any."""
    lines = [
        [row.suite, row.title, str(row.network), cell([row], "value")]
        for rows in runs
        for row in rows
        if row.way in SEARCHES
    ]
    titles = ["suite", "search", "soup", "accuracy on unseen images, %"]
    return markdown_table(titles, lines) if lines else ""


def tied(values: Sequence[Mapping[Any, SelectionRow]], suite: str) -> str:
    """ "5 of 56": soups not told from the winner by the most labelled images."""
    same = [row for run in values for (s, _), row in run.items() if s == suite]
    specific = [row for row in same if row.way == "specific"]
    most = max(row.labels for row in specific)
    best = [row for row in specific if row.labels == most]
    return f"{np.mean([row.tied for row in best]):.0f} of {best[0].candidates}"


def cell(rows: Sequence[SelectionRow | None], protocol: str) -> str:
    """ "81.2 (79.0-83.1)" of one run, "81.2 ± 0.9" of several, "" if a row is missing."""
    whole = [row for row in rows if row]
    if len(whole) < len(rows):
        return ""
    if len(whole) == 1 and protocol == "value":
        value, low, high = (100 * x for x in (whole[0].value, whole[0].low, whole[0].high))
        return f"{value:.1f} ({low:.1f}-{high:.1f})"
    return spread([getattr(row, protocol) for row in whole])


def mean_cell(runs: Sequence[Sequence[SelectionRow | None]], protocol: str) -> str:
    """The mean over the suites of one column, over runs; "" where a row is missing."""
    whole = [[getattr(row, protocol) for row in rows if row] for rows in runs]
    if any(len(some) < len(rows) for some, rows in zip(whole, runs, strict=True)):
        return ""
    return spread([float(np.mean(values)) for values in whole])
