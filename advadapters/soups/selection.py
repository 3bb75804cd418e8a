"""Choosing a mixture from few labelled images, or from none.

A correctness table is `right` [S, N]: whether candidate s is right about image n.
"""

from typing import NamedTuple

import numpy as np

from advadapters.soups.mixtures import average, one_hot


class Choice(NamedTuple):
    """The best of S candidates, and how sure that is.

    winner: its number, see `best` for equals. accuracy [S]: of each; the winner's is
    optimistic, because the images chose it. p [S]: of each candidate's difference to the
    winner, adjusted for S - 1 comparisons. tied [S]: those with a p above the level.
    """

    winner: int
    accuracy: np.ndarray
    p: np.ndarray
    tied: np.ndarray


def best(values, *others):
    """The number of the candidate with the highest of `values` [S].

    Of equals it is the one with the highest mean of its values [S] on the other axes, then
    the first: so none is called best that another beats somewhere and equals elsewhere.

    >>> best([0.9, 0.9, 0.8], [0.1, 0.3, 0.7])
    1
    """
    values = np.asarray(values)
    mean = np.mean(others, axis=0) if others else np.zeros(len(values))
    return int(np.lexsort((-mean, -values))[0])


def front(across, along):
    """Numbers of the candidates that no other beats in both coordinates, by the first.

    Its ends are the `best` in either.
    """
    order = np.lexsort((-np.asarray(along), -np.asarray(across)))
    kept, highest = [], -np.inf
    for n in order:
        if along[n] > highest:
            kept.append(int(n))
            highest = along[n]
    return kept


def sign_test(first, second):
    """Exact two-sided p [S] of `first` [S] against `second` [S] discordant images.

    Both are counts of images that one of a pair alone is right about; equally accurate
    ones share them by coin flips (McNemar's test, exact).
    """
    first, second = np.asarray(first), np.asarray(second)
    total, fewer = first + second, np.minimum(first, second)
    log_factorial = np.append(0.0, np.cumsum(np.log(np.arange(1, total.max() + 1))))
    k = np.arange(fewer.max() + 1)
    log_chance = (
        log_factorial[total][:, None]
        - log_factorial[k]
        - log_factorial[np.maximum(total[:, None] - k, 0)]
        - total[:, None] * np.log(2)
    )
    tail = np.sum(np.exp(log_chance), axis=1, where=k <= fewer[:, None])
    return np.minimum(2 * tail, 1.0)


def holm(p):
    """p [S] adjusted for S tests by Holm's (1979) steps, however they depend on each other.

    The chance that any true null hypothesis falls to a level or below it is at most that.
    """
    p = np.asarray(p)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def select(right, level=0.05, others=()):
    """The Choice that a correctness table [S, N] makes.

    others: values [S] on other axes, which tell equals apart (see `best`).
    Each candidate is compared with the winner on the images that only one of the two gets
    right. The tests treat the winner as given although the same images chose it.
    """
    right = np.asarray(right, bool)
    winner = best(right.sum(axis=1), *others)
    others = np.arange(len(right)) != winner
    p = np.ones(len(right))
    if others.any():
        better = np.sum(right[winner] & ~right[others], axis=1)
        worse = np.sum(~right[winner] & right[others], axis=1)
        p[others] = holm(sign_test(better, worse))
    return Choice(winner, right.mean(axis=1), p, p > level)


def lowest_entropy(entropy, robust, floor):
    """The candidate of lowest mean prediction entropy [S] with robust accuracy >= floor.

    No labels of the new images are needed: `entropy` is over those (Wang et al. 2021
    adapt by it), `robust` [S] over labelled ones from training. Confident networks are
    not always right ones, hence the floor. Raises ValueError where nobody reaches it.
    """
    entropy, robust = np.asarray(entropy), np.asarray(robust)
    if not np.any(robust >= floor):
        raise ValueError(
            f"no candidate has robust accuracy {floor}; the highest is {robust.max()}"
        )
    return int(np.argmin(np.where(robust >= floor, entropy, np.inf)))


def greedy(score, count):
    """(mixture, its score): the greedy soup of `count` ingredients.

    Wortsman et al. (2022): from the best ingredient on, in falling order of their own
    scores, each joins the average if that does not lower the average's score. score: list
    of mixtures -> [S], higher is better; asked for `count`, then for one at a time.
    """
    alone = np.asarray(score([one_hot(count, k) for k in range(count)]))
    first, *others = np.argsort(-alone, kind="stable").tolist()
    members, best = [first], float(alone[first])
    for k in others:
        tried = float(score([average(count, [*members, k])])[0])
        if tried >= best:
            members, best = [*members, k], tried
    return average(count, members), best
