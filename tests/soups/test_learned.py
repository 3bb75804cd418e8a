"""Learned weights against closed forms, fine grids and reverse-mode gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advadapters import soups, trees
from advadapters.soups.learned import bounded_minimum, expansion, tangents


def linear(seed=0, count=4):
    """(ingredients [K, 6, 2], images [50, 6], targets [50, 2]) of a linear regression."""
    draw = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)  # noqa: E731
    return {"kernel": make(count, 6, 2)}, make(50, 6), make(50, 2)


def squares(weights, ingredients, images, targets):
    """Mean squared error of the soup, which is a linear model."""
    return jnp.mean(
        jnp.square(images @ trees.mix(ingredients, weights)["kernel"] - targets)
    )


def closed_form(ingredients, images, targets):
    """The weights of least error among those that sum to 1, from the KKT system."""
    each = np.stack([np.ravel(images @ kernel) for kernel in ingredients["kernel"]], axis=1)
    each, target = each.astype(np.float64), np.ravel(targets).astype(np.float64)
    ones = np.ones((each.shape[1], 1))
    system = np.block([[each.T @ each, ones], [ones.T, np.zeros((1, 1))]])
    return np.linalg.solve(system, [*each.T @ target, 1.0])[:-1]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_linear_model_reaches_its_closed_form(count):
    problem = linear(count=count)
    expected = closed_form(*problem)
    found = soups.learn(
        squares, soups.average(count, range(count)), *problem, low=-np.inf, high=np.inf
    )
    np.testing.assert_allclose(found.weights, expected, atol=1e-4)
    assert found.losses == sorted(found.losses, reverse=True)
    # A quadratic takes one step, and one to see that it was the last.
    assert len(found.losses) <= 4


def test_bounds_hold_and_the_best_inside_is_found():
    for seed in range(3):
        problem = linear(seed, count=3)
        for low, high in [(0.0, 1.0), (-0.2, 0.9)]:
            found = soups.learn(squares, (0.4, 0.3, 0.3), *problem, low=low, high=high)
            assert found.weights.min() >= low and found.weights.max() <= high
            assert found.weights.sum() == pytest.approx(1)
            grid = np.array(soups.simplex(3, 0.02, -low))
            grid = grid[(grid <= high + 1e-9).all(axis=1)]
            value = jax.vmap(lambda w, problem=problem: squares(w, *problem))
            assert found.losses[-1] <= float(value(jnp.float32(grid)).min()) + 1e-6


def test_bounded_minimum_of_an_indifferent_corner():
    hessian = np.eye(2)
    np.testing.assert_allclose(
        bounded_minimum(np.array([0.5, 0.5]), np.array([5.0, 0.0]), hessian, 0.0, 1.0),
        [0, 1],
    )
    np.testing.assert_allclose(
        bounded_minimum(np.array([0.0, 1.0]), np.array([5.0, 0.0]), hessian, 0.0, 1.0),
        [0, 1],
    )


def test_start_must_be_a_mixture_in_the_bounds():
    for start in [(0.5, 0.6), (1.5, -0.5)]:
        with pytest.raises(ValueError, match="does not sum to 1 in bounds"):
            soups.learn(squares, start, *linear(count=2))


def apply(plain, images):
    """A network of one hidden layer."""
    hidden = jax.nn.gelu(images @ plain["kernel"])
    return hidden @ plain["head"]


def test_network_by_forward_mode():
    """The gradient is that of reverse mode; learning finds what a grid finds, or better."""
    draw = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)  # noqa: E731
    stacked = {"kernel": make(3, 6, 8), "head": make(3, 8, 4)}
    images = make(60, 6)
    labels = jnp.argmax(apply(trees.mix(stacked, (0.2, 0.1, 0.7)), images), axis=1)
    loss = soups.cross_entropy(apply, trees.mix)
    start = jnp.float32([0.5, 0.3, 0.2])
    value, gradient, hessian = expansion(loss, start, stacked, images, labels)
    expected, reverse = jax.jit(jax.value_and_grad(loss))(start, stacked, images, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, tangents(3).T @ reverse, rtol=1e-3, atol=1e-5)
    curvature = jax.jit(jax.hessian(loss))(start, stacked, images, labels)
    np.testing.assert_allclose(
        hessian, tangents(3).T @ curvature @ tangents(3), rtol=1e-3, atol=1e-4
    )
    value_at = jax.jit(jax.vmap(loss, in_axes=(0, None, None, None)))
    for extra in (0.0, 0.4):
        high = 1 + 2 * extra
        found = soups.learn(loss, start, stacked, images, labels, low=-extra, high=high)
        grid = jnp.float32(soups.simplex(3, 0.1, extra))
        losses = value_at(grid, stacked, images, labels)
        assert found.losses[-1] <= float(losses.min()) + 1e-5
        assert found.weights.min() >= -extra and found.weights.max() <= high
