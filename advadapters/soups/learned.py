"""Mixture weights learned from labelled images, by forward-mode derivatives.

K weights that sum to 1 can move in K - 1 directions. The derivatives of the logits along
them are forward passes whose tangents are differences of the ingredients: no backward pass,
no stored activations.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters.soups.mixtures import check


class Learned(NamedTuple):
    """weights [K] that sum to 1; the losses on the way there, the last one theirs."""

    weights: np.ndarray
    losses: list


def cross_entropy(logits, labels):
    """The cross-entropy [N] of logits [N, L] with labels [N]."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]


def tangents(count):
    """An orthonormal basis [K, K - 1] of the directions that keep the sum of K weights."""
    return np.linalg.svd(np.ones((1, count)))[2][1:].T


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def expansion(apply, at, loss, weights, ingredients, images, labels):
    """(mean loss, gradient [K - 1], curvature [K - 1, K - 1]) along the `tangents`.

    The curvature is the Gauss-Newton one, J^T H J with the logits' derivatives J and the
    Hessian H of the loss in the logits; for a loss convex in these it is never negative.
    """
    basis = jnp.asarray(tangents(len(weights)), weights.dtype)

    def outputs(weights):
        return apply(at(ingredients, weights), images)

    def mean(logits):
        return jnp.mean(loss(logits, labels))

    logits, jacobian = jax.vmap(
        lambda move: jax.jvp(outputs, (weights,), (move,)), out_axes=(None, 0)
    )(basis.T)
    slope = jax.grad(mean)
    bend = jax.vmap(lambda move: jax.jvp(slope, (logits,), (move,))[1])(jacobian)
    dot = functools.partial(jnp.einsum, precision="highest")
    gradient = dot("knl,nl->k", jacobian, slope(logits))
    return mean(logits), gradient, dot("knl,jnl->kj", jacobian, bend)


def bounded_minimum(weights, gradient, hessian, low, high):
    """The weights in the bounds that minimise a convex quadratic model around `weights`.

    gradient [K], hessian [K, K]. On each of the 3**K faces of the box some weights are at
    a bound and the others solve a linear system; the best solution in the box is it.
    """
    sides = [None, *(bound for bound in (low, high) if np.isfinite(bound))]
    best, lowest = weights, 0.0
    for face in itertools.product(sides, repeat=len(weights)):
        free = np.array([bound is None for bound in face])
        found = np.array([bound or 0.0 for bound in face])
        if free.any():
            ones = np.ones((free.sum(), 1))
            corner = hessian[np.ix_(free, free)]
            system = np.block([[corner, ones], [ones.T, np.zeros((1, 1))]])
            slope = gradient + hessian @ (found - weights)
            found[free] = np.linalg.solve(system, [*-slope[free], 1 - found.sum()])[:-1]
        inside = np.all(found >= low - 1e-9) and np.all(found <= high + 1e-9)
        move = found - weights
        model = gradient @ move + move @ hessian @ move / 2
        if inside and abs(found.sum() - 1) < 1e-9 and model < lowest:
            best, lowest = np.clip(found, low, high), model
    return best


def learn(
    apply, at, ingredients, images, labels, start, *,
    loss=cross_entropy, low=0.0, high=1.0, steps=20, tolerance=1e-4,
):  # fmt: skip
    """Learned weights [K] in [low, high] of least mean loss on labelled images.

    Gauss-Newton from `start` [K]: each step minimises the quadratic model in the bounds
    and is halved until the loss falls; the end is where it moves by less than `tolerance`
    or the loss does not fall. low below 0 and high above 1 let it extrapolate; -inf and
    inf are no bounds. apply, at, ingredients: as for `make_scorer`; loss: (logits [N, L],
    labels) -> [N]. All images are taken at once, with K - 1 tangents each.
    """
    weights = np.array(check(start))
    if weights.min() < low or weights.max() > high:
        raise ValueError(f"start {start} is not in the bounds [{low}, {high}]")
    given = ingredients, images, labels
    basis, losses = tangents(len(weights)), []
    value_at = lambda w: float(mean_loss(apply, at, loss, single(w), *given))  # noqa: E731
    for _ in range(steps if len(weights) > 1 else 0):
        value, gradient, curvature = jax.device_get(
            expansion(apply, at, loss, single(weights), *given)
        )
        losses.append(float(value))
        # A floor under the curvature, where moving hardly changes the logits.
        sizes, axes = np.linalg.eigh(curvature.astype(np.float64))
        sizes, axes = np.maximum(sizes, 1e-4 * sizes.max() + 1e-12), basis @ axes
        hessian = axes * sizes @ axes.T
        move = bounded_minimum(weights, basis @ gradient, hessian, low, high) - weights
        tries = (weights + move * 0.5**halved for halved in range(10))
        before = weights
        weights = next((w for w in tries if value_at(w) < value), before)
        if np.abs(weights - before).max() < tolerance:
            break
    return Learned(weights, [*losses, value_at(weights)])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def mean_loss(apply, at, loss, weights, ingredients, images, labels):
    """The mean loss of one soup."""
    return jnp.mean(loss(apply(at(ingredients, weights), images), labels))


def single(weights):
    """Weights as the loss sees them: a float32 array [K]."""
    return jnp.asarray(weights, jnp.float32)
