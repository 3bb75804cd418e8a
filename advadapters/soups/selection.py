"""Choosing a mixture from few labelled images, or from none.

A correctness table `right` [S, N] says whether candidate s is right about image n.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from advadapters.shapes import Float, Shaped
from advadapters.soups.mixtures import Weights, average, one_hot

# One number for each candidate: an array [S] or a sequence.
Values = Shaped[np.ndarray, " S"] | Sequence[Any]


class Choice(NamedTuple):
    """The best of S candidates, and how sure that is.

    Attributes:
      winner: its number; see `best` for equals.
      accuracy: [S], of each candidate. That of the winner is optimistic, because the same
        images chose it.
      p: [S], of each candidate's difference to the winner, adjusted for S - 1
        comparisons.
      tied: [S], whether p is above the level.
    """

    winner: int
    accuracy: np.ndarray
    p: np.ndarray
    tied: np.ndarray


def best(values: Values, *others: Values) -> int:
    """The number of the candidate with the highest value.

    Among equals it is the one with the highest mean of its values on the other axes, then
    the first one. So no candidate is called best if another one is as good everywhere and
    better somewhere.

    Args:
      values: one for each of S candidates.
      others: the values on other axes, which decide between equals.

    >>> soups.best([0.9, 0.9, 0.8], [0.1, 0.3, 0.7])
    1
    """
    values = np.asarray(values)
    mean = np.mean(others, axis=0) if others else np.zeros(len(values))
    return int(np.lexsort((-mean, -values))[0])


def front(across: Values, along: Values) -> list[int]:
    """The numbers of the candidates that no other one beats in both coordinates.

    They are in falling order of the first coordinate. The ends are the `best` candidates
    in either coordinate.

    >>> soups.front([0.9, 0.8, 0.7], [0.2, 0.1, 0.5])
    [0, 2]
    """
    order = np.lexsort((-np.asarray(along), -np.asarray(across)))
    members, highest = [], -np.inf
    for n in order:
        if along[n] > highest:
            members.append(int(n))
            highest = along[n]
    return members


def sign_test(first: Values, second: Values) -> Float[np.ndarray, " S"]:
    """Exact two-sided p [S] of `first` [S] against `second` [S] discordant images.

    Both are counts of images about which only one of a pair is right. Equally accurate
    ones share these images by coin flips (McNemar's test, exact).
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


def holm(p: Values) -> Float[np.ndarray, " S"]:
    """p [S] adjusted for S tests by Holm's (1979) steps, however they depend on each other.

    The chance that any true null hypothesis falls to a level or below it is at most that
    level.
    """
    p = np.asarray(p)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def select(
    right: Shaped[np.ndarray, "S N"], level: float = 0.05, others: Sequence[Values] = ()
) -> Choice:
    """Chooses the candidate that is right about most images, and tests how sure that is.

    Each candidate is compared with the winner on the images that only one of the two gets
    right. The tests treat the winner as given although the same images chose it.

    Args:
      right: whether each candidate is right about each image.
      level: the significance level; candidates with a larger p are tied.
      others: the values [S] on other axes, which decide between equals (see `best`).

    >>> right = np.array([10 * [1], 9 * [1] + [0], 10 * [0]], bool)
    >>> choice = soups.select(right)
    >>> choice.winner, choice.tied.tolist()
    (0, [True, True, False])
    """
    right = np.asarray(right, bool)
    winner = best(right.sum(axis=1), *others)
    losers = np.arange(len(right)) != winner
    p = np.ones(len(right))
    if losers.any():
        better = np.sum(right[winner] & ~right[losers], axis=1)
        worse = np.sum(~right[winner] & right[losers], axis=1)
        p[losers] = holm(sign_test(better, worse))
    return Choice(winner, right.mean(axis=1), p, p > level)


def lowest_entropy(entropy: Values, robust: Values, floor: float) -> int:
    """The candidate of lowest prediction entropy among those that are robust enough.

    This needs no labels of the new images (Wang et al. 2021 adapt by entropy). The floor
    is there because confident networks are not always right ones.

    Args:
      entropy: [S], the mean entropy of each candidate's predictions on the new images.
      robust: [S], the robust accuracy of each candidate on labelled images from training.
      floor: the least robust accuracy that is accepted.

    Raises:
      ValueError: no candidate is as robust as that.

    >>> soups.lowest_entropy([0.1, 0.3, 0.5], robust=[0.2, 0.5, 0.6], floor=0.4)
    1
    """
    entropy, robust = np.asarray(entropy), np.asarray(robust)
    if not np.any(robust >= floor):
        raise ValueError(
            f"no candidate has robust accuracy {floor}; the highest is {robust.max()}"
        )
    return int(np.argmin(np.where(robust >= floor, entropy, np.inf)))


def greedy(score: Callable[[list[Weights]], Values], count: int) -> tuple[Weights, float]:
    """The greedy soup of Wortsman et al. (2022).

    It begins with the best ingredient. In falling order of their own scores, each of the
    others joins the average if that does not lower the score of the average.

    Args:
      score: mixtures -> scores [S], of which higher ones are better. It is called with
        all ingredients at first, then with one mixture at a time.
      count: the number of ingredients.

    Returns:
      The mixture and its score.

    >>> soups.greedy(lambda mixtures: [1 - abs(w[0] - 0.5) for w in mixtures], 3)
    ((0.5, 0.5, 0.0), 1.0)
    """
    scores = np.asarray(score([one_hot(count, k) for k in range(count)]))
    first, *others = np.argsort(-scores, kind="stable").tolist()
    members, highest = [first], float(scores[first])
    for k in others:
        value = float(np.asarray(score([average(count, [*members, k])]))[0])
        if value >= highest:
            members, highest = [*members, k], value
    return average(count, members), highest
