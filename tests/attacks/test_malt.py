"""MALT: its targets on linear networks, where they are exact, and in a cascade."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advadapters.attacks import autoattack
from advadapters.attacks.malt import nearest_classes
from advadapters.balls import BALLS

CLASSES, SIDE = 7, 4


def linear(weights, images):
    """Logits [B, L] of weights [D, L], 0 on grey."""
    return (images - 0.5).reshape(len(images), -1) @ weights


def towards(norm, slope):
    """The change [D] of size 1 that a linear function with this slope gains most by."""
    if norm == "l2":
        return slope / np.linalg.norm(slope)
    signs = np.sign(slope)
    return signs if norm == "linf" else signs * (np.abs(slope) == np.abs(slope).max())


@pytest.mark.parametrize("norm", BALLS)
def test_targets_are_exact_on_a_linear_network(norm, rng):
    """The first class that a growing ball reaches is the first target, and so on.

    Each class is walked to on the shortest way, in small steps, until it wins over the
    label: no formula of a distance is used.
    """
    scales = rng.uniform(0.2, 3, CLASSES)  # so that the likeliest is not the nearest
    weights = (rng.normal(size=(SIDE * SIDE, CLASSES)) * scales).astype(np.float32)
    images = rng.uniform(0.45, 0.55, (5, SIDE, SIDE, 1)).astype(np.float32)
    logits = np.asarray(linear(weights, images))
    labels = logits.argmax(1)
    choose = functools.partial(nearest_classes, norm=norm, nearest=9)
    targets = np.asarray(choose(functools.partial(linear, weights), images, labels)).T
    assert targets.shape == (5, CLASSES - 1)
    sizes = np.linspace(0, 1, 20001)[:, None]
    unlike = 0
    for image, label, row, logit in zip(images, labels, targets, logits, strict=True):
        reached = {}
        for other in set(range(CLASSES)) - {label}:
            way = sizes * towards(norm, weights[:, other] - weights[:, label])
            along = np.float64(image.ravel() - 0.5 + way) @ np.float64(weights)
            reached[other] = np.argmax(along[:, other] > along[:, label])
        assert min(reached.values()) > 0
        assert row.tolist() == sorted(reached, key=reached.get)
        unlike += row[0] != np.argsort(-logit)[1]
    assert unlike  # MALT's first target is not always the likeliest
    # Of fewer candidates, the likeliest ones, the order is the same.
    few = np.asarray(
        choose(functools.partial(linear, weights), images, labels, candidates=3)
    )
    for row, part, logit in zip(targets, few.T, logits, strict=True):
        likely = np.argsort(-logit)[1:4]
        assert part.tolist() == [c for c in row if c in likely]


def test_classes_without_a_gradient_come_last(rng):
    """Authors' code puts them first; without any, the order is that of the logits."""
    weights = rng.normal(size=(SIDE * SIDE, CLASSES)).astype(np.float32)
    images = rng.uniform(0.4, 0.6, (3, SIDE, SIDE, 1)).astype(np.float32)

    def half_dead(points):
        """Class 1 nearly wins over class 0, but has its gradient; class 2 has no logit."""
        logits = linear(weights, points)
        logits = logits.at[:, 1].set(logits[:, 0] - 0.1)
        return logits.at[:, 2].set(jnp.nan)

    labels = np.zeros(3, int)
    found = np.asarray(nearest_classes(half_dead, images, labels, norm="linf"))
    assert set(found[-2:].ravel().tolist()) == {1, 2}
    blind = lambda points: linear(weights, jax.lax.stop_gradient(points))  # noqa: E731
    found = np.asarray(nearest_classes(blind, images, labels, norm="linf"))
    others = np.asarray(linear(weights, images))[:, 1:]
    np.testing.assert_array_equal(found.T, 1 + np.argsort(-others, axis=1))


def near_but_unlikely(images):
    """Class 1 is the likeliest other one, but flat; class 2, the least likely, is steep."""
    mean = images.mean((1, 2, 3)) - 0.5
    flat = jnp.zeros_like(mean)
    return jnp.stack([flat + 1, 0.9 + 0.1 * mean, 40 * mean, flat - 0.5, flat - 0.6], 1)


def test_the_nearest_class_is_attacked_where_the_likeliest_holds(tmp_path):
    images, labels = np.full((8, SIDE, SIDE, 1), 0.5, np.float32), np.zeros(8, int)
    run = functools.partial(
        autoattack, near_but_unlikely, images, labels, jax.random.key(0), norm="linf",
        eps=0.05, quiet=True,
    )  # fmt: skip
    own = dict(steps=8, targets=1)
    settings = dict(version=(("malt", own),), resume=tmp_path, programs={})
    report, again = run(**settings), run(**settings)
    assert again.costs == report.costs  # choosing the targets is in the journal
    assert report.robust_accuracy == 0
    # Four gradients for the targets, then the attack.
    assert report.costs["malt"]["forwards"] % 8 == 0
    assert 8 * 4 < report.costs["malt"]["forwards"] <= 8 * (4 + 8 + 2)
    # Of one candidate, the likeliest class, nothing is left to choose.
    few = run(version=(("malt", own | dict(candidates=1)),))
    assert few.robust_accuracy == 1
