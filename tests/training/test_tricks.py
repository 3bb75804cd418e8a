"""ARD and PRM: what they do to an attack, by hand, and that they leave nothing behind."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from advadapters import meshes
from advadapters.attacks.pgd import pgd
from advadapters.builders.views import read_tricks
from advadapters.models import layers, vit
from advadapters.networks import Network
from advadapters.sections import Section
from advadapters.training import states, step, tricks, views

BOTH = tuple(tricks.TRICKS)
KEY = jax.random.key(7)
SMALL = dict(size=vit.Size(8, 1, 16, 2))


def apply_gated(plain, images, key=None, index=None, gate=None):
    """One linear layer, whose gradient a gate drops as that of a residual branch."""
    if gate is not None:
        key, keep = gate
        images = layers.drop_gradient(images, keep, key, index)
    return images.reshape(len(images), -1) @ plain["params"]["kernel"]


def gated(patch=2):
    """A Network of that layer, to be shown images; nothing else of it is used."""
    unused = dict.fromkeys(("init", "at", "train", "evaluate", "observe"), apply_gated)
    return Network(apply=apply_gated, coarse=False, patch=patch, gated=True, **unused)


def linear(classes=5):
    kernel = np.random.default_rng(0).normal(size=(64, classes)).astype(np.float32)
    return states.branches({"params": {"kernel": jnp.asarray(kernel)}}, (), 1)


def shown(names, progress, network, tree, count=8, **settings):
    """The images that an attacked view sees at step 100 * progress of a warm-up of 100."""
    settings = dict(norm="linf", eps=0.3, steps=3, step_size=0.1) | settings
    attack = functools.partial(pgd, **settings)
    view = views.View("v", (1.0,), 1.0, (attack,), tricks=names, warmup=100.0)
    batch = tiny.batch(count) | {"step": jnp.full(count, round(100 * progress))}
    batch["images"] = 0.3 + 0.4 * batch["images"]  # away from the box
    run = jax.jit(lambda tree, batch: views.show(network, view, tree, batch, KEY)[0])
    return run(tree, batch), batch


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_all_masked_is_a_single_step_from_the_image(norm, k):
    """However many steps and wherever it starts: each begins at the image again."""
    tree, size = linear(), 0.1
    found, batch = shown(
        ("prm",), 0.0, gated(), tree, steps=k, norm=norm, step_size=size, eps=0.25
    )
    rows = batch["images"].reshape(8, -1) @ tree["shared"]["kernel"]
    slope = (jax.nn.softmax(rows) - jax.nn.one_hot(batch["labels"], 5)) @ (
        tree["shared"]["kernel"].T
    )
    if norm == "linf":
        move = size * jnp.sign(slope)
    else:
        move = size * slope / jnp.linalg.norm(slope, axis=1, keepdims=True)
    np.testing.assert_allclose((found - batch["images"]).reshape(8, -1), move, atol=1e-6)
    unmasked, _ = shown((), 0.0, gated(), tree, steps=k, norm=norm, step_size=size)
    assert jnp.abs(unmasked - found).max() > 0.01


def test_half_masked_is_half_a_random_start():
    """In half of the patches the perturbation is one step; the others keep their start."""
    found, batch = shown(("prm",), 0.5, gated(), linear(), steps=1, count=64)
    moved = np.asarray(vit.patchify(jnp.abs(found - batch["images"]), 2))  # [64, 16, 4]
    from_image = np.isclose(moved, 0.1, atol=1e-6).all(-1)
    assert (from_image.sum(1) == 8).all()
    # 64 draws of half of the patches: the standard deviation of a share is 0.06.
    np.testing.assert_allclose(from_image.mean(0), 0.5, atol=0.25)
    assert len(np.unique(from_image, axis=0)) > 60


def test_masks_hold_the_exact_number_of_whole_patches():
    shares = np.array([0, 0.06, 1 / 16, 0.3, 0.5, 0.99, 1], np.float32)
    points, images = jnp.ones((7, 8, 8, 3)), jnp.zeros((7, 8, 8, 3))
    keys = jax.random.split(jax.random.key(0), 7)
    found = np.asarray(vit.patchify(tricks.mask(points, images, keys, shares, 2), 2))
    assert (found == found[..., :1]).all()
    np.testing.assert_array_equal((found[..., 0] == 0).sum(1), [0, 0, 1, 4, 8, 15, 16])
    oblong = tricks.mask(points[:, :4], images[:, :4], keys, shares, 4)
    np.testing.assert_array_equal((oblong == 0).sum((1, 2, 3)) // 48, [0] * 4 + [1, 1, 2])


def test_every_step_draws_gradients_anew():
    """On a linear network an example moves in as many of 20 steps as its gradient flows."""
    found, batch = shown(
        ("ard",), 0.25, gated(), linear(), count=256, steps=20, step_size=0.01,
        random_start=False,
    )  # fmt: skip
    steps = np.asarray(jnp.abs(found - batch["images"]) / 0.01)[:, 0, 0, 0]
    np.testing.assert_allclose(steps, steps.round(), atol=1e-3)
    # Binomial(20, 0.25): the mean of 256 has a standard deviation of 0.12.
    assert steps.mean() == pytest.approx(5, abs=0.5)
    assert steps.var() == pytest.approx(3.75, abs=1.3)


def test_after_the_warm_up_the_attack_is_bitwise_the_plain_one():
    net = tiny.network(drop_path=0.3, **SMALL)
    tree = states.branches(tiny.plain(net), (), 1)
    attack = functools.partial(pgd, norm="linf", eps=0.1, steps=3, keep="best", restarts=2)
    view = views.View("v", (1.0,), 1.0, (attack,), train_mode=True)
    tricky = view._replace(tricks=BOTH, warmup=100.0)

    @functools.partial(jax.jit, static_argnums=0)
    def run(which, now):
        batch = tiny.batch() | {"step": jnp.full(8, now)}
        return views.show(net, (view, tricky)[which], tree, batch, KEY)[0]

    plain = run(0, 0)
    np.testing.assert_array_equal(run(1, 100), plain)
    np.testing.assert_array_equal(run(1, 12345), plain)
    assert (run(1, 50) != plain).any()


def test_keep_grows_to_one():
    found = tricks.keep(jnp.array([0, 25, 99, 100, 101, 10**6]), 100.0)
    np.testing.assert_allclose(found, [0, 0.25, 0.99, 1, 1, 1], rtol=1e-6)


def test_a_warm_up_is_told_in_steps():
    keys = dict(attack_tricks=("ard", "prm"), attack_warmup=2.5)
    attack = functools.partial(pgd, norm="linf", eps=0.1, steps=2)
    read = read_tricks(Section("v", keys), (attack,), tiny.network(), epoch=40)
    assert read == dict(tricks=BOTH, warmup=100.0)
    view = views.View("v", (1.0,), 1.0, (attack,))
    told = views.describe(view._replace(**read), ("all",))
    words = "attention random dropping and perturbation random masking fading out over the "
    assert told.endswith(f"labels, with {words}first 100 steps")
    assert "fading" not in views.describe(view, ("all",))


def test_patches_are_in_pixels_of_the_images():
    found = [tiny.network(resize=side).patch for side in (0, 4, 12, 16)]
    assert found == [4, 8, 0, 2]  # 12: a patch of 8/3 pixels


def test_an_example_does_not_depend_on_its_batch():
    net = tiny.network(**SMALL)
    tree = states.branches(tiny.plain(net), (), 1)
    attack = functools.partial(pgd, norm="l2", eps=0.5, steps=3)
    view = views.View("v", (1.0,), 1.0, (attack,), tricks=BOTH, warmup=100.0)
    batch = tiny.batch() | {"step": jnp.full(8, 50)}
    run = jax.jit(lambda batch: views.show(net, view, tree, batch, KEY)[0])
    whole = run(batch)
    part = run(jax.tree.map(lambda rows: rows[2:6], batch))
    np.testing.assert_allclose(part, whole[2:6], atol=1e-5)
    other = run(batch | {"index": batch["index"] + 8})
    assert jnp.abs(other - whole).max((1, 2, 3)).min() > 1e-3


def test_eight_devices_and_parts_train_like_one(mesh, one_device):
    net = tiny.network(drop_path=0.2, **SMALL)
    tree = states.branches(tiny.plain(net), (), 1)
    attack = functools.partial(pgd, norm="l2", eps=0.5, steps=2)
    view = views.View("l2", (1.0,), 1.0, (attack,), tricks=BOTH, warmup=100.0)
    loss = views.views_loss(net, [view], axis="data")
    batch = tiny.batch(16) | {"step": jnp.full(16, 50)}
    found = []
    for m, parts in ((one_device, 1), (mesh, 2)):
        gradient = step.accumulated(step.differentiated(loss), parts)
        found.append(
            jax.jit(step.over_devices(gradient, m, meshes.replicated(m)))(tree, batch, KEY)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)


class Whole(NamedTuple):
    """A loss that tells which step the batch was of."""

    def __call__(self, variables, batch, key):
        total = jnp.mean(variables["shared"]["kernel"] ** 2)
        now = jnp.mean(batch["step"].astype(jnp.float32))
        return total, (variables["stats"], {"loss": total, "now": now})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_step_is_in_the_batch(mesh, accumulate):
    tx = optax.apply_if_finite(optax.sgd(0.1), 5)
    run = step.make_step(
        Whole(), lambda batch, key: dict(batch), tx, ema_decay=0.9,
        accumulate=accumulate, mesh=mesh,
    )  # fmt: skip
    current = jax.device_put(states.create(linear(), tx), meshes.replicated(mesh))
    for number in range(3):
        batch = meshes.global_batch(mesh, tiny.raw_batch(16))
        current, metrics = run(current, batch, np.uint32(0))
        assert metrics["now"] == number
