"""Who pays for robustness: accuracies by class, from tables of predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from advadapters import soups
from advadapters.evaluation.accuracy import Table
from advadapters.evaluation.means import Mean
from advadapters.markdown import markdown_table
from advadapters.networks import ENSEMBLE, Identity
from advadapters.shapes import AnyArray, Float, Int


def accuracies(table: Table | Mean) -> tuple[Int[AnyArray, " L"], Float[AnyArray, "S L"]]:
    """(classes [L], accuracy [S, L]) of the classes that occur, one label an image."""
    classes = np.unique(table.labels)
    right = table.share
    shares = [right[:, table.labels == label].mean(axis=1) for label in classes]
    return classes, np.stack(shares, axis=1)


def extremes(
    networks: Sequence[Identity], tables: Mapping[str, Table | Mean], suite: str
) -> tuple[int, int]:
    """(number of the network best on clean images, of the one best in the suite).

    Of equals, the one that is best in the other of the two: the ends of their front.
    """
    alone = [n for n, network in enumerate(networks) if network.kind != ENSEMBLE]
    clean, robust = (tables[name].share[alone].mean(axis=1) for name in ("clean", suite))
    return alone[soups.best(clean, robust)], alone[soups.best(robust, clean)]


def changes(
    networks: Sequence[Identity], tables: Mapping[str, Table | Mean], suite: str
) -> list[dict[str, Any]]:
    """Rows by class, the greatest loss first: what the network best in a suite costs it.

    networks, tables: see `runs.predictions.read`.
    """
    first, second = extremes(networks, tables, suite)
    classes, clean = accuracies(tables["clean"])
    _, robust = accuracies(tables[suite])
    rows = [
        {
            "class": int(label),
            "from": str(networks[first]),
            "to": str(networks[second]),
            "clean": [float(clean[n, k]) for n in (first, second)],
            "robust": [float(robust[n, k]) for n in (first, second)],
        }
        for k, label in enumerate(classes)
    ]
    return sorted(rows, key=lambda row: row["clean"][1] - row["clean"][0])


def class_table(rows: Sequence[Mapping[str, Any]], suite: str, most: int = 10) -> str:
    """A line per class, the `most` that lose the most clean accuracy, percent."""
    first, second = rows[0]["from"], rows[0]["to"]
    titles = [f"{name}, {end}" for name in ("clean", suite) for end in (first, second)]
    lines = [
        [
            str(row["class"]),
            *(f"{100 * value:.1f}" for value in (*row["clean"], *row["robust"])),
        ]
        for row in rows[:most]
    ]
    return markdown_table(["class", *titles], lines)
