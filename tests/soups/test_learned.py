"""Learned weights against closed forms, fine grids and reverse-mode gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advadapters import soups, trees
from advadapters.soups.learned import bounded_minimum, expansion, mean_loss, tangents


def linear(seed=0, count=4):
    """(ingredients [K, 6, 2], images [50, 6], targets [50, 2]) of a linear regression."""
    draw = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)  # noqa: E731
    return {"kernel": make(count, 6, 2)}, make(50, 6), make(50, 2)


def linear_model(plain, images):
    return images @ plain["kernel"]


def squares(outputs, targets):
    """The squared error [N]: of a linear model's soup, a quadratic in the weights."""
    return jnp.sum(jnp.square(outputs - targets), axis=1)


def learn(problem, start, **how):
    return soups.learn(linear_model, trees.mix, *problem, start, loss=squares, **how)


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
    start = soups.average(count, range(count))
    found = learn(problem, start, low=-np.inf, high=np.inf)
    np.testing.assert_allclose(found.weights, expected, atol=1e-4)
    assert found.losses == sorted(found.losses, reverse=True)
    # A quadratic takes one step, and one to see that it was the last.
    assert len(found.losses) <= 4


def test_bounds_hold_and_the_best_inside_is_found():
    how = linear_model, trees.mix, squares
    for seed in range(3):
        problem = linear(seed, count=3)
        for low, high in [(0.0, 1.0), (-0.2, 0.9)]:
            found = learn(problem, (0.4, 0.3, 0.3), low=low, high=high)
            assert found.weights.min() >= low and found.weights.max() <= high
            assert found.weights.sum() == pytest.approx(1)
            grid = np.array(soups.simplex(3, 0.02, -low))
            grid = grid[(grid <= high + 1e-9).all(axis=1)]
            value = jax.vmap(lambda w, p=problem: mean_loss(*how, w, *p))
            best = float(value(jnp.float32(grid)).min())
            assert found.losses[-1] <= best + 1e-6


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
    for start, told in [((0.5, 0.6), "must sum to 1"), ((1.5, -0.5), "not in the bounds")]:
        with pytest.raises(ValueError, match=told):
            learn(linear(count=2), start)


def two_layers(plain, images):
    return jax.nn.gelu(images @ plain["kernel"]) @ plain["head"]


def test_network_by_forward_mode():
    """Gradient and curvature are those of reverse mode; learning beats a grid."""
    draw = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)  # noqa: E731
    stacked, images = {"kernel": make(3, 6, 8), "head": make(3, 8, 4)}, make(60, 6)
    labels = jnp.argmax(two_layers(trees.mix(stacked, (0.2, 0.1, 0.7)), images), axis=1)
    problem, start = (stacked, images, labels), jnp.float32([0.5, 0.3, 0.2])
    how = two_layers, trees.mix, soups.cross_entropy
    value, gradient, curvature = expansion(*how, start, *problem)

    def logits_fn(weights):
        return two_layers(trees.mix(stacked, weights), images)

    def mean(weights):
        log_p = jax.nn.log_softmax(logits_fn(weights))
        return -jnp.mean(log_p[jnp.arange(60), labels])

    @jax.jit
    def reverse(weights):
        logits = logits_fn(weights)
        p, j = jax.nn.softmax(logits), jax.jacrev(logits_fn)(weights)
        h = jnp.eye(4) * p[:, None] - p[:, None] * p[:, :, None]
        curvature = jnp.einsum("nlk,nlm,nmj", j, h, j) / 60
        return mean(weights), jax.grad(mean)(weights), curvature

    expected, slope, bend = reverse(start)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, tangents(3).T @ slope, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        curvature, tangents(3).T @ bend @ tangents(3), rtol=1e-3, atol=1e-4
    )
    grid_loss = jax.jit(jax.vmap(mean))
    for extra in (0.0, 0.4):
        high = 1 + 2 * extra
        found = soups.learn(*how[:2], *problem, start, low=-extra, high=high)
        best = float(grid_loss(jnp.float32(soups.simplex(3, 0.1, extra))).min())
        assert found.losses[-1] <= best + 1e-5
        assert found.weights.min() >= -extra and found.weights.max() <= high
