"""Choosing soups on few labelled images of a shift, and judging them on others.

Croce et al. (2023, poster) choose on 1,000 labelled images of each shift; beside soups of
its own for each shift stands one soup for all. They speak of unseen images, but the numbers
of the poster are shares of whole sets, so an accuracy on all images is told as well.
"""

from typing import NamedTuple

import numpy as np

from advadapters.soups.selection import select


class Chosen(NamedTuple):
    """What a way of choosing came to on one shift, for each of D draws of labelled images.

    winner: int [D], numbers of candidates. accuracy: float [D], theirs on unseen images.
    whole: float [D], theirs on all images, those that chose them included.
    tied: float [D], how many candidates the labelled images do not tell from the winner.
    """

    winner: np.ndarray
    accuracy: np.ndarray
    whole: np.ndarray
    tied: np.ndarray


def split_images(count, labelled, seed=0):
    """(numbers of images to choose on, numbers of unseen ones): a fixed random split.

    Raises ValueError where nothing is left to judge by.
    """
    if not 0 < labelled < count:
        raise ValueError(
            f"{labelled} labelled images of {count}: choose fewer, to have unseen ones"
        )
    order = np.random.default_rng(seed).permutation(count)
    return order[:labelled], order[labelled:]


def draws_of(pool, labels, draws, seed=0):
    """[D, labels]: `draws` random subsets of the pool; one where it is the whole pool."""
    if labels == len(pool):
        return pool[None]
    rng = np.random.default_rng((seed, labels))
    return np.stack([rng.permutation(pool)[:labels] for _ in range(draws)])


def choose(right, candidates, subsets, unseen, others=()):
    """The best of some candidates [S] by their right [all, N] on each subset [D, n].

    others: tables of other axes on the same images, which tell equals apart (see `best`):
    on the same subset, so that no other label is looked at.
    """
    found = []
    for subset in subsets:
        seen = np.ix_(candidates, subset)
        means = [other[seen].mean(axis=1) for other in others]
        choice = select(right[seen], others=means)
        winner = candidates[choice.winner]
        row = right[winner]
        found.append((winner, row[unseen].mean(), row.mean(), float(choice.tied.sum())))
    return Chosen(*map(np.array, zip(*found, strict=True)))


def choose_for_all(tables, candidates, pools):
    """The number of the candidate with the highest mean accuracy over all shifts.

    tables: right [all, N] of each shift; pools: the labelled images of each.
    """
    means = [
        right[np.ix_(candidates, pool)].mean(axis=1)
        for right, pool in zip(tables, pools, strict=True)
    ]
    return int(candidates[np.argmax(np.mean(means, axis=0))])
