"""Checks whether networks can be averaged, to be made before making a soup of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from advadapters.shapes import Float, PyTree
from advadapters.soups.mixtures import Weights, line_between


class Barrier(NamedTuple):
    """The loss between two ingredients.

    Attributes:
      height: the most by which the loss exceeds the straight line between its ends; 0 if
        it never does.
      at: the weight of the first ingredient where that is.
      losses: [P], those along the path.
    """

    height: float
    at: float
    losses: np.ndarray


def barrier(
    score: Callable[[list[Weights]], Sequence[Any] | np.ndarray],
    count: int,
    first: int,
    second: int,
    points: int = 11,
) -> Barrier:
    """The loss barrier between two ingredients (Frankle et al. 2020).

    Networks that began as one network and stayed close have hardly any, and only these
    can be averaged.

    Args:
      score: mixtures -> losses [S], of which lower ones are better.
      count: the number of ingredients.
      first: the number of one ingredient.
      second: the number of another ingredient.
      points: how many mixtures of the two are scored.

    >>> hill = soups.barrier(lambda mixtures: [a * b for a, b in mixtures], 2, 0, 1)
    >>> hill.height, hill.at
    (0.25, 0.5)
    """
    weights = np.linspace(0, 1, points)
    losses = np.asarray(
        score(line_between(count, first, second, weights.tolist())), np.float64
    )
    excess = losses - (weights * losses[-1] + (1 - weights) * losses[0])
    top = int(np.argmax(excess))
    return Barrier(float(excess[top]), float(weights[top]), losses)


def relative_distances(stacked: PyTree) -> Float[np.ndarray, "K K"]:
    """|theta_i - theta_j| over the geometric mean of the norms, for K networks.

    It is taken over kernels, which are leaves of two or more axes, because scales and
    biases begin alike in all networks. It is 0 for equal networks, and about sqrt(2) for
    unrelated ones.

    Args:
      stacked: the networks in one tree, see `stack`.

    Raises:
      ValueError: there are no kernels.

    >>> kernels = np.array([[[3.0, 0.0]], [[0.0, 3.0]]])
    >>> soups.relative_distances({"kernel": kernels}).round(3).tolist()
    [[0.0, 1.414], [1.414, 0.0]]
    """
    kernels = [
        np.asarray(leaf, np.float32).reshape(len(leaf), -1)
        for leaf in jax.tree.leaves(stacked)
        if leaf.ndim > 2
    ]
    if not kernels:
        raise ValueError("no leaf has two or more axes besides that of the ingredients")
    count = len(kernels[0])
    squares = np.zeros((count, count))
    norms = np.zeros(count)
    for leaf in kernels:
        norms += np.sum(np.square(leaf), axis=1, dtype=np.float64)
        for k in range(count):
            squares[k] += np.sum(np.square(leaf - leaf[k]), axis=1, dtype=np.float64)
    return np.sqrt(squares / np.sqrt(np.outer(norms, norms)))


def ancestor_warning(stacked: PyTree, limit: float = 0.7) -> str:
    """A warning in one line if some ingredients hardly have a common ancestor, else "".

    That is a hint, not a proof: at a relative distance of 0.7 the cosine between two
    networks of equal norm is 0.75. `barrier` measures what matters.

    Args:
      stacked: the networks in one tree, see `stack`.
      limit: the largest of the `relative_distances` that raises no warning.

    >>> soups.ancestor_warning({"kernel": np.ones((2, 4, 4))})
    ''
    """
    distances = relative_distances(stacked)
    first, second = np.unravel_index(np.argmax(distances), distances.shape)
    if distances[first, second] <= limit:
        return ""
    return (
        f"ingredients {first} and {second} are {distances[first, second]:.2f} of their "
        "norm apart (unrelated networks: 1.41): if they were not fine-tuned from one "
        "network, their soup will not work"
    )
