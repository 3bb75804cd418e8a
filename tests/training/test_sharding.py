"""A training state that is split over the devices (FSDP): placement, values, messages."""

from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest
import tiny

from advadapters import checkpoints, hlo, meshes
from advadapters.attacks.pgd import pgd
from advadapters.data.augment import make_augment
from advadapters.models import vit
from advadapters.training import optim, states, step, views


def attack(logits_fn, images, labels, key):
    return pgd(logits_fn, images, labels, key, norm="linf", eps=0.1, steps=3)


SEEN = [
    views.View("clean", (1.0, 0.0), 0.5),
    views.View("linf", (0.0, 1.0), 0.5, (attack,)),
]
# Plain SGD, for the reason in test_step.py; clipping looks at all shards at once.
SEED = np.uint32(3)
TX = optim.make(
    optim.sgd(0.9), learning_rate=lambda step: 0.1, weight_decay=0.01,
    decayed=(".*kernel",), clip_norm=0.5,
)  # fmt: skip


def make(mesh, sharding):
    """(compiled step, first state)."""
    net = tiny.network(size=vit.Size(16, 1, 32, 2), drop_path=0.2)
    variables = states.branches(tiny.plain(net), ("class_token",), 2)
    first = states.create(variables, TX)
    places = meshes.places(mesh, first, sharding)
    augment = make_augment(
        5, flip_horizontal=True, pad=1, mixup_alpha=0.0, cutmix_alpha=0.0,
        label_smoothing=0.1,
    )  # fmt: skip
    function = step.make_step(
        views.views_loss(net, SEEN, axis="data"), augment, TX, ema_decay=0.9,
        accumulate=2, mesh=mesh, places=places,
    )  # fmt: skip
    first = jax.device_put(first, places)
    batch = meshes.global_batch(mesh, tiny.raw_batch(16))
    return function.lower(first, batch, SEED).compile(), first


def run(mesh, function, current):
    """(state, [metrics]) after three steps on different batches."""
    seen = []
    for i in range(3):
        batch = meshes.global_batch(mesh, tiny.raw_batch(16, seed=i))
        old = current.variables
        current, metrics = function(current, batch, SEED)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
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


class Trained(NamedTuple):
    """A program, and what three steps of it made."""

    program: Any
    state: Any
    metrics: list


@pytest.fixture(scope="module")
def fsdp():
    """Split over eight devices."""
    mesh = meshes.make()
    function, first = make(mesh, "fsdp")
    return Trained(function, *run(mesh, function, first))


def test_split_state_trains_like_a_whole_one(fsdp, one_device):
    """Parameters, averages, momentum, clipping and metrics, two parts a batch."""
    whole, whole_metrics = run(one_device, *make(one_device, "replicated"))
    for a, b in zip(fsdp.metrics, whole_metrics, strict=True):
        assert a["gradient_norm"] > 0.5  # so that it is clipped
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), a, b)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        jax.device_get(fsdp.state),
        jax.device_get(whole),
    )


def test_each_device_keeps_its_part(fsdp):
    for tree in (fsdp.state.variables, fsdp.state.ema, fsdp.state.optimizer):
        flat = jax.tree.leaves(tree)
        # The head's offset [5] and counters are what 8 devices cannot share.
        small = [leaf.nbytes for leaf in flat if not leaf.ndim or leaf.shape == (5,)]
        assert sum(small) < 100
        share = (sum(leaf.nbytes for leaf in flat) - sum(small)) / 8 + sum(small)
        for device in jax.devices():
            assert bytes_on(device, tree) == share


def test_parameters_are_gathered_and_gradients_scattered_once(fsdp):
    """And nothing is sent inside a loop: neither the attack's nor that over the parts."""
    text = fsdp.program.as_text()
    assert " while(" in text
    rows = hlo.collectives(hlo.computations(text), 8)
    sent = {row["kind"]: row for row in rows}
    trained = [
        leaf
        for leaf in jax.tree.leaves(states.trained(fsdp.state.variables))
        if leaf.shape != (5,)
    ]
    size = sum(leaf.nbytes for leaf in trained)
    assert sent["all-gather"]["bytes"] == sent["reduce-scatter"]["bytes"] == size
    assert sent["reduce-scatter"]["count"] <= len(trained)
    assert sent["all-reduce"]["bytes"] < size / 10  # metrics, norms, the head's offset
    assert all(row["in_loops"] == 0 for row in sent.values())


def test_a_split_checkpoint_becomes_a_whole_one_and_back(fsdp, mesh, tmp_path):
    def placed(sharding):
        places = meshes.places(mesh, fsdp.state, sharding)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=place
            ),
            fsdp.state,
            places,
        )

    found = fsdp.state
    for step_, sharding in enumerate(("replicated", "fsdp")):
        with checkpoints.Checkpoints(tmp_path / sharding) as saved:
            saved.save(step_, found)
            saved.manager.wait_until_finished()
            found = saved.restore(placed(sharding), step_)
        chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(fsdp.state))
        whole = all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found))
        assert whole == (sharding == "replicated")
