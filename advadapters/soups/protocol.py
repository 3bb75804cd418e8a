"""Choosing soups on few labelled images of a shift, and judging them on others.

Croce et al. (2023, poster) choose on 1,000 labelled images of each shift, and compare a
soup for each shift with one soup for all shifts. They speak of unseen images, but the
numbers of the poster are shares of whole sets. Therefore the accuracy on all images is
reported as well.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from advadapters.shapes import AnyArray, Bool, Int, Num
from advadapters.soups.selection import select

Numbers = Int[np.ndarray, " _"]  # of images or of candidates


class Verdict(NamedTuple):
    """What a way of choosing came to on one shift, for each of D draws of labelled images.

    Attributes:
      winner: int [D], numbers of candidates.
      accuracy: float [D], those of the winners on unseen images.
      whole: float [D], those of the winners on all images, including the ones that
        chose them.
      tied: float [D], how many candidates the labelled images do not tell from the
        winner.
    """

    winner: np.ndarray
    accuracy: np.ndarray
    whole: np.ndarray
    tied: np.ndarray


def split_images(count: int, labelled: int, seed: int = 0) -> tuple[Numbers, Numbers]:
    """Splits `count` images at random, in a way that only the seed decides.

    Returns:
      The numbers of `labelled` images to choose on, and those of the unseen ones.

    Raises:
      ValueError: no image is left to judge by.

    >>> pool, unseen = soups.split_images(10, 4)
    >>> len(pool), len(unseen), sorted([*pool, *unseen]) == list(range(10))
    (4, 6, True)
    """
    if not 0 < labelled < count:
        raise ValueError(
            f"{labelled} labelled images of {count}: choose fewer, to have unseen ones"
        )
    order = np.random.default_rng(seed).permutation(count)
    return order[:labelled], order[labelled:]


def draws_of(
    pool: Numbers, labels: int, draws: int, seed: int = 0
) -> Int[np.ndarray, "D n"]:
    """Draws random subsets of labelled images.

    Args:
      pool: the numbers of the images to draw from.
      labels: how many images are in each subset.
      draws: how many subsets there are; one if each would be the whole pool.
      seed: decides what is drawn.

    Returns:
      The numbers of the images, [draws, labels].

    >>> soups.draws_of(np.arange(100), labels=10, draws=7).shape
    (7, 10)
    """
    if labels == len(pool):
        return pool[None]
    rng = np.random.default_rng((seed, labels))
    return np.stack([rng.permutation(pool)[:labels] for _ in range(draws)])


def choose(
    right: Bool[np.ndarray, "all N"],
    candidates: Int[np.ndarray, " S"],
    subsets: Int[np.ndarray, "D n"],
    unseen: Int[np.ndarray, " u"],
    others: Sequence[Bool[np.ndarray, "all N"]] = (),
    share: Num[np.ndarray, "all N"] | Bool[np.ndarray, "all N"] | None = None,
) -> Verdict:
    """Chooses the best candidate on each subset of labelled images.

    Args:
      right: whether each network is right about each image.
      candidates: the numbers of the networks to choose from.
      subsets: the numbers of the labelled images of each draw.
      unseen: the numbers of the images to judge the choice by.
      others: tables of other axes on the same images, which decide between equals (see
        `best`) on the same subset, so that no other label is used.
      share: how right each network is about each image when it is judged, where that is
        not as when it is chosen: an image that chooses may be one of several corrupted
        forms, and is judged in all of them.

    >>> right = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], bool)
    >>> verdict = soups.choose(right, np.arange(2), np.array([[2]]), np.array([0, 3]))
    >>> verdict.winner.tolist(), verdict.accuracy.tolist(), verdict.whole.tolist()
    ([1], [0.5], [0.75])
    """
    rows = []
    for subset in subsets:
        labelled = np.ix_(candidates, subset)
        means = [other[labelled].mean(axis=1) for other in others]
        choice = select(right[labelled], others=means)
        winner = candidates[choice.winner]
        row = (right if share is None else share)[winner]
        rows.append((winner, row[unseen].mean(), row.mean(), float(choice.tied.sum())))
    return Verdict(*map(np.array, zip(*rows, strict=True)))


def choose_for_all(
    tables: Iterable[Bool[AnyArray, "all _"]],
    candidates: Int[np.ndarray, " S"],
    pools: Iterable[Numbers],
) -> int:
    """The number of the candidate with the highest mean accuracy over all shifts.

    Args:
      tables: for each shift, whether each network is right about each image.
      candidates: the numbers of the networks to choose from.
      pools: for each shift, the numbers of the labelled images.

    >>> fog, snow = np.array([[1, 1], [1, 0]], bool), np.array([[0, 0], [1, 1]], bool)
    >>> soups.choose_for_all([fog, snow], np.arange(2), [np.arange(2), np.arange(2)])
    1
    """
    means = [
        right[np.ix_(candidates, pool)].mean(axis=1)
        for right, pool in zip(tables, pools, strict=True)
    ]
    return int(candidates[np.argmax(np.mean(means, axis=0))])
