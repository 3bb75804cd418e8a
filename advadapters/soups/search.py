"""Finding the best of many mixtures without trying each on every image."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from advadapters.shapes import AnyArray, Num
from advadapters.soups.selection import Choice, select


class SearchResult(NamedTuple):
    """What a search returns.

    Attributes:
      winner: its number among the candidates.
      finalists: [F], the numbers of the candidates that were left at the end.
      choice: the winner among the finalists, and which of them are tied with it.
      passes: the number of forward passes.
    """

    winner: int
    finalists: np.ndarray
    choice: Choice
    passes: int


def halving(
    score: Callable[[Any, slice], Any],
    candidates: Num[AnyArray, "S K"],
    images: int,
    *,
    budget: float = 0.25,
    doublings: int = 5,
    level: float = 0.05,
) -> SearchResult:
    """Searches S candidates by successive halving (Jamieson and Talwalkar 2016).

    All candidates are scored on N / 2**doublings images. Those that are significantly
    worse than the leader are dropped (see `select`). Of the others, the best that the
    budget pays for see twice as many images, and so on up to all N images. Nothing is
    scored twice. If one candidate is left, it does not see the rest of the images.

    It may miss the best. On 200 synthetic problems (286 soups of four, 1,000 images, as in
    the tests) it found the winner of brute force in 194 with a budget of 1/4 and in 147
    with 1/8. Otherwise it found one that was at most 0.5 or 1.2 points below, and never
    one that was significantly worse.

    Args:
      score: (candidates [s, K], slice of the images) -> right [s, n].
      candidates: the mixtures.
      images: the number N of images, which must be in random order.
      budget: the share of the S * N forward passes of brute force that may be spent.
      doublings: how often the number of images is doubled.
      level: the significance level for dropping a candidate.

    Raises:
      ValueError: the budget does not pay for the first images.

    >>> grid = np.array(soups.simplex(2, 0.25))
    >>> peak = soups.halving(  # the soup (0.25, 0.75) is always right, others never
    ...     lambda mixtures, part: np.repeat(
    ...         mixtures[:, :1] == 0.25, part.stop - part.start, axis=1
    ...     ),
    ...     grid,
    ...     images=640,
    ... )
    >>> grid[peak.winner].tolist(), peak.passes, grid.shape[0] * 640
    ([0.25, 0.75], 100, 3200)
    """
    candidates = np.asarray(candidates)
    ends = sorted({-(-images // 2**doubling) for doubling in range(doublings + 1)})
    limit, passes = int(budget * len(candidates) * images), 0
    if len(candidates) * ends[0] > limit:
        raise ValueError(
            f"a budget of {limit} forward passes, and {len(candidates)} candidates on "
            f"{ends[0]} images are more; double more often"
        )
    alive, right = np.arange(len(candidates)), np.zeros((len(candidates), 0), bool)
    for number, (start, end) in enumerate(pairwise([0, *ends])):
        table = np.asarray(score(candidates[alive], slice(start, end)))
        right, passes = np.append(right, table, axis=1), passes + table.size
        if end < images:
            # What is left is spent evenly on the doublings to come.
            cost = (len(ends) - number - 1) * (ends[number + 1] - end)
            order = np.argsort(-right.sum(axis=1), kind="stable")
            order = order[select(right, level).tied[order]]
            best = np.sort(order[: max(1, (limit - passes) // cost)])
            alive, right = alive[best], right[best]
        if len(alive) == 1:
            break
    choice = select(right, level)
    return SearchResult(int(alive[choice.winner]), alive, choice, passes)
