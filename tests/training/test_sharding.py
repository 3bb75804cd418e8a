"""A training state that is split over the devices (FSDP): placement, values, messages."""

import jax
import numpy as np
import pytest
import tiny

from advadapters import mesh as meshes
from advadapters.attacks.pgd import pgd
from advadapters.data.augment import make_augment
from advadapters.training import optim, state, step, views


def attack(logits_fn, images, labels, key):
    return pgd(logits_fn, images, labels, key, norm="linf", eps=0.1, steps=3)


SEEN = [
    views.View("clean", (1.0, 0.0), 0.5),
    views.View("linf", (0.0, 1.0), 0.5, (attack,)),
]
# Plain SGD, for the reason in test_step.py; clipping looks at all shards at once.
TX = optim.make(
    optim.sgd(0.9), learning_rate=lambda step: 0.1, weight_decay=0.01,
    decayed=(".*kernel",), clip_norm=0.5,
)  # fmt: skip


def make(mesh, sharding, *, accumulate=1, seen=SEEN):
    """(step function, first state)."""
    net = tiny.network(drop_path=0.2)
    variables = state.branches(tiny.plain(net), ("class_token",), 2)
    first = state.create(variables, TX)
    places = meshes.places(mesh, first, sharding)
    augment = make_augment(
        5, flip_horizontal=True, pad=1, mixup_alpha=0.8, cutmix_alpha=0.8,
        label_smoothing=0.1,
    )  # fmt: skip
    loss = views.views_loss(net, seen, axis="data")
    function = step.make_step(
        loss, augment, TX, seed=3, ema_decay=0.9, accumulate=accumulate, mesh=mesh,
        places=places,
    )  # fmt: skip
    return function, jax.device_put(first, places)


def run(mesh, sharding, steps=3, **settings):
    """(state, [metrics]) after a few steps on different batches."""
    function, current = make(mesh, sharding, **settings)
    seen = []
    for i in range(steps):
        batch = meshes.global_batch(mesh, tiny.raw_batch(16, seed=i))
        current, metrics = function(current, batch)
        seen.append(jax.device_get(metrics))
    return current, seen


def bytes_on(device, tree):
    """What a tree takes on one device."""
    shards = [s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


def test_the_largest_axis_that_divides_is_split():
    P = jax.sharding.PartitionSpec
    assert meshes.split((16, 48), 8) == P(None, "data")
    assert meshes.split((16, 50), 8) == P("data")
    assert meshes.split((24, 24), 8) == P("data")
    assert meshes.split((2, 1, 1, 16), 8) == P(None, None, None, "data")
    for shape in ((5,), (), (3, 7), (0, 3)):
        assert meshes.split(shape, 8) == P()


@pytest.fixture(scope="module")
def fsdp():
    """Three steps of the split state: (state, [metrics])."""
    return run(meshes.make(), "fsdp")


def test_split_state_trains_like_a_whole_one(fsdp, one_device):
    """Parameters, averages, momentum, clipping and metrics."""
    split, split_metrics = fsdp
    whole, whole_metrics = run(one_device, "replicated")
    for a, b in zip(split_metrics, whole_metrics, strict=True):
        assert a["gradient_norm"] > 0.5  # so that it is clipped
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), a, b)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        jax.device_get(split),
        jax.device_get(whole),
    )


def test_each_device_keeps_its_part(fsdp):
    split, _ = fsdp
    for tree in (split.variables, split.ema, split.optimizer):
        flat = jax.tree.leaves(tree)
        # The head's offset [5] and counters are what 8 devices cannot share.
        whole = sum(leaf.nbytes for leaf in flat if not leaf.ndim or leaf.shape == (5,))
        assert whole < 100
        share = (sum(leaf.nbytes for leaf in flat) - whole) / 8 + whole
        for device in jax.devices():
            assert bytes_on(device, tree) == share
