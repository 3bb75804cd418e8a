"""Rows and tables of soups that few labelled images chose, judged on unseen ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from advadapters import soups
from advadapters.evaluation.accuracy import Table
from advadapters.evaluation.studies import spread
from advadapters.intervals import wilson
from advadapters.markdown import markdown_table
from advadapters.networks import ENSEMBLE, Identity
from advadapters.shapes import Bool, Int

SelectionRow = Mapping[str, Any]  # a row of selection.json
Column = tuple[str, int, Identity | None]  # way, labels, which ensemble
WAYS = ("ingredient", "single", "specific", "ensemble")


def rows(
    networks: Sequence[Identity],
    tables: Mapping[str, Table],
    labels: Sequence[int],
    draws: int,
) -> list[dict[str, Any]]:
    """The rows of selection.json of one run: each way of choosing on each suite.

    labels: numbers of labelled images, the largest last, which "ingredient", the best of
    the networks that are mixed, and "single", one soup for all suites, are chosen on.
    "ensemble" is not chosen. Of equals on the labelled images, the one best on the other
    axis is chosen (`other_axes`). The interval is Wilson's for the unseen images.
    """
    whole = np.array([network.kind != ENSEMBLE for network in networks])
    (candidates,), (ensembles,) = np.nonzero(whole), np.nonzero(~whole)
    ingredients = [int(n) for n in candidates if networks[int(n)].kind == "mode"]
    rights = [table.right for table in tables.values()]
    splits = [soups.split_images(right.shape[1], labels[-1]) for right in rights]
    pools = [pool for pool, _ in splits]
    single = soups.choose_for_all(rights, candidates, pools)
    lines = []
    for suite, right, (pool, unseen) in zip(tables, rights, splits, strict=True):

        def add(
            way: str,
            choice: Any,
            count: int,
            candidates: int,
            suite: str = suite,
            unseen: Int[np.ndarray, " N"] = unseen,
        ) -> None:
            alone = len(choice.winner) == 1
            network = networks[choice.winner[0]].plain() if alone else {}
            row = describe(suite, way, choice, count, candidates, len(unseen))
            lines.append(row | network)

        others = other_axes(suite, tables)
        images = pool[None], unseen, others
        if ingredients:
            best = soups.choose(right, np.array(ingredients), *images)
            add("ingredient", best, labels[-1], len(ingredients))
        best = soups.choose(right, np.array([single]), *images)
        add("single", best, labels[-1], len(candidates))
        for count in labels:
            subsets = soups.draws_of(pool, count, draws)
            best = soups.choose(right, candidates, subsets, unseen, others)
            add("specific", best, count, len(candidates))
        for n in ensembles:
            add("ensemble", soups.choose(right, np.array([n]), *images), 0, 1)
    return lines


def other_axes(suite: str, tables: Mapping[str, Table]) -> list[Bool[np.ndarray, "S N"]]:
    """Tables right [S, N] that tell apart soups which are equal in a suite.

    Clean images where there are some, else all other suites, of the same images only.
    """
    names = [name for name in tables if name != suite]
    if "clean" in names:
        names = ["clean"]
    index = tables[suite].index
    same = [tables[name] for name in names if np.array_equal(tables[name].index, index)]
    return [table.right for table in same]


def describe(
    suite: str, way: str, choice: Any, labels: int, candidates: int, unseen: int
) -> dict[str, Any]:
    """One row; accuracies are means over the draws of labelled images.

    "value" is on unseen images, "whole" on all, those that chose included, as published.
    """
    value = float(choice.accuracy.mean())
    low, high = wilson(value * unseen, unseen)
    return {
        "suite": suite,
        "way": way,
        "labels": labels,
        "candidates": candidates,
        "tied": float(choice.tied.mean()),
        "draws": len(choice.winner),
        "value": value,
        "low": low,
        "high": high,
        "n": unseen,
        "whole": float(choice.whole.mean()),
    }


def halving_rows(
    networks: Sequence[Identity], tables: Mapping[str, Table], labels: int
) -> list[dict[str, Any]]:
    """How a search with a quarter of the forward passes compares, on the same images.

    A row per suite: passes, those of brute force, and how much less accurate than brute
    force's winner the search's is, on the images that both chose on.
    """
    candidates = [n for n, network in enumerate(networks) if network.kind != ENSEMBLE]
    lines = []
    for suite, table in tables.items():
        pool, _ = soups.split_images(table.right.shape[1], labels)
        right = table.right[candidates][:, pool]
        search = soups.halving(
            lambda chosen, part, right=right: right[chosen[:, 0], part],
            np.arange(len(right))[:, None],
            labels,
        )
        accuracy = right.mean(axis=1)
        lines.append(
            {
                "suite": suite,
                "passes": search.passes,
                "brute": right.size,
                "behind": float(accuracy.max() - accuracy[search.winner]),
            }
        )
    return lines


def columns(rows: Sequence[SelectionRow]) -> dict[Column, str]:
    """{(way, labels, which ensemble): title} of the rows, in the order of the table."""
    titles = {column_of(row): title(row) for row in rows}
    order = sorted(titles, key=lambda column: (WAYS.index(column[0]), column[1]))
    return {column: titles[column] for column in order}


def column_of(row: SelectionRow) -> Column:
    """The column of a row."""
    network = Identity.of_plain(row) if row["way"] == "ensemble" else None
    return row["way"], row["labels"], network


def title(row: SelectionRow) -> str:
    """A column's title."""
    return {
        "ingredient": lambda: "best ingredient",
        "single": lambda: "one soup for all",
        "specific": lambda: f"soup of its own, {row['labels']} labels",
        "ensemble": lambda: str(Identity.of_plain(row)),
    }[row["way"]]()


# Which images a table is of, by the key of the rows.
PROTOCOLS = {
    "value": "accuracy on unseen images, %",
    "whole": "accuracy on all images, those that chose included, %",
}


def markdown(runs: Sequence[Sequence[SelectionRow]]) -> str:
    """A table for each of PROTOCOLS; runs: a list of rows per seed."""
    return "\n\n".join(table(runs, protocol) for protocol in PROTOCOLS)


def table(runs: Sequence[Sequence[SelectionRow]], protocol: str) -> str:
    """A line per suite and their mean, a column per way; percent.

    One run: unseen images with Wilson's interval, the mean and whole sets without.
    Several: the mean over the runs and half of its 95% interval (Student's t).
    """
    keys = columns(runs[0])
    suites = list(dict.fromkeys(row["suite"] for row in runs[0]))
    values = [
        {(row["suite"], column_of(row)): row for row in rows if column_of(row) in keys}
        for rows in runs
    ]
    lines = []
    for suite in suites:
        cells = [cell([run[suite, key] for run in values], protocol) for key in keys]
        lines.append([suite, *cells, tied(values, suite)])
    means = [
        spread([float(np.mean([run[s, key][protocol] for s in suites])) for run in values])
        for key in keys
    ]
    lines.append(["mean", *means, ""])
    titles = [PROTOCOLS[protocol], *keys.values(), "tied"]
    return markdown_table(titles, lines, right=[len(titles) - 1])


def tied(values: Sequence[Mapping[Any, SelectionRow]], suite: str) -> str:
    """ "5 of 56": soups not told from the winner by the most labelled images."""
    same = [row for run in values for (s, _), row in run.items() if s == suite]
    specific = [row for row in same if row["way"] == "specific"]
    most = max(row["labels"] for row in specific)
    best = [row for row in specific if row["labels"] == most]
    return f"{np.mean([row['tied'] for row in best]):.0f} of {best[0]['candidates']}"


def cell(rows: Sequence[SelectionRow], protocol: str) -> str:
    """ "81.2 (79.0-83.1)" of one run, "81.2 ± 0.9" of several."""
    if len(rows) == 1 and protocol == "value":
        value, low, high = (100 * rows[0][key] for key in ("value", "low", "high"))
        return f"{value:.1f} ({low:.1f}-{high:.1f})"
    return spread([row[protocol] for row in rows])
