"""PGD: the attack contract over every ball, and known optima on linear models."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from problems import on_problem

from advadapters import balls, losses, meshes
from advadapters.attacks import ATTACKS
from advadapters.attacks.fab import nearest_plane, run_fab
from advadapters.attacks.pgd import adam_rate, pgd, step_size_rule

EPS = {"linf": 0.1, "l2": 0.5, "l1": 2.0}
# What each attack needs to be quick; PGD takes the defaults of the others' settings.
QUICK = {
    "pgd": dict(steps=4, keep="best"),
    "apgd": dict(steps=12),
    "malt": dict(steps=12, nearest=2),
    "pma": dict(steps=8),
    "fab": dict(steps=8),
    "square": dict(queries=60),
    "pyramid": dict(steps=3, target="", step_size=0.02),
    "n_fgsm": dict(noise=0.5),
}
# How far attacks that leave the ball go, in units of eps.
BEYOND = {"pyramid": 31, "n_fgsm": 1.5}
CASES = [
    (attack, norm)
    for attack in ATTACKS
    for norm in (["linf"] if attack in ("pyramid", "n_fgsm") else balls.BALLS)
]


def setup(size=8):
    """(logits_fn, images, labels): one hidden layer, quick to compile in an attack."""
    draw = np.random.default_rng(0)
    first = draw.normal(size=(64, 16)).astype(np.float32) / 4
    second = draw.normal(size=(16, 5)).astype(np.float32)
    data = tiny.batch(size)

    def logits_fn(images):
        return jnp.tanh((images.reshape(len(images), -1) - 0.5) @ first) @ second

    return jax.jit(logits_fn), data["images"], data["labels"]


def compiled(attack, logits_fn, **settings):
    """jit: (images, labels, key) -> images."""
    return jax.jit(functools.partial(attack, logits_fn, **settings))


@pytest.mark.parametrize("attack, norm", CASES)
def test_contract(attack, norm):
    logits_fn, images, labels = setup()
    # Labels that the network gets right, so that there is something to break.
    labels = jnp.argmax(logits_fn(images), axis=1)
    settings = dict(norm=norm, eps=EPS[norm]) | QUICK[attack]
    radius = EPS[norm] * BEYOND.get(attack, 1)
    random = attack not in ("fab", "pyramid")
    attack = ATTACKS[attack]

    def attacked(images, labels, key):
        return attack(logits_fn, images, labels, key, **settings)

    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(attacked, n=1))
    found = run(images, labels, jax.random.key(0))
    again = run(images, labels, jax.random.key(0))
    other = run(images, labels, jax.random.key(1))
    np.testing.assert_array_equal(found, again)
    assert np.array_equal(found, other) != random
    assert found.dtype == jnp.float32 and found.shape == images.shape
    assert found.min() >= 0 and found.max() <= 1
    assert balls.BALLS[norm].norm(found - images).max() <= radius * (1 + 1e-5)
    before = losses.margin(logits_fn(images), labels)
    after = losses.margin(logits_fn(found), labels)
    assert (after >= before - 1e-5).all() and (after > before + 1e-3).any()

    @jax.jit  # of the tangent alone, which is known to be zero when it is compiled
    def tangent(images):
        alone = lambda x: run(x, labels, jax.random.key(0))  # noqa: E731
        return jax.jvp(alone, (images,), (images,))[1]

    assert not tangent(images).any()


@pytest.mark.parametrize("norm", balls.BALLS)
def test_result_does_not_depend_on_the_batch(norm):
    logits_fn, images, labels = setup()
    keys = jax.random.split(jax.random.key(0), 8)
    run = compiled(pgd, logits_fn, norm=norm, eps=EPS[norm], steps=3)
    whole = run(images, labels, keys)
    part = run(images[3:5], labels[3:5], keys[3:5])
    np.testing.assert_allclose(part, whole[3:5], atol=1e-5)


def linear(shape, rng):
    """A two-class linear model, its weights, and labels all 0."""
    weights = rng.normal(size=(int(np.prod(shape)), 2)).astype(np.float32)
    return lambda x: x.reshape(x.shape[0], -1) @ weights, weights[:, 1] - weights[:, 0]


def best_gain(norm, slope, image, eps):
    """max <slope, d> over ||d|| <= eps, 0 <= image + d <= 1, in closed form or exactly."""
    room = np.where(slope > 0, 1 - image, image)
    if norm == "linf":
        return (np.abs(slope) * np.minimum(room, eps)).sum()
    if norm == "l1":  # the knapsack: best coordinates first
        gain, left = 0.0, eps
        for i in np.argsort(-np.abs(slope)):
            spent = min(left, room[i])
            gain, left = gain + spent * abs(slope[i]), left - spent
        return gain
    low, high = 0.0, 1e6  # d = min(room, m |slope|) with the m that spends the budget
    for _ in range(200):
        middle = (low + high) / 2
        used = np.sqrt((np.minimum(room, middle * np.abs(slope)) ** 2).sum())
        low, high = (middle, high) if used < eps else (low, middle)
    return (np.abs(slope) * np.minimum(room, low * np.abs(slope))).sum()


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("norm", balls.BALLS)
def test_linear_model_reaches_the_optimum(norm, inner, rng):
    """From a random start, in 768 dimensions, where sparse and dense steps differ.

    Away from the box the gain is eps * dual norm; at the box the exact optimum."""
    shape, eps = (4, 16, 16, 3), {"linf": 0.1, "l2": 0.3, "l1": 3.0}[norm]
    logits_fn, slope = linear(shape[1:], rng)
    low, high = (0.4, 0.6) if inner else (-0.5, 1.5)
    images = np.clip(rng.uniform(low, high, shape), 0, 1).astype(np.float32)
    run = compiled(
        pgd, logits_fn, norm=norm, eps=eps, steps=200, step_size=eps / 20, loss="margin",
        keep="best",
    )  # fmt: skip
    found = run(images, jnp.zeros(4, int), jax.random.key(0))
    gain = ((np.asarray(found) - images).reshape(4, -1) * slope).sum(1)
    best = [best_gain(norm, slope, image.ravel(), eps) for image in images]
    np.testing.assert_allclose(gain, best, rtol=2e-3 if norm != "l1" else 2e-2)
    if inner and norm != "l1":
        dual = {"linf": np.abs(slope).sum(), "l2": np.linalg.norm(slope)}[norm]
        np.testing.assert_allclose(best, eps * dual, rtol=1e-4)


def never_broken(slope):
    """Two classes, label 0 far ahead: its margin is <slope, x> - 999."""

    def logits_fn(images):
        score = images.reshape(images.shape[0], -1) @ slope
        return jnp.stack([999 + 0 * score, score], axis=1)

    return logits_fn


@pytest.mark.parametrize("norm", balls.BALLS)
def test_apgd_reaches_the_linear_optimum(norm, rng):
    shape, eps = (4, 16, 16, 3), {"linf": 0.1, "l2": 0.3, "l1": 3.0}[norm]
    slope = rng.normal(size=int(np.prod(shape[1:]))).astype(np.float32)
    images = np.clip(rng.uniform(-0.5, 1.5, shape), 0, 1).astype(np.float32)
    run = compiled(ATTACKS["apgd"], never_broken(slope), norm=norm, eps=eps, loss="margin")
    found = run(images, jnp.zeros(4, int), jax.random.key(0))
    gain = ((np.asarray(found) - images).reshape(4, -1) * slope).sum(1)
    best = [best_gain(norm, slope, image.ravel(), eps) for image in images]
    # L1 steps never get smaller than a tenth of eps, as in the original.
    np.testing.assert_allclose(gain, best, rtol=1e-2 if norm != "l1" else 4e-2)


@pytest.mark.parametrize("norm", balls.BALLS)
def test_fab_finds_the_shortest_way_to_a_linear_boundary(norm, rng):
    shape = (6, 8, 8, 1)
    logits_fn, slope = linear(shape[1:], rng)
    images = rng.uniform(0.4, 0.6, shape).astype(np.float32)
    scores = images.reshape(6, -1) @ slope
    labels = (scores > 0).astype(int)
    # In L1 one coordinate may lack the room; `to_plane` has its own test against scipy.
    rows = images.reshape(6, -1), np.broadcast_to(slope, (6, 64)), -scores
    shortest = np.asarray(balls.BALLS[norm].norm(balls.BALLS[norm].to_plane(*rows)))
    if norm != "l1":
        dual = {"linf": np.abs(slope).sum(), "l2": np.linalg.norm(slope)}[norm]
        np.testing.assert_allclose(shortest, np.abs(scores) / dual, rtol=1e-4)
    fab = functools.partial(on_problem(run_fab), logits_fn, norm=norm, steps=100)
    run = jax.jit(lambda *args, eps: fab(*args, jax.random.key(0), eps=eps).broken)
    for share, breaks in ((1.03, True), (0.97, False)):
        for i in range(6):
            row = images[i : i + 1], jnp.asarray(labels[i : i + 1])
            assert bool(run(*row, eps=share * shortest[i])[0]) == breaks, (i, share)


@pytest.mark.parametrize("norm", balls.BALLS)
def test_fab_looks_at_the_boundaries_of_all_classes(norm, rng):
    """Against all gradients at once, which would not fit into memory with many classes."""
    first, second = (rng.normal(size=s).astype(np.float32) for s in ((16, 8), (8, 6)))
    logits_fn = lambda x: jnp.tanh(x.reshape(len(x), -1) @ first) @ second  # noqa: E731
    images = jnp.asarray(rng.uniform(size=(9, 4, 4, 1)), jnp.float32)
    labels = jnp.arange(9) % 6
    gap, weights = nearest_plane(logits_fn, images, labels, balls.BALLS[norm])
    logits, rows = np.asarray(logits_fn(images)), np.arange(9)
    slopes = np.asarray(jax.jacrev(lambda x: logits_fn(x).sum(0))(images))  # [L, B, ...]
    weight = slopes - slopes[labels, rows]
    lead = logits[rows, labels][:, None] - logits
    away = np.abs(lead).T / [balls.BALLS[norm].dual(part) + 1e-12 for part in weight]
    away[labels, rows] = np.inf
    nearest = away.argmin(0)
    assert len(set(nearest)) > 2
    np.testing.assert_allclose(gap, lead[rows, nearest], rtol=1e-5)
    np.testing.assert_allclose(weights, weight[nearest, rows], atol=1e-5)


def test_fab_needs_no_more_memory_for_more_classes():
    images, labels = jax.ShapeDtypeStruct((16, 16, 16, 1), jnp.float32), jnp.zeros(16, int)

    def bytes_of(classes):
        spread = jnp.linspace(-1, 1, classes)
        logits_fn = lambda x: jnp.tanh(x.mean((1, 2, 3)))[:, None] * spread  # noqa: E731
        plane = functools.partial(nearest_plane, logits_fn)
        run = jax.jit(lambda x: plane(x, labels, balls.BALLS["l2"]))
        return run.lower(images).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 16 * 1000
    assert bytes_of(1000) < bytes_of(10) + 10 * logits  # all gradients: 256 * logits


def test_square_comes_near_the_linear_optimum(rng):
    """Linf: stripes and squares of +-eps; a random search must get most of the gain."""
    slope = np.repeat(rng.normal(size=(1, 8, 1)), 8, axis=0).ravel().astype(np.float32)
    images = np.full((4, 8, 8, 1), 0.5, np.float32)
    run = compiled(
        ATTACKS["square"], never_broken(slope), norm="linf", eps=0.1, queries=1000
    )
    found = run(images, jnp.zeros(4, int), jax.random.key(0))
    gain = ((np.asarray(found) - images).reshape(4, -1) * slope).sum(1)
    assert (gain > 0.9 * 0.1 * np.abs(slope).sum()).all()


def test_every_attack_is_in_the_contract_test():
    assert QUICK.keys() == ATTACKS.keys()


def test_fgsm_is_one_step_from_zero():
    logits_fn, images, labels = setup()
    run = compiled(pgd, logits_fn, norm="linf", eps=0.1, steps=1, random_start=False)
    found = run(images, labels, jax.random.key(0))
    slope = jax.grad(lambda x: losses.cross_entropy(logits_fn(x), labels).sum())(images)
    expected = jnp.clip(images + 0.1 * jnp.sign(slope), 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_step_size_rule():
    assert step_size_rule(0.1, 1) == step_size_rule(0.1, 2) == 0.1
    assert step_size_rule(0.1, 10) == pytest.approx(0.025)


def test_more_restarts_never_hurt_and_best_beats_last():
    logits_fn, images, labels = setup(32)

    def margins(**settings):
        settings |= dict(norm="linf", eps=0.1, steps=3, loss="margin")
        found = compiled(pgd, logits_fn, **settings)(images, labels, jax.random.key(0))
        return np.asarray(losses.margin(logits_fn(found), labels))

    last, best = margins(keep="last"), margins(keep="best")
    more = margins(keep="best", restarts=3)
    assert (best >= last - 1e-5).all() and (more >= best - 1e-5).all()
    assert more.sum() > best.sum()


@pytest.mark.parametrize("target", ["random", "least_likely"])
def test_targeted_attacks_raise_the_target(target):
    logits_fn, images, labels = setup(32)
    run = compiled(pgd, logits_fn, norm="linf", eps=0.2, steps=10, target=target)
    found = run(images, labels, jax.random.key(0))
    before, after = logits_fn(images), logits_fn(found)
    if target == "least_likely":
        others = jnp.where(jnp.arange(5) == labels[:, None], jnp.inf, before)
        goal = jnp.argmin(others, axis=1)
        rows = jnp.arange(32)
        assert (
            jax.nn.softmax(after)[rows, goal] > jax.nn.softmax(before)[rows, goal]
        ).all()
    else:
        assert (jnp.argmax(after, 1) != labels).mean() > (
            jnp.argmax(before, 1) != labels
        ).mean()


def test_random_targets_are_uniform_over_the_other_classes():
    from advadapters.attacks.pgd import choose_goal

    keys = jax.random.split(jax.random.key(0), 5000)
    labels = jnp.full(5000, 2)
    goal, sign = choose_goal(
        lambda x: jnp.zeros((5000, 5)), jnp.zeros((5000, 1, 1, 1)), labels, keys, "random"
    )
    shares = np.bincount(np.asarray(goal), minlength=5) / 5000
    assert sign == -1 and shares[2] == 0
    np.testing.assert_allclose(shares[[0, 1, 3, 4]], 0.25, atol=0.03)


def test_soft_labels_attack_their_mixture():
    logits_fn, images, labels = setup()
    soft = 0.7 * jax.nn.one_hot(labels, 5) + 0.3 * jax.nn.one_hot((labels + 1) % 5, 5)
    run = compiled(pgd, logits_fn, norm="linf", eps=0.05, steps=5)
    found = run(images, soft, jax.random.key(0))
    gain = losses.cross_entropy(logits_fn(found), soft) - losses.cross_entropy(
        logits_fn(images), soft
    )
    assert (gain > 0).all()


def test_eight_devices_attack_like_one(mesh):
    logits_fn, images, labels = setup(16)
    for norm in balls.BALLS:
        run = jax.jit(
            lambda x, y, norm=norm: pgd(
                logits_fn, x, y, jax.random.key(3), norm=norm, eps=EPS[norm], steps=3
            )
        )
        spread = jax.device_put((images, labels), meshes.batched(mesh))
        found = run(*spread)
        assert len(found.sharding.device_set) == 8
        np.testing.assert_allclose(found, run(images, labels), atol=1e-5)


def test_adam_and_margin_find_what_the_steepest_steps_find():
    logits_fn, images, labels = setup(32)
    labels = jnp.argmax(logits_fn(images), axis=1)
    broken = {}
    for optimizer in ("steepest", "adam"):
        run = compiled(
            pgd, logits_fn, norm="linf", eps=0.05, steps=40, loss="margin", keep="best",
            optimizer=optimizer,
        )  # fmt: skip
        found = run(images, labels, jax.random.key(0))
        assert jnp.abs(found - images).max() <= 0.05 + 1e-6
        broken[optimizer] = int((jnp.argmax(logits_fn(found), axis=1) != labels).sum())
    assert abs(broken["adam"] - broken["steepest"]) <= 2 and broken["adam"] > 5
    rates = [float(adam_rate(step, 40)) for step in (0, 19, 20, 29, 30, 39)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5)


def test_given_targets_are_what_is_climbed():
    logits_fn, images, labels = setup(16)
    targets = (labels + 2) % 5
    run = compiled(
        pgd, logits_fn, norm="l2", eps=1.0, steps=10, loss="logit_difference",
        targets=targets, keep="best",
    )  # fmt: skip
    found = run(images, labels, jax.random.key(0))
    gain = losses.logit_difference(logits_fn(found), labels, targets)
    assert (gain > losses.logit_difference(logits_fn(images), labels, targets)).all()


def test_pyramid_of_one_coarse_step_is_the_sum_of_its_levels():
    """One step: every level is +-step in each cell, times its multiplier, enlarged."""
    logits_fn, images, labels = setup(4)
    images = 0.4 + 0.2 * images
    settings = dict(eps=0.006, steps=1, step_size=0.001, target="")
    run = compiled(ATTACKS["pyramid"], logits_fn, **settings)
    moved = run(images, labels, jax.random.key(0))
    # 8x8 images: a level of 7, and 14 is more than the image, so two of full size.
    assert jnp.abs(moved - images).max() <= 0.001 * 31 + 1e-6
    assert jnp.abs(moved - images).min() >= 0.001 * (20 - 11) - 1e-6
