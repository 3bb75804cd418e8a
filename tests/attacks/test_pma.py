"""The probability margin attack: its loss and schedule, and optima of linear networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import on_problem

from advadapters import losses
from advadapters.attacks.pma import run_pma, schedule
from advadapters.balls import BALLS


def test_the_loss_is_the_papers_formula(rng):
    logits = rng.normal(size=(6, 5)).astype(np.float32)
    labels, rows = np.array([0, 1, 2, 3, 4, 0]), np.arange(6)
    powers = np.exp(np.float64(logits))
    own, others = powers[rows, labels], powers.copy()
    others[rows, labels] = 0
    expected = (others.max(1) - own) / powers.sum(1)
    found = losses.probability_margin(jnp.asarray(logits), labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Its gradient is that of two cross-entropies, weighted by the two probabilities.
    rival = others.argmax(1)
    entropy = lambda z, of: jnp.sum(losses.cross_entropy(z, of))  # noqa: E731
    away, nearer = (jax.grad(entropy)(jnp.asarray(logits), of) for of in (labels, rival))
    shares = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    weighted = shares[rows, labels][:, None] * away - shares[rows, rival][:, None] * nearer
    total = lambda z: jnp.sum(losses.probability_margin(z, labels))  # noqa: E731
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(logits)), weighted, atol=1e-6)


def test_the_schedule_of_the_original():
    """2 eps to 0 along a cosine in each half; where the halves begin, by its code."""
    phases, sizes = schedule(100)
    assert phases.tolist() == [0] + 49 * [1] + 50 * [2]
    assert sizes[[1, 51]].tolist() == [2, 2] and sizes[[26, 76]] == pytest.approx(1)
    assert sizes[50] == pytest.approx(1 + np.cos(0.98 * np.pi))
    assert (np.diff(sizes[1:51]) < 0).all() and (np.diff(sizes[51:]) < 0).all()
    assert 0 <= sizes.min() and sizes.max() <= 2
    assert [len(part) for part in schedule(1)] == [1, 1]


@pytest.mark.parametrize("norm", BALLS)
def test_linear_optimum(norm, rng):
    """Either first half ends where a linear function is largest in the ball."""
    slope = rng.normal(size=64).astype(np.float32) / 8
    eps = {"linf": 0.05, "l2": 0.3, "l1": 0.4}[norm]
    images = jnp.full((3, 8, 8, 1), 0.5)

    def network(points):
        score = (points - 0.5).reshape(3, -1) @ slope
        return jnp.stack([5 + 0 * score, score, 0 * score - 1], axis=1)

    for first in ("own", "rival"):
        found = on_problem(run_pma)(
            network, images, jnp.zeros(3, int), jax.random.key(0), norm=norm, eps=eps,
            steps=20, first=first,
        )  # fmt: skip
        gain = (np.asarray(found.points) - 0.5).reshape(3, -1) @ slope
        best = eps * BALLS[norm].dual(slope[None])[0]
        np.testing.assert_allclose(gain, best, rtol=0.02)
        assert not found.broken.any() and found.forwards == 21


def test_it_stops_when_all_that_matters_is_broken(rng):
    images = jnp.asarray(rng.uniform(0.3, 0.7, (4, 8, 8, 1)).astype(np.float32))

    def network(points):
        score = points.mean((1, 2, 3)) - images.mean((1, 2, 3))
        return jnp.stack([0.01 - score, score], axis=1)

    run = functools.partial(
        on_problem(run_pma), network, images, key=jax.random.key(0), norm="linf"
    )
    found = run(jnp.zeros(4, int), eps=0.1, steps=50)
    assert found.broken.all() and found.forwards < 10
    wrong = network(found.points).argmax(1) == 1
    assert wrong.all()
    # The second and fourth cannot be broken; whether they matter decides how long.
    labels, active = jnp.array([0, 1, 0, 1]), jnp.array([True, False, True, False])
    away = lambda points: network(points).at[1::2, 1].add(9)  # noqa: E731
    run = functools.partial(
        on_problem(run_pma), away, images, labels, jax.random.key(0), norm="linf"
    )
    found = run(eps=0.1, steps=50, active=active)
    assert found.broken.tolist() == active.tolist() and found.forwards < 10
    assert run(eps=0.1, steps=50).forwards == 51
