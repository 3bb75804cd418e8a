"""Mixture weights learned from labelled images, by forward-mode derivatives.

K weights that sum to 1 can move in K - 1 directions. The derivatives of a loss along them
are forward passes whose tangents are differences of the ingredients: no backward pass, no
stored activations.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Learned(NamedTuple):
    """weights [K] that sum to 1; the losses on the way there, the last one theirs."""

    weights: np.ndarray
    losses: list


def cross_entropy(apply, at):
    """loss(weights [K], ingredients, images, labels) -> mean cross-entropy, for `learn`.

    at: (ingredients, weights) -> plain; apply: (plain, images) -> logits [N, L].
    """

    def loss(weights, ingredients, images, labels):
        logits = apply(at(ingredients, weights), images).astype(jnp.float32)
        log_p = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))

    return loss


def tangents(count):
    """An orthonormal basis [K, K - 1] of the directions that keep the sum of K weights."""
    return np.linalg.svd(np.ones((1, count)))[2][1:].T


@functools.partial(jax.jit, static_argnums=0)
def expansion(loss, weights, *operands):
    """(value, gradient [K - 1], Hessian [K - 1, K - 1]) of `loss(weights, *operands)`.

    Along the `tangents`.
    """
    basis = jnp.asarray(tangents(len(weights)), weights.dtype)

    def along(move):
        return loss(weights + jnp.sum(basis * move, axis=1), *operands)

    here = jnp.zeros(basis.shape[1], weights.dtype)
    slope = jax.jacfwd(along)
    return along(here), slope(here), jax.jacfwd(slope)(here)


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


def learn(loss, start, *operands, low=0.0, high=1.0, steps=20, tolerance=1e-4):
    """Learned weights [K] in [low, high] of least `loss(weights, *operands)`.

    Newton's method from `start`: each step minimises the quadratic model in the bounds,
    with the curvature's absolute value where the loss is not convex, and is halved until
    the loss falls; the end is where it moves by less than `tolerance` or does not fall.
    low below 0 and high above 1 let it extrapolate; -inf and inf are no bounds.
    operands: what the loss needs besides, as the ingredients [K, ...], images and labels of
    `cross_entropy`. A step costs about as much as K**2 forward passes.
    """
    weights = np.asarray(start, np.float64)
    if abs(weights.sum() - 1) > 1e-6 or weights.min() < low or weights.max() > high:
        raise ValueError(f"start {start} does not sum to 1 in bounds [{low}, {high}]")
    value_at = jax.jit(loss)
    basis, losses = tangents(len(weights)), []
    for _ in range(steps if len(weights) > 1 else 0):
        value, gradient, hessian = jax.device_get(
            expansion(loss, single(weights), *operands)
        )
        losses.append(float(value))
        curvature, axes = np.linalg.eigh(hessian.astype(np.float64))
        curvature, axes = np.abs(curvature), basis @ axes
        curvature = np.maximum(curvature, 1e-3 * curvature.max() + 1e-12)
        convex = axes * curvature @ axes.T
        move = bounded_minimum(weights, basis @ gradient, convex, low, high) - weights
        tries = (weights + move * 0.5**halved for halved in range(10))
        better = (w for w in tries if value_at(single(w), *operands) < value)
        before, weights = weights, next(better, weights)
        if np.abs(weights - before).max() < tolerance:
            break
    return Learned(weights, [*losses, float(value_at(single(weights), *operands))])


def single(weights):
    """Weights as the loss sees them: a float32 array [K]."""
    return jnp.asarray(weights, jnp.float32)
