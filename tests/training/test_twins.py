"""TWINS: two wings against numpy, statistics that stay, losses by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from models import small

from advadapters import losses, meshes, networks, rng, trees
from advadapters.attacks.pgd import pgd
from advadapters.data.augment import make_augment
from advadapters.training import states, step, twins

NORMS = (r"(.*/)?(\w+_)?norm\d?/.*",)
ATTACK = functools.partial(pgd, norm="linf", eps=0.1, steps=2)
METHOD = twins.TWINS(0.4, ATTACK)
KEY = jax.random.key(5)
SIZES = small.SIZES | {"resnet": "basic-4x1"}


@functools.cache
def network(name="resnet", **fields):
    """A small network for images of 8x8."""
    return networks.make_network(small.model(name, SIZES[name], **fields), (8, 8, 1))


def variables(name="resnet", **fields):
    """A pretrained network with two wings, whose affines differ a little."""
    made = small.variables(small.model(name, SIZES[name], **fields))
    plain = {"params": made["params"], "batch_stats": made.get("batch_stats", {})}
    tree = states.branches(plain, NORMS, 2, separate=True)
    grow = jnp.array([1.0, 1.1])

    def apart(leaf):
        return leaf * grow.reshape(-1, *[1] * (leaf.ndim - 1))

    return tree | {"adapters": jax.tree.map(apart, tree["adapters"])}


def on_one_device(loss):
    """The loss with the axis "data" bound, as the step binds it."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    spec = jax.sharding.PartitionSpec()
    return jax.jit(
        jax.shard_map(loss, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )


def at(tree, wing):
    return trees.plain(tree, jax.nn.one_hot(wing, 2))


def test_two_wing_batch_norm_is_the_published_formula():
    """Half the rows by the running statistics, half by the batch's, in numpy."""
    model = small.model("resnet", "basic-4x1")
    net = networks.make_network(model, (8, 8, 1))
    tree = variables("resnet")
    images = np.array(small.images(6))

    def reference(wing, images, batch_statistics):
        flat = {p: np.array(x) for p, x in trees.flatten(at(tree, wing)["params"]).items()}
        stats = {
            p: np.array(x) for p, x in trees.flatten(at(tree, wing)["batch_stats"]).items()
        }

        def conv(x, kernel):
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            places = [(i, j) for i in range(3) for j in range(3)]
            return sum(padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i, j in places)

        def norm(x, path):
            mean, var = stats[f"{path}/mean"], stats[f"{path}/var"]
            if batch_statistics:
                mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            x = (x - mean) / np.sqrt(var + 1e-5)
            return x * flat[f"{path}/scale"] + flat[f"{path}/bias"]

        x = conv((images - 0.5) / 0.25, flat["stem/kernel"])
        x = np.maximum(norm(x, "norm"), 0)
        block = "stage1_block1"
        y = np.maximum(norm(conv(x, flat[f"{block}/conv1/kernel"]), f"{block}/norm1"), 0)
        y = norm(conv(y, flat[f"{block}/conv2/kernel"]), f"{block}/norm2")
        pooled = np.maximum(x + y, 0).mean((1, 2))
        return pooled @ flat["head/kernel"] + flat["head/bias"]

    still = dataclasses.replace(METHOD, attack=lambda f, x, labels, keys: x, weight=1.0)
    batch = {
        "images": jnp.array(images),
        "labels": jnp.array([0, 1, 2, 3, 4, 0]),
        "index": jnp.arange(6),
    }
    _, (_, metrics) = on_one_device(still.loss({1.0: net}))(tree, batch, KEY)
    for wing, name in enumerate(twins.DOMAINS):
        logits = reference(wing, images[wing::2], batch_statistics=wing == 1)
        shifted = logits - logits.max(1, keepdims=True)
        logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        expected = -logp[np.arange(3), np.array(batch["labels"])[wing::2]].mean()
        np.testing.assert_allclose(metrics[f"loss/{name}"], expected, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_the_loss_is_that_by_hand(beta):
    method, net, tree = dataclasses.replace(METHOD, beta=beta), network(), variables()
    batch = tiny.batch(8)

    def by_hand(tree, batch, key):
        keys = rng.by_index(rng.fold(key, "attack", "start"), batch["index"])
        adaptive = lambda x: net.apply(at(tree, 1), x)  # noqa: E731
        attacked = ATTACK(adaptive, batch["images"], batch["labels"], keys)

        def frozen(images):
            return net.apply(at(tree, 0), images[0::2])

        def moving(images):
            index = batch["index"][1::2]
            return net.train(at(tree, 1), images[1::2], key, index, False)[0]

        total = 0.0
        for weight, wing, forward in ((0.4, 0, frozen), (1.0, 1, moving)):
            labels = batch["labels"][wing::2]
            one = forward(attacked)
            if not beta:
                total += weight * jnp.mean(losses.cross_entropy(one, labels))
                continue
            clean = forward(batch["images"])
            p, q = jax.nn.softmax(clean), jax.nn.softmax(one)
            divergence = jnp.sum(p * (jnp.log(p) - jnp.log(q))) / 8  # the whole batch
            total += weight * jnp.mean(losses.cross_entropy(clean, labels))
            total += weight * beta * divergence
        return total

    found, _ = on_one_device(method.loss({1.0: net}))(tree, batch, KEY)
    np.testing.assert_allclose(found, on_one_device(by_hand)(tree, batch, KEY), rtol=1e-4)


def train(devices, steps=2, name="resnet", method=METHOD, accumulate=1, **fields):
    """(variables before, state after, metrics of the last step)."""
    mesh = meshes.make(jax.devices()[:devices])
    tx = optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), 5)
    tree = variables(name, **fields)
    run = step.make_step(
        method.loss({1.0: network(name, **fields)}, "data"),
        make_augment(
            5, flip_horizontal=False, pad=0, mixup_alpha=0.0, cutmix_alpha=0.0,
            label_smoothing=0.0,
        ),
        tx, ema_decay=0.9, accumulate=accumulate, mesh=mesh,
    )  # fmt: skip
    before = jax.tree.map(np.array, tree)
    now = jax.device_put(states.create(tree, tx), meshes.replicated(mesh))
    for number in range(steps):
        batch = meshes.global_batch(mesh, tiny.raw_batch(16, seed=number))
        now, metrics = run(now, batch, np.uint32(0))
    return before, now, metrics


def rows(stats, wing):
    return {p: np.array(x[wing]) for p, x in trees.flatten(stats["adapters"]).items()}


def test_the_frozen_wings_statistics_stay_bitwise_and_the_adaptive_ones_move():
    before, after, _ = train(devices=2)
    for found in (after.variables, after.ema):
        old, new = rows(before["stats"], 0), rows(found["stats"], 0)
        assert all((old[path] == new[path]).all() for path in old)
        old, new = rows(before["stats"], 1), rows(found["stats"], 1)
        assert all((old[path] != new[path]).any() for path in old)
    moved = {
        wing: max(
            float(np.abs(np.array(new[wing]) - old[wing]).max())
            for old, new in zip(
                jax.tree.leaves(before["adapters"]),
                jax.tree.leaves(after.variables["adapters"]),
                strict=True,
            )
        )
        for wing in (0, 1)
    }
    assert min(moved.values()) > 1e-4  # both affines are trained


def test_eight_devices_are_one_device():
    (_, one, told), (_, eight, metrics) = train(1), train(8)
    for a, b in zip(
        jax.tree.leaves(one.variables), jax.tree.leaves(eight.variables), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(told["loss"], metrics["loss"], rtol=1e-3)


def test_the_vit_analogue_keeps_the_frozen_wings_norms_bitwise():
    method = dataclasses.replace(METHOD, keep_norms=True)
    before, after, _ = train(1, name="vit", method=method)
    pairs = zip(
        jax.tree.leaves(before["adapters"]),
        jax.tree.leaves(after.variables["adapters"]),
        strict=True,
    )
    for old, new in pairs:
        np.testing.assert_array_equal(old[0], new[0])
        assert (np.array(new[1]) != old[1]).any()


def test_gradient_norms_of_the_wings_are_those_of_their_losses():
    method, net, tree = (
        dataclasses.replace(METHOD, gradient_norms=True),
        network(),
        variables(),
    )
    batch = tiny.batch(8)
    _, (_, metrics) = on_one_device(method.loss({1.0: net}, "data"))(tree, batch, KEY)

    def frozen_alone(tree, batch, key):
        only = dataclasses.replace(
            METHOD, weight=1e6
        )  # the adaptive wing is lost in rounding
        slopes = jax.grad(lambda t: only.loss({1.0: net})(tree | t, batch, key)[0])(
            states.trained(tree)
        )
        return optax.tree.norm(slopes) / 1e6

    expected = on_one_device(frozen_alone)(tree, batch, KEY)
    np.testing.assert_allclose(metrics["gradient_norm/frozen"], expected, rtol=1e-4)
    assert metrics["gradient_norm/adaptive"] > 0
