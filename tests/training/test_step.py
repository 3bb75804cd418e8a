"""The training step: devices, accumulation, resuming, averages, bad gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from advadapters import meshes, trees
from advadapters.attacks.pgd import pgd
from advadapters.data.augment import make_augment
from advadapters.training import optim, states, step, views


def attack(logits_fn, images, labels, key):
    return pgd(logits_fn, images, labels, key, norm="linf", eps=0.1, steps=2)


SEEN = [
    views.View("clean", (1.0, 0.0), 0.5),
    views.View("linf", (0.0, 1.0), 0.5, (attack,)),
]
CLEAN = SEEN[:1]  # for what is the same with and without attacks
SEED = np.uint32(3)
TX = optim.make(
    optim.adam(0.9, 0.95),
    learning_rate=optim.schedule(peak=1e-2, steps=20, warmup_steps=2),
    weight_decay=0.1, decayed=(".*kernel",), clip_norm=1.0,
)  # fmt: skip


SGD = optax.apply_if_finite(optax.sgd(0.1), 5)
# With everything that draws random numbers; tests that share these compile one program.
# Plain SGD: Adam would divide the key biases' gradients, which are zero but for rounding,
# by their own size.
WHOLE = dict(mixing=0.8, net=tiny.network(drop_path=0.2), tx=SGD)


@functools.cache
def function_of(mesh, accumulate, tx, mixing, seen, net, ema):
    """The step function, traced once for all tests that share it."""
    augment = make_augment(
        5, flip_horizontal=True, pad=1, mixup_alpha=mixing, cutmix_alpha=mixing,
        label_smoothing=0.1,
    )  # fmt: skip
    loss = views.views_loss(net, seen, axis="data")
    return step.make_step(
        loss, augment, tx, ema_decay=ema, accumulate=accumulate, mesh=mesh
    )


def make(mesh, *, accumulate=1, tx=TX, mixing=0.0, seen=SEEN, net=None, ema=0.9):
    """(step function, first state) on a mesh."""
    net = net or tiny.network()
    function = function_of(mesh, accumulate, tx, mixing, tuple(seen), net, ema)
    first = states.branches(tiny.plain(net), ("class_token",), 2)
    return function, jax.device_put(states.create(first, tx), meshes.replicated(mesh))


def run(mesh, steps=3, **settings):
    """(variables, losses) after a few steps on different batches."""
    function, current = make(mesh, **settings)
    seen = []
    for i in range(steps):
        batch = meshes.global_batch(mesh, tiny.raw_batch(16, seed=i))
        current, metrics = function(current, batch, SEED)
        seen.append(float(metrics["loss"]))
    return current, seen


def close(first, second, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), first, second)


def test_eight_devices_train_like_one(mesh, one_device):
    many, many_losses = run(mesh, **WHOLE)
    one, one_losses = run(one_device, **WHOLE)
    np.testing.assert_allclose(many_losses, one_losses, rtol=1e-5)
    close(many.variables, one.variables)
    for leaf in jax.tree.leaves(many.variables):
        assert leaf.sharding.is_fully_replicated


def test_each_device_does_its_share_of_the_work(mesh, one_device):
    def flops(mesh):
        function, current = make(mesh, **WHOLE)
        batch = meshes.global_batch(mesh, tiny.raw_batch(16))
        return function.lower(current, batch, SEED).compile().cost_analysis()["flops"]

    # The optimizer's work is the same on all; at this size it is not nothing.
    assert flops(mesh) < 1.5 * flops(one_device) / 8


def test_accumulated_parts_make_the_update_of_the_whole_batch(one_device):
    """With an attack and drop path, which draw from the examples' own keys."""

    def noisy(logits_fn, images, labels, keys):
        noise = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:]))(keys)
        return jnp.clip(images + 0.1 * noise, 0, 1)

    seen = [SEEN[0], SEEN[1]._replace(attacks=(noisy,))]
    settings = WHOLE | dict(seen=seen, mixing=0.0)  # batches are mixed before
    whole, whole_losses = run(one_device, **settings)
    two = meshes.make(jax.devices()[:2])
    parts, parts_losses = run(two, accumulate=4, **settings)
    np.testing.assert_allclose(parts_losses, whole_losses, rtol=1e-5)
    close(parts.variables, whole.variables)


def test_the_same_step_twice_is_bitwise_the_same(mesh):
    first, _ = run(mesh, **WHOLE)
    second, _ = run(mesh, **WHOLE)
    chex.assert_trees_all_equal(first.variables, second.variables)


def test_one_trace_and_a_donated_state(mesh):
    function, current = make(mesh, seen=CLEAN)
    for i in range(3):
        old = (current.variables, current.ema, current.optimizer.inner_state)
        batch = meshes.global_batch(mesh, tiny.raw_batch(16, i))
        current, _ = function(current, batch, np.uint32(i))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert function._cache_size() == 1  # whatever the seed


def test_nonfinite_updates_are_skipped_and_counted(one_device):
    def bad(logits_fn, images, labels, keys):
        return images * jnp.nan

    seen = [SEEN[0], SEEN[1]._replace(attacks=(bad,))]
    function, current = make(one_device, seen=seen)
    before = jax.device_get(current.variables)
    for i in range(3):
        batch = meshes.global_batch(one_device, tiny.raw_batch(16))
        current, metrics = function(current, batch, SEED)
        assert metrics["nonfinite"] == i + 1
    chex.assert_trees_all_equal(jax.device_get(current.variables), before)
    chex.assert_tree_all_finite(current.ema)
    assert current.step == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_norms_of_gradient_and_weights(accumulate, one_device):
    """By hand from the parameters before the step and, with a rate of 1, after it."""
    plain_sgd = optax.apply_if_finite(optax.sgd(1.0), 5)
    function, current = make(one_device, tx=plain_sgd, accumulate=accumulate, seen=CLEAN)
    before = jax.device_get(states.trained(current.variables))
    assert trees.count(before["adapters"]) == 2 * 16
    batch = meshes.global_batch(one_device, tiny.raw_batch(16))
    current, metrics = function(current, batch, SEED)
    after = jax.device_get(states.trained(current.variables))

    def norm(tree):
        squares = [np.sum(np.square(leaf, dtype=float)) for leaf in jax.tree.leaves(tree)]
        return np.sqrt(np.sum(squares))

    moved = jax.tree.map(np.subtract, before, after)
    np.testing.assert_allclose(metrics["weight_norm"], norm(before), rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], norm(moved), rtol=1e-3)
    assert norm(moved) > 0.1


def test_average_forgets_its_start_and_then_decays():
    ema, tree = {"a": jnp.zeros(())}, {"a": jnp.ones(())}
    by_hand = 0.0
    for t in range(50):
        ema = states.average(ema, tree, jnp.int32(t), 0.8)
        decay = min(0.8, (1 + t) / (10 + t))
        by_hand = decay * by_hand + (1 - decay)
        np.testing.assert_allclose(ema["a"], by_hand, rtol=1e-5)
    assert float(ema["a"]) > 0.999


def test_no_decay_is_no_averaging(one_device):
    old, new = {"a": jnp.float32(1e8)}, {"a": jnp.float32(1e-3)}
    assert states.average(old, new, jnp.int32(5), 0.0)["a"] == new["a"]
    function, current = make(one_device, tx=SGD, ema=0.0, seen=CLEAN)
    for i in range(2):  # the second is given what the first returned, to be overwritten
        batch = meshes.global_batch(one_device, tiny.raw_batch(16, seed=i))
        current, _ = function(current, batch, SEED)
    chex.assert_trees_all_equal(current.ema, states.moving(current.variables))
    chex.assert_trees_all_equal(states.averaged(current), current.variables)


def test_schedule_and_decay_mask():
    schedule = optim.schedule(peak=2.0, steps=110, warmup_steps=10)
    np.testing.assert_allclose(
        [schedule(s) for s in (0, 5, 10, 60, 110)], [0, 1, 2, 1, 0], atol=1e-6
    )
    drops = ((50, 0.1), (80, 0.02))
    schedule = optim.schedule(peak=2.0, steps=110, warmup_steps=10, drops=drops)
    steps = (0, 5, 10, 49, 50, 79, 80, 109)
    expected = [0, 1, 2, 2, 0.2, 0.2, 0.04, 0.04]
    np.testing.assert_allclose([schedule(s) for s in steps], expected, rtol=1e-6)
    cold = optim.schedule(peak=2.0, steps=110, warmup_steps=0, drops=drops)
    np.testing.assert_allclose([cold(s) for s in (0, 49, 50)], [2, 2, 0.2], rtol=1e-6)
    tree = states.branches(tiny.plain(tiny.network()), ("head/.*", "class_token"), 2)
    masked = optim.mask((".*kernel",))(states.trained(tree))
    assert masked["adapters"] == {
        "head": {"kernel": True, "bias": False},
        "class_token": False,
    }
    assert masked["shared"]["pos_embed"] is False
    assert masked["shared"]["blocks_0"]["attn"]["qkv"] == {"kernel": True, "bias": False}
    assert masked["shared"]["blocks_0"]["norm1"] == {"scale": False, "bias": False}


@pytest.mark.parametrize("domains", [1, 3])
def test_branches_start_equal(domains):
    params = tiny.plain(tiny.network())
    tree = states.branches(params, ("class_token",), domains)
    assert tree["adapters"]["class_token"].shape == (domains, 1, 1, 16)
    for row in tree["adapters"]["class_token"]:
        np.testing.assert_array_equal(row, params["params"]["class_token"])
