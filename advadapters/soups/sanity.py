"""Can these networks be averaged? What to look at before making a soup of them."""

from typing import NamedTuple

import jax
import numpy as np

from advadapters.soups.mixtures import line


class Barrier(NamedTuple):
    """The loss between two ingredients.

    height: the most by which the loss exceeds the straight line between its ends, 0 if it
    never does. at: the first ingredient's weight there. losses [P]: along the path.
    """

    height: float
    at: float
    losses: np.ndarray


def barrier(score, count, first, second, points=11):
    """The Barrier between two of `count` ingredients (Frankle et al. 2020).

    Networks that began as one and stayed close have hardly any, and only these can be
    averaged. score: list of mixtures -> losses [S], lower is better.
    """
    weights = np.linspace(0, 1, points)
    losses = np.asarray(score(line(count, first, second, weights.tolist())), np.float64)
    excess = losses - (weights * losses[-1] + (1 - weights) * losses[0])
    top = int(np.argmax(excess))
    return Barrier(float(excess[top]), float(weights[top]), losses)


def relative_distances(stacked):
    """[K, K]: |theta_i - theta_j| over the geometric mean of the norms, of K networks.

    Over kernels, leaves of two or more axes: scales and biases begin alike in all networks.
    0 for equal networks, about sqrt(2) for unrelated ones.
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


def ancestor_warning(stacked, limit=0.7):
    """A warning in one line if some ingredients hardly have a common ancestor, else "".

    That is a hint, not a proof: at a relative distance of 0.7 the cosine between two
    networks of equal norm is 0.75. `barrier` measures what matters.
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
