"""Rows and tables of soups that few labelled images chose, judged on unseen ones."""

import numpy as np

from advadapters import soups
from advadapters.evaluation.studies import spread
from advadapters.evaluation.tables import name_of
from advadapters.intervals import wilson

WAYS = ("ingredient", "single", "specific", "ensemble")


def rows(told, tables, labels, draws):
    """Result rows of one run: each way of choosing on each suite.

    told: what each network is told of; tables: {suite: `accuracy.Table`}; labels: numbers
    of labelled images, the largest last, which "ingredient", the best of the networks
    that are mixed, and "single", one soup for all suites, are chosen on. "ensemble" is
    not chosen. The interval is Wilson's for the unseen images.
    """
    whole = np.array([not one.get("ensemble") for one in told])
    (candidates,), (ensembles,) = np.nonzero(whole), np.nonzero(~whole)
    ingredients = [n for n in candidates if name_of(told[n]).endswith(" mode")]
    rights = [table.right for table in tables.values()]
    splits = [soups.split_images(right.shape[1], labels[-1]) for right in rights]
    pools = [pool for pool, _ in splits]
    single = soups.choose_for_all(rights, candidates, pools)
    found = []
    for suite, right, (pool, unseen) in zip(tables, rights, splits, strict=True):

        def add(way, chosen, count, of, suite=suite, unseen=unseen):
            told_of = told[chosen.winner[0]] if len(chosen.winner) == 1 else {}
            found.append(describe(suite, way, chosen, count, of, len(unseen)) | told_of)

        whole = pool[None]
        given = dict(subsets=whole, unseen=unseen)
        if ingredients:
            best = soups.choose(right, np.array(ingredients), **given)
            add("ingredient", best, labels[-1], len(ingredients))
        one = soups.choose(right, np.array([single]), **given)
        add("single", one, labels[-1], len(candidates))
        for count in labels:
            subsets = soups.draws_of(pool, count, draws)
            best = soups.choose(right, candidates, subsets, unseen)
            add("specific", best, count, len(candidates))
        for n in ensembles:
            add("ensemble", soups.choose(right, np.array([n]), **given), 0, 1)
    return found


def describe(suite, way, chosen, labels, candidates, unseen):
    """One row; the accuracy is the mean over the draws of labelled images."""
    value = float(chosen.accuracy.mean())
    low, high = wilson(value * unseen, unseen)
    return {
        "suite": suite,
        "way": way,
        "labels": labels,
        "candidates": candidates,
        "tied": float(chosen.tied.mean()),
        "draws": len(chosen.winner),
        "value": value,
        "low": low,
        "high": high,
        "n": unseen,
    }


def halving_rows(told, tables, labels):
    """How a search with a quarter of the forward passes compares, on the same images.

    A row per suite: passes, those of brute force, and how much less accurate than brute
    force's winner the search's is, on the images that both chose on.
    """
    candidates = [n for n, one in enumerate(told) if not one.get("ensemble")]
    found = []
    for suite, table in tables.items():
        pool, _ = soups.split_images(table.right.shape[1], labels)
        right = table.right[np.ix_(candidates, pool)]
        search = soups.halving(
            lambda chosen, part, right=right: right[chosen[:, 0], part],
            np.arange(len(right))[:, None],
            labels,
        )
        accuracy = right.mean(axis=1)
        found.append(
            {
                "suite": suite,
                "passes": search.passes,
                "brute": right.size,
                "behind": float(accuracy.max() - accuracy[search.winner]),
            }
        )
    return found


def columns(rows):
    """The (way, labels, ensemble's name) of the rows, in the order of the table."""
    keys = dict.fromkeys(key_of(row) for row in rows)
    return sorted(keys, key=lambda key: (WAYS.index(key[0]), key[1]))


def key_of(row):
    """The column of a row."""
    return row["way"], row["labels"], name_of(row) if row["way"] == "ensemble" else ""


def title(key):
    """A column's title."""
    way, labels, name = key
    return {
        "ingredient": "best ingredient",
        "single": "one soup for all",
        "specific": f"soup of its own, {labels} labels",
        "ensemble": name,
    }[way]


def markdown(runs):
    """A line per suite and their mean, a column per way; runs: a list of rows per seed.

    One run: percent on unseen images with Wilson's interval, the mean without. Several:
    the mean over the runs and half of its 95% interval (Student's t).
    """
    keys = columns(runs[0])
    suites = list(dict.fromkeys(row["suite"] for row in runs[0]))
    values = [
        {(row["suite"], key_of(row)): row for row in rows if key_of(row) in keys}
        for rows in runs
    ]
    lines = [
        "| accuracy on unseen images, % | " + " | ".join(map(title, keys)) + " | tied |",
        "| --- |" + " --- |" * len(keys) + " ---: |",
    ]
    for suite in suites:
        cells = [cell([run[suite, key] for run in values]) for key in keys]
        lines.append(f"| {suite} | " + " | ".join([*cells, tied(values, suite)]) + " |")
    means = [
        spread([np.mean([run[s, key]["value"] for s in suites]) for run in values])
        for key in keys
    ]
    lines.append("| mean | " + " | ".join(means) + " | |")
    return "\n".join(lines)


def tied(values, suite):
    """ "5 of 56": soups not told from the winner by the most labelled images."""
    same = [row for run in values for (s, _), row in run.items() if s == suite]
    specific = [row for row in same if row["way"] == "specific"]
    most = max(row["labels"] for row in specific)
    found = [row for row in specific if row["labels"] == most]
    return f"{np.mean([row['tied'] for row in found]):.0f} of {found[0]['candidates']}"


def cell(rows):
    """ "81.2 (79.0-83.1)" of one run, "81.2 ± 0.9" of several."""
    if len(rows) == 1:
        value, low, high = (100 * rows[0][key] for key in ("value", "low", "high"))
        return f"{value:.1f} ({low:.1f}-{high:.1f})"
    return spread([row["value"] for row in rows])
