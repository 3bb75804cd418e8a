"""The core of the attacks: parts as functions, against optima of linear networks."""

import doctest

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advadapters import losses
from advadapters.attacks import ascend, ascent, steepest, within
from advadapters.attacks.pgd import pgd
from advadapters.balls import BALLS

EPS = {"linf": 0.1, "l2": 0.5, "l1": 2.0}


def linear(rng, count=4):
    """(logits_fn, slope of the margin, images far from the box's walls, labels)."""
    weights = rng.normal(size=(64, 2)).astype(np.float32)
    images = rng.uniform(0.4, 0.6, (count, 8, 8, 1)).astype(np.float32)
    network = lambda x: x.reshape(len(x), -1) @ weights  # noqa: E731
    slope = (weights[:, 1] - weights[:, 0]).reshape(1, 8, 8, 1)
    return network, slope, jnp.asarray(images), jnp.zeros(count, jnp.int32)


def test_the_example_is_an_attack(rng):
    """The docstring's few lines, on a linear network: the sum of its steps, in the ball."""
    (example,) = doctest.DocTestFinder(recurse=False).find(ascend, "ascend")
    names = dict(losses=losses, jnp=jnp, within=within, BALLS=BALLS, ascend=ascend)
    example.globs = names
    assert doctest.DocTestRunner().run(example, clear_globs=False) == (0, 1)
    network, slope, images, labels = linear(rng)
    key, attack = jax.random.key(0), names["decaying"]
    run = jax.jit(lambda x: attack(network, x, labels, key, norm="linf", eps=0.1, steps=40))
    reach = sum(1 / step for step in range(1, 41)) * slope / np.abs(slope).mean()
    expected = images + 0.1 * np.clip(reach, -1, 1)
    np.testing.assert_allclose(run(images), expected, atol=1e-5)


@pytest.mark.parametrize("norm", BALLS)
def test_pgd_is_a_filling(norm, rng):
    """The same parts, put together by hand, give PGD's result to the bit."""
    network, _, images, labels = linear(rng)
    ball, eps = BALLS[norm], EPS[norm]

    def by_hand(images):
        climbed = ascend(
            lambda points, step: losses.margin(network(points), labels),
            images,
            move=steepest(ball, eps / 4, 5),
            project=within(ball, images, eps),
            steps=5,
        )
        return climbed.points

    settings = dict(norm=norm, eps=eps, steps=5, step_size=eps / 4, loss="margin")
    settings |= dict(random_start=False)
    whole = lambda x: pgd(network, x, labels, jax.random.key(0), **settings)  # noqa: E731
    np.testing.assert_array_equal(jax.jit(by_hand)(images), jax.jit(whole)(images))


def test_parts_are_called_in_the_order_that_is_said():
    """A parabola in one dimension, whose steps are counted by hand."""
    objective = lambda points, at: (-jnp.square(points - at)[:, 0], points[:, 0] + 10)  # noqa: E731
    climbed = ascend(
        objective,
        jnp.zeros((2, 1)),
        move=lambda points, slope, step: points + 0.25 * slope + step,
        project=lambda points: jnp.minimum(points, 3.0),
        steps=4,
        vary=lambda points, step: (points + 0.5, 2.0),
        keep=lambda kept, points, loss, more: kept + jnp.stack([points[0, 0], more[0]]),
        kept=jnp.zeros(2),
        until=lambda state: state.step == 3,
        has_aux=True,
    )
    here, seen = 0.0, []
    for step in range(3):
        here += 0.5
        seen.append(here)
        here = min(here + 0.25 * -2 * (here - 2.0) + step, 3.0)
    assert climbed.step == 3
    np.testing.assert_allclose(climbed.points, here, rtol=1e-6)
    np.testing.assert_allclose(climbed.kept, [sum(seen), sum(seen) + 30], rtol=1e-6)


def test_a_transform_has_a_memory(rng):
    """Momentum of a constant gradient: its sum grows as 1, 1.5, 1.75 times the gradient."""
    network, slope, images, labels = linear(rng)
    climbed = ascend(
        lambda points, step: losses.margin(network(points), labels),
        images,
        move=lambda points, direction, step: points + direction,
        project=lambda points: points,
        steps=3,
        transform=optax.trace(0.5),
    )
    moved = np.asarray(climbed.points - images)
    np.testing.assert_allclose(moved, np.broadcast_to(4.25 * slope, moved.shape), rtol=1e-4)


def test_trees_climb_with_one_trace_and_without_gradients():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(start):
        climbed = ascend(
            lambda points, step: points["a"][:, 0] + 2 * points["b"][:, 0, 0],
            start,
            move=lambda points, slope, step: jax.tree.map(jnp.add, points, slope),
            project=lambda points: points,
            steps=5,
        )
        return climbed.points

    chex.clear_trace_counter()
    start = {"a": jnp.zeros((2, 1)), "b": jnp.ones((2, 1, 1))}
    for _ in range(2):
        points = run(start)
    assert (points["a"] == 5).all() and (points["b"] == 11).all()
    total = lambda start: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(run(start)))  # noqa: E731
    assert not any(
        leaf.any() for leaf in jax.tree.leaves(jax.jvp(total, (start,), (start,))[1])
    )


def test_slopes_are_finite_and_losses_have_a_rank():
    look = ascent.with_slopes(lambda points: jnp.sqrt(points[:, 0]) + points[:, 1])
    loss, more, slope = look(jnp.array([[0.0, 1.0], [-1.0, 1.0], [4.0, 1.0]]))
    np.testing.assert_array_equal(loss, [1, -np.inf, 3])
    np.testing.assert_array_equal(slope, [[0, 1], [0, 1], [0.25, 1]])
    assert more is None
