"""Several suites that count as one: their mean, as of ImageNet-C's 75 sets."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from advadapters.errors import UsageError, pick
from advadapters.evaluation.accuracy import Table
from advadapters.evaluation.shifts import corruption_of

# Names of such a suite, and what the names of its members begin with.
MEANS = {"corruptions mean": "", "imagenet_c": "imagenet_c/"}
ALIASES = {"corruptions": "corruptions mean"}  # that need no quotes on a command line


class Mean(NamedTuple):
    """What networks say of N images in several forms: a Table, as far as it is read.

    right: bool [S, N], of one form of each image, drawn at random, which is what a labelled
    image is. share: float32 [S, N], in how many of the forms a network is right about an
    image. labels, index: [N].
    """

    right: np.ndarray
    share: np.ndarray
    labels: np.ndarray
    index: np.ndarray


def mean_of(tables: Iterable[Table], count: int, name: str = "") -> Mean:
    """The Mean of so many tables of the same images, each of which is read once.

    Raises UsageError where they are not of the same images. name: of the mean.
    """
    first, right, total = None, np.zeros(0), np.zeros(0)
    form = np.zeros(0)
    for number, table in enumerate(tables):
        answers = table.right
        if first is None:
            first, right = table, answers.copy()
            total = np.zeros(answers.shape, np.float32)
            form = np.random.default_rng(0).integers(count, size=answers.shape[1])
        if not np.array_equal(first.index, table.index):
            raise UsageError(
                f"suite {name!r}: not all of its {count} parts are of the same images: "
                "evaluate them by one command"
            )
        right[:, form == number] = answers[:, form == number]
        total += answers
    assert first is not None, name
    return Mean(right, total / np.float32(count), first.labels, first.index)


def members(name: str, names: Iterable[str]) -> list[str]:
    """The suites whose mean a suite is, of those of these names; [] of ordinary ones."""
    name = ALIASES.get(name, name)
    if name not in MEANS:
        return []
    prefix = MEANS[name]
    return [
        suite
        for suite in names
        if suite.startswith(prefix) and corruption_of(suite[len(prefix) :])
    ]


def read(tables: Mapping[str, Table], names: Sequence[str] = ()) -> dict[str, Table | Mean]:
    """{suite: its Table, or the Mean of its members}; of all but "union" for no names."""
    together: dict[str, Table | Mean] = {}
    for name in names or [suite for suite in tables if suite != "union"]:
        parts = members(name, tables)
        if parts:
            whole = ALIASES.get(name, name)
            of_parts = (tables[part] for part in parts)
            together[whole] = mean_of(of_parts, len(parts), whole)
        else:
            together[name] = pick(tables, name, "suite")
    return together
