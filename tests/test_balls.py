"""Balls against independent solutions: scipy's optimizer and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from advadapters.balls import BALLS, fill, step_l1

NORMS = {
    "linf": lambda d: np.abs(d).max(),
    "l2": lambda d: np.sqrt((d**2).sum()),
    "l1": lambda d: np.abs(d).sum(),
}
EPS = {"linf": 0.2, "l2": 0.5, "l1": 1.0}


def slow_projection(norm, point, image, eps):
    """The same projection by a general solver (SLSQP on the Lagrange dual's variable).

    For L1 and L2 the distance is minimised over perturbations p - n with p, n >= 0.
    """
    delta, size = point - image, image.size
    low, high = -image, 1 - image
    if norm == "linf":
        return image + np.clip(delta, np.maximum(low, -eps), np.minimum(high, eps))
    if norm == "l2":
        budget = {"type": "ineq", "fun": lambda z: eps**2 - (z**2).sum()}
        found = optimize.minimize(
            lambda z: ((z - delta) ** 2).sum(),
            np.zeros(size),
            jac=lambda z: 2 * (z - delta),
            bounds=list(zip(low, high, strict=True)),
            constraints=budget,
            method="SLSQP",
            options=dict(maxiter=500, ftol=1e-12),
        )
        return image + found.x
    budget = {
        "type": "ineq",
        "fun": lambda z: eps - z.sum(),
        "jac": lambda z: -np.ones(2 * size),
    }
    found = optimize.minimize(
        lambda z: ((z[:size] - z[size:] - delta) ** 2).sum(),
        np.zeros(2 * size),
        jac=lambda z: (
            2 * np.concatenate([z[:size] - z[size:] - delta, delta + z[size:] - z[:size]])
        ),
        bounds=[(0, h) for h in high] + [(0, -b) for b in low],
        constraints=budget,
        method="SLSQP",
        options=dict(maxiter=500, ftol=1e-12),
    )
    return image + found.x[:size] - found.x[size:]


@pytest.mark.parametrize("norm", BALLS)
def test_projection_is_the_nearest_point_of_ball_and_box(norm, rng):
    # Many zeros and ones: there the box matters most.
    images = np.clip(rng.uniform(-0.5, 1.5, (6, 2, 3, 1)), 0, 1).astype(np.float32)
    points = (images + rng.normal(0, 0.5, images.shape)).astype(np.float32)
    found = np.asarray(BALLS[norm].project(points, images, EPS[norm]))
    for row in range(len(images)):
        best = slow_projection(
            norm,
            points[row].ravel().astype(np.float64),
            images[row].ravel().astype(np.float64),
            EPS[norm],
        )
        np.testing.assert_allclose(found[row].ravel(), best, atol=2e-4)


@pytest.mark.parametrize("norm", BALLS)
def test_projection_keeps_what_is_inside_and_takes_a_radius_per_example(norm, rng):
    images = rng.uniform(0.3, 0.7, (4, 3, 3, 1)).astype(np.float32)
    eps = np.array([0.02, 0.1, 0.5, 5.0], np.float32)
    inside = images + 1e-4 * rng.normal(size=images.shape).astype(np.float32)
    np.testing.assert_array_equal(BALLS[norm].project(inside, images, eps), inside)
    far = images + 10 * rng.normal(size=images.shape).astype(np.float32)
    moved = np.asarray(BALLS[norm].project(far, images, eps))
    assert moved.min() >= 0 and moved.max() <= 1
    lengths = [NORMS[norm](moved[i].astype(np.float64) - images[i]) for i in range(4)]
    assert (np.array(lengths) <= eps * (1 + 1e-5) + 1e-6).all()
    np.testing.assert_allclose(lengths[0], eps[0], rtol=1e-4)


@pytest.mark.parametrize("norm", BALLS)
def test_samples_fill_the_ball(norm):
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.vmap(lambda key: BALLS[norm].sample(key, (2, 1, 1), 0.5))(keys)
    lengths = np.asarray(BALLS[norm].norm(draws))
    assert lengths.max() <= 0.5 + 1e-6
    # In two dimensions the share within radius r of a uniform draw is (r / eps)^2.
    assert abs((lengths < 0.25).mean() - 0.25) < 0.03
    assert np.abs(np.asarray(draws).mean(axis=0)).max() < 0.02


@pytest.mark.parametrize("norm", BALLS)
def test_a_step_is_the_steepest_of_its_length(norm, rng):
    points = np.full((3, 3, 3, 1), 0.5, np.float32)
    slope = rng.normal(size=points.shape).astype(np.float32)
    moved = np.asarray(BALLS[norm].step(points, slope, 0.1, count=np.ones(3))) - points
    dual = {
        "linf": np.abs(slope).sum((1, 2, 3)),
        "l2": np.sqrt((slope**2).sum((1, 2, 3))),
        "l1": np.abs(slope).max((1, 2, 3)),
    }[norm]
    np.testing.assert_allclose((moved * slope).sum((1, 2, 3)), 0.1 * dual, rtol=1e-4)
    np.testing.assert_allclose([NORMS[norm](row) for row in moved], 0.1, rtol=1e-4)


def test_l1_step_spreads_over_the_top_coordinates_and_passes_those_without_room():
    points = np.full((1, 10, 10, 1), 0.5, np.float32)
    slope = np.arange(1, 101, dtype=np.float32).reshape(points.shape)
    points[0, 9, 9] = 1.0
    moved = (
        np.asarray(BALLS["l1"].step(points, slope, 0.5, np.array([5.0]))) - points
    ).ravel()
    np.testing.assert_allclose(moved[-6:-1], 0.1, rtol=1e-5)
    assert np.count_nonzero(moved) == 5


def test_zero_and_tiny_gradients_give_no_nan():
    points, one = jnp.full((1, 2, 2, 1), 0.5), jnp.ones(1)
    for ball in BALLS.values():
        assert jnp.array_equal(ball.step(points, jnp.zeros_like(points), 0.1, one), points)
    tiny = jnp.full_like(points, 1e-25)
    moved = BALLS["l2"].step(points, tiny, 0.1, one) - points
    np.testing.assert_allclose(BALLS["l2"].norm(moved), 0.1, rtol=1e-5)


def test_fill_spends_the_budget_in_order():
    room = np.array([[0.5, 0.2, 0.3, 0.4], [0.1, 0.1, 0.1, 0.1]], np.float32)
    priority = np.array([[1.0, 4.0, 3.0, 2.0], [1.0, 0.0, 1.0, 1e-6]], np.float32)
    spent = fill(jnp.asarray(priority), jnp.asarray(room), jnp.array([[0.6], [9.0]]))
    expected = [[0.0, 0.2, 0.3, 0.1], [0.1, 0.0, 0.1, 0.1]]
    np.testing.assert_allclose(spent, expected, atol=1e-6)
    even = fill(jnp.ones((1, 4)), jnp.ones((1, 4)), jnp.array([[1.0]]))
    np.testing.assert_allclose(even, 0.25, atol=1e-6)


def shortest_to_plane(norm, point, weights, gap):
    """min norm(d) with <weights, d> = gap, point + d in [0, 1], by scipy."""
    size = point.size
    low, high = -point, 1 - point
    if norm == "l2":
        found = optimize.minimize(
            lambda d: (d**2).sum(),
            np.zeros(size),
            jac=lambda d: 2 * d,
            bounds=list(zip(low, high, strict=True)),
            constraints={
                "type": "eq",
                "fun": lambda d: weights @ d - gap,
                "jac": lambda d: weights,
            },
            method="SLSQP",
            options=dict(maxiter=500, ftol=1e-14),
        )
        return np.sqrt(found.fun)
    # Linear programs: variables d and one bound t (linf), or one per coordinate (l1).
    bounds = 1 if norm == "linf" else size
    spread = np.ones((size, 1)) if norm == "linf" else np.eye(size)
    above = np.block([[np.eye(size), -spread], [-np.eye(size), -spread]])
    found = optimize.linprog(
        np.r_[np.zeros(size), np.ones(bounds)],
        A_ub=above,
        b_ub=np.zeros(2 * size),
        A_eq=np.r_[weights, np.zeros(bounds)][None],
        b_eq=[gap],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * bounds],
    )
    return found.fun


@pytest.mark.parametrize("norm", BALLS)
def test_to_plane_is_the_shortest_way_inside_the_box(norm, rng):
    points = np.clip(rng.uniform(-0.3, 1.3, (12, 7)), 0, 1).astype(np.float32)
    weights = rng.normal(size=points.shape).astype(np.float32) * 10 ** rng.uniform(
        -4, 2, (12, 7)
    )
    weights = weights.astype(np.float32)
    weights[0, 2:] = 0
    # Gaps that the box reaches, of both signs, some with almost all room used.
    room = np.where(weights > 0, 1 - points, points)
    back = np.where(weights > 0, points, 1 - points)
    share = rng.uniform(0.01, 0.999, 12)
    gap = share * (np.abs(weights) * room).sum(1)
    gap[::2] = -share[::2] * (np.abs(weights) * back).sum(1)[::2]
    gap = gap.astype(np.float32)
    found = np.asarray(BALLS[norm].to_plane(points, weights, gap))
    assert (points + found >= -1e-6).all() and (points + found <= 1 + 1e-6).all()
    np.testing.assert_allclose((found * weights).sum(1), gap, rtol=2e-5)
    for row in range(12):
        best = shortest_to_plane(
            norm, *(a.astype(np.float64) for a in (points[row], weights[row])), gap[row]
        )
        np.testing.assert_allclose(NORMS[norm](found[row]), best, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", BALLS)
def test_a_plane_out_of_reach_gives_the_nearest_corner(norm):
    points = np.full((1, 3), 0.25, np.float32)
    weights = np.array([[2.0, -1.0, 0.5]], np.float32)
    found = np.asarray(BALLS[norm].to_plane(points, weights, np.array([99.0], np.float32)))
    np.testing.assert_allclose(found, [[0.75, -0.25, 0.75]], atol=1e-6)


def test_l1_steps_with_and_without_walls():
    points = np.array([[1.0, 0.9, 0.5, 0.5]], np.float32)
    slope = np.array([[4.0, 3.0, -2.0, 1.0]], np.float32)
    free = step_l1(points, slope, 0.4, np.array([2.0]), walls=False)
    np.testing.assert_allclose(free - points, [[0.2, 0.2, 0, 0]], atol=1e-6)
    # No room, half of the share, a whole share, the rest.
    held = step_l1(points, slope, 0.4, np.array([2.0]))
    np.testing.assert_allclose(held - points, [[0, 0.1, -0.2, 0.1]], atol=1e-6)


@pytest.mark.parametrize("norm", BALLS)
def test_to_plane_at_any_scale(norm, rng):
    points = rng.uniform(size=(4, 7)).astype(np.float32)
    weights = rng.normal(size=(4, 7)).astype(np.float32)
    gap = 0.3 * rng.normal(size=4).astype(np.float32)
    to_plane = BALLS[norm].to_plane
    found = np.asarray(to_plane(points, weights, gap))
    for scale in np.float32([1e-24, 1e-10, 1e10, 1e24]):
        scaled = np.asarray(to_plane(points, scale * weights, scale * gap))
        np.testing.assert_allclose(scaled, found, rtol=1e-4, atol=1e-6)
    for gap in (0.0, 1.0, -3e38):
        nowhere = to_plane(points, 0 * weights, np.full(4, gap, np.float32))
        np.testing.assert_array_equal(nowhere, 0 * points)


@pytest.mark.parametrize("norm", BALLS)
def test_outward_starts_lie_on_the_sphere_or_beyond(norm):
    keys = jax.random.split(jax.random.key(0), 100)
    draws = jax.vmap(lambda key: BALLS[norm].outward(key, (5, 5, 1), EPS[norm]))(keys)
    assert BALLS[norm].norm(draws).min() >= EPS[norm] * (1 - 1e-5)


def test_dual_norms():
    slope = jnp.array([[3.0, -4.0]])
    gains = {name: float(ball.dual(slope)[0]) for name, ball in BALLS.items()}
    assert gains == {"linf": 7.0, "l2": 5.0, "l1": 4.0}
