"""Mixture weights learned from labelled images, by forward-mode derivatives.

K weights that sum to 1 can move in K - 1 directions. The derivatives of the logits along
them are forward passes whose tangents are differences of the ingredients, so there is no
backward pass and no activation is stored.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np

from advadapters.shapes import (
    AnyArray,
    Array,
    Float,
    Mixture,
    PyTree,
    Scalar,
    Shaped,
)
from advadapters.soups.mixtures import check

Batch = Shaped[AnyArray, "N ..."]
Outputs = Float[AnyArray, "N L"]
# (network, images [N, ...]) -> outputs [N, L]
ApplyFn = Callable[[Any, Any], Any]
# (ingredients, weights [K]) -> network
MixFn = Callable[[Any, Any], Any]
# (outputs [N, L], labels [N, ...]) -> one number for each image, [N]
MeasureFn = Callable[[Any, Any], Any]


class LearnedMixture(NamedTuple):
    """What `learn` returns.

    Attributes:
      weights: [K], which sum to 1.
      losses: the mean losses on the way there; the last one is that of the weights.
    """

    weights: np.ndarray
    losses: list[float]


def cross_entropy(logits: Outputs, labels: Shaped[AnyArray, " N"]) -> Float[AnyArray, " N"]:
    """The cross-entropy [N] of logits [N, L] with class numbers [N], in float32.

    >>> soups.cross_entropy(np.array([[0.0, 100.0]]), np.array([0])).tolist()
    [100.0]
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]


def tangents(count: int) -> Float[np.ndarray, "K K-1"]:
    """An orthonormal basis [K, K - 1] of the directions that keep the sum of K weights."""
    return np.linalg.svd(np.ones((1, count)))[2][1:].T


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def expansion(
    apply: ApplyFn,
    at: MixFn,
    loss: MeasureFn,
    weights: Mixture,
    ingredients: PyTree,
    images: Batch,
    labels: Batch,
) -> tuple[Scalar, Float[Array, " K-1"], Float[Array, "K-1 K-1"]]:
    """The mean loss, its gradient and its curvature along the `tangents`.

    The curvature is the Gauss-Newton one, J^T H J with the logits' derivatives J and the
    Hessian H of the loss in the logits. For a loss that is convex in these it is never
    negative. The arguments are those of `learn`.
    """
    basis = jnp.asarray(tangents(len(weights)), weights.dtype)

    def outputs(weights: Mixture) -> Outputs:
        return apply(at(ingredients, weights), images)

    def mean(logits: Outputs) -> Scalar:
        return jnp.mean(loss(logits, labels))

    logits, jacobian = jax.vmap(
        lambda move: jax.jvp(outputs, (weights,), (move,)), out_axes=(None, 0)
    )(basis.T)
    slope = jax.grad(mean)
    bend = jax.vmap(lambda move: jax.jvp(slope, (logits,), (move,))[1])(jacobian)
    dot = functools.partial(jnp.einsum, precision="highest")
    gradient = dot("knl,nl->k", jacobian, slope(logits))
    return mean(logits), gradient, dot("knl,jnl->kj", jacobian, bend)


def bounded_minimum(
    weights: Float[np.ndarray, " K"],
    gradient: Float[np.ndarray, " K"],
    hessian: Float[np.ndarray, "K K"],
    low: float,
    high: float,
) -> Float[np.ndarray, " K"]:
    """The weights in [low, high] that minimise a convex quadratic model around `weights`.

    On each of the 3**K faces of the box some weights are at a bound and the others solve
    a linear system. The best of the solutions that lie in the box is the minimum.
    """
    sides = [None, *(bound for bound in (low, high) if np.isfinite(bound))]
    best, lowest = weights, 0.0
    for face in itertools.product(sides, repeat=len(weights)):
        point = _face_minimum(face, weights, gradient, hessian)
        inside = np.all(point >= low - 1e-9) and np.all(point <= high + 1e-9)
        move = point - weights
        model = gradient @ move + move @ hessian @ move / 2
        if inside and abs(point.sum() - 1) < 1e-9 and model < lowest:
            best, lowest = np.clip(point, low, high), model
    return best


def _face_minimum(
    face: tuple[float | None, ...],
    weights: Float[np.ndarray, " K"],
    gradient: Float[np.ndarray, " K"],
    hessian: Float[np.ndarray, "K K"],
) -> Float[np.ndarray, " K"]:
    """The minimum on a face: each weight is at a bound, or free (None); the sum is 1."""
    free = np.array([bound is None for bound in face])
    point = np.array([bound or 0.0 for bound in face])
    if free.any():
        ones = np.ones((free.sum(), 1))
        corner = hessian[np.ix_(free, free)]
        system = np.block([[corner, ones], [ones.T, np.zeros((1, 1))]])
        slope = gradient + hessian @ (point - weights)
        point[free] = np.linalg.solve(system, [*-slope[free], 1 - point.sum()])[:-1]
    return point


def learn(
    apply: ApplyFn,
    at: MixFn,
    ingredients: PyTree,
    images: Batch,
    labels: Batch,
    start: Iterable[SupportsFloat],
    *,
    loss: MeasureFn = cross_entropy,
    low: float = 0.0,
    high: float = 1.0,
    steps: int = 20,
    tolerance: float = 1e-4,
) -> LearnedMixture:
    """Learns the weights of a soup: those of least mean loss on labelled images.

    The method is Gauss-Newton: each step minimises a quadratic model of the loss within
    the bounds, and is halved until the loss falls. All images are taken at once, with
    K - 1 tangents each.

    Args:
      apply: (network, images) -> logits [N, L].
      at: (ingredients, weights [K]) -> network: `trees.mix` for whole networks, and
        `trees.plain` for shared parameters and adapters.
      ingredients: the first argument of `at`.
      images: those to learn from, [N, ...].
      labels: one for each image, as the loss takes them.
      start: the K weights to start from, which sum to 1.
      loss: (logits, labels) -> the loss of each image, [N].
      low: the least that a weight may be. Below 0 the soup may extrapolate; -inf is no
        bound.
      high: the most that a weight may be, likewise.
      steps: the largest number of steps.
      tolerance: the search ends where no weight moves by as much as this.

    Raises:
      ValueError: the start is not within the bounds, or no soup (see `check`).

    >>> networks = {"bias": np.eye(2)}
    >>> learned = soups.learn(
    ...     lambda network, images: images + network["bias"],
    ...     trees.mix,
    ...     networks,
    ...     images=np.zeros((1, 2)),
    ...     labels=np.array([[0.8, 0.2]]),
    ...     start=(0.5, 0.5),
    ...     loss=lambda logits, labels: jnp.sum((logits - labels) ** 2, axis=1),
    ... )
    >>> learned.weights.round(3).tolist()
    [0.8, 0.2]
    """
    weights = np.array(check(start))
    if weights.min() < low or weights.max() > high:
        raise ValueError(f"start {start} is not in the bounds [{low}, {high}]")
    data = ingredients, images, labels
    basis, losses = tangents(len(weights)), []

    def value_at(weights: Float[np.ndarray, " K"]) -> float:
        return float(mean_loss(apply, at, loss, _float32(weights), *data))

    for _ in range(steps if len(weights) > 1 else 0):
        value, gradient, curvature = jax.device_get(
            expansion(apply, at, loss, _float32(weights), *data)
        )
        losses.append(float(value))
        # A floor under the curvature, where moving hardly changes the logits.
        sizes, axes = np.linalg.eigh(curvature.astype(np.float64))
        sizes, axes = np.maximum(sizes, 1e-4 * sizes.max() + 1e-12), basis @ axes
        hessian = axes * sizes @ axes.T
        move = bounded_minimum(weights, basis @ gradient, hessian, low, high) - weights
        tries = (weights + move * 0.5**halvings for halvings in range(10))
        before = weights
        weights = next((w for w in tries if value_at(w) < value), before)
        if np.abs(weights - before).max() < tolerance:
            break
    return LearnedMixture(weights, [*losses, value_at(weights)])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def mean_loss(
    apply: ApplyFn,
    at: MixFn,
    loss: MeasureFn,
    weights: Mixture,
    ingredients: PyTree,
    images: Batch,
    labels: Batch,
) -> Scalar:
    """The mean loss of one soup; the arguments are those of `learn`."""
    return jnp.mean(loss(apply(at(ingredients, weights), images), labels))


def _float32(weights: Float[np.ndarray, " K"]) -> Float[Array, " K"]:
    """The weights as the loss takes them."""
    return jnp.asarray(weights, jnp.float32)
