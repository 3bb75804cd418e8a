"""Finding the best of many mixtures without trying each on every image."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from advadapters.soups.selection import Choice, select


class Found(NamedTuple):
    """What a search found.

    winner: its number among the candidates. finalists [F]: the numbers of those that were
    left. choice: the winner among these, and who is tied with it. passes: forward passes.
    """

    winner: int
    finalists: np.ndarray
    choice: Choice
    passes: int


def halving(score, candidates, images, *, budget=0.25, doublings=5, level=0.05):
    """The best of S candidates on N images, for at most budget * S * N forward passes.

    Successive halving (Jamieson and Talwalkar 2016): all are scored on N / 2**doublings
    images; those significantly worse than the leader go (`select`), and of the others the
    best that the budget pays for see twice as many images, and so on up to all N.

    score: (candidates [s, K], slice of images) -> right [s, n]; the images must be in
    random order. Nothing is scored twice. If one candidate is left, it does not see the
    rest of the images.

    It may miss the best. On 200 synthetic problems (286 soups of four, 1,000 images, as in
    the tests) it found brute force's winner in 194 with a budget of 1/4 and in 147 with
    1/8, otherwise one at most 0.5 or 1.2 points below; never one significantly worse.
    """
    candidates = np.asarray(candidates)
    ends = sorted({-(-images // 2**halved) for halved in range(doublings + 1)})
    limit, passes = int(budget * len(candidates) * images), 0
    if len(candidates) * ends[0] > limit:
        raise ValueError(
            f"a budget of {limit} forward passes, and {len(candidates)} candidates on "
            f"{ends[0]} images are more; double more often"
        )
    alive, right = np.arange(len(candidates)), np.zeros((len(candidates), 0), bool)
    for number, (start, end) in enumerate(pairwise([0, *ends])):
        found = np.asarray(score(candidates[alive], slice(start, end)))
        right, passes = np.append(right, found, axis=1), passes + found.size
        if end < images:
            # What is left is spent evenly on the doublings to come.
            cost = (len(ends) - number - 1) * (ends[number + 1] - end)
            order = np.argsort(-right.sum(axis=1), kind="stable")
            order = order[select(right, level).tied[order]]
            kept = np.sort(order[: max(1, (limit - passes) // cost)])
            alive, right = alive[kept], right[kept]
        if len(alive) == 1:
            break
    choice = select(right, level)
    return Found(int(alive[choice.winner]), alive, choice, passes)
