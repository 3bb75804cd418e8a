"""Evaluation is float32: what is lowered asks for it on every product, going back too.

Programs are lowered, not compiled: CPUs make float32 products whatever is asked for.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import small

from advadapters import defaults, networks
from advadapters.attacks import programs, versions
from advadapters.builders.views import read_fixed
from advadapters.data import corruptions, randaugment
from advadapters.evaluation import accuracy, statistics
from advadapters.models.added import Added
from advadapters.models.film import Film
from advadapters.sections import Section

LORA = Added("lora", "lnlora", (".*/q", ".*/proj", "patch_embed", "head"), 1, 1.0)
NECK = Added("neck", "bottleneck", (".*/fc2",), 2, 1.0)
CONV_LORA = Added("lora", "lora", (".*/conv1", ".*/shortcut"), 1, 1.0)
FILM = Film((0.0, 1.0), "random", 8, 1.0)
NETWORKS = {
    "vit": ("vit", {}),
    "vit, one block": ("vit", dict(size="8x1x16x2")),
    "vit, adapters": ("vit", dict(added=(LORA, NECK), film=FILM, prompts=2, pool="class")),
    "vit, scan, remat": ("vit", dict(scan=True, remat="dots", positions="sincos")),
    "resnet": ("resnet", dict(stem="imagenet", resize=16)),
    "preact_resnet": ("preact_resnet", dict(added=(CONV_LORA,))),
    "wide_resnet": ("wide_resnet", dict(film=FILM, norm="group")),
}
IMAGES = jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32)
LABELS = jax.ShapeDtypeStruct((8,), jnp.int32)


def lowered(function, *arguments):
    """The lines of all products in the lowered program; there must be some."""
    text = jax.jit(function).lower(*arguments).as_text()
    found = re.findall(r"stablehlo\.(?:dot_general|dot|convolution)\b.*", text)
    assert found
    return found


def rounded(lines):
    """Those that do not ask for float32 of both operands."""
    return [line for line in lines if line.count("HIGHEST") != 2]


@functools.cache
def network(name, **settings):
    """(Network, its plain as shapes)."""
    kind, fields = NETWORKS[name]
    net = networks.make_network(small.model(kind, **fields), (8, 8, 1), **settings)
    plain = jax.eval_shape(net.init, jax.random.key(0))
    lam = {"lambda": jax.ShapeDtypeStruct((), jnp.float32)} if "film" in fields else {}
    return net, plain | lam


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_gradients_of_every_network(name):
    net, plain = network(name)
    total = lambda call: lambda p, x: jnp.sum(call(p, x) ** 2)  # noqa: E731
    slope = jax.grad(total(net.evaluate), argnums=(0, 1))
    # A program inside: its derivative is taken after it was traced, elsewhere.
    within = jax.grad(total(jax.jit(net.evaluate)), argnums=1)
    forward = lowered(net.evaluate, plain, IMAGES)
    assert not rounded(forward)
    for function in (slope, within):
        lines = lowered(function, plain, IMAGES)
        assert len(lines) > len(forward) and not rounded(lines)


def test_training_is_left_alone_and_so_is_evaluation_on_request():
    net, plain = network("vit")
    assert len(rounded(lowered(net.apply, plain, IMAGES))) > 10
    net, plain = network("vit", precision="default")
    assert len(rounded(lowered(net.evaluate, plain, IMAGES))) > 10


def test_an_ensemble_and_the_statistics_of_a_soup(one_device):
    net, plain = network("vit")
    mixed = networks.ensemble(net)
    weights = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert not rounded(
        lowered(mixed.evaluate, {"members": [plain, plain], "weights": weights}, IMAGES)
    )
    net, plain = network("resnet")
    batch = {"images": jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.uint8), "index": LABELS}
    net = net._replace(at=lambda variables, knob: variables)
    estimate, knob = statistics.make_estimate(net, one_device), networks.Knob(np.ones(1))
    lines = lowered(estimate, plain, knob, batch)
    assert not rounded(lines)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_attacks_in_evaluation(norm, one_device):
    net, plain = network("vit, one block")
    settings = defaults.evaluation_pgd(norm, 0.1, 3, loss="margin")
    attack = read_fixed({"pgd": Section("pgd", settings)}, (8, 8, 1))["pgd"]
    net = net._replace(at=lambda variables, knob: variables)
    predictor = accuracy.make_predictor(net, attack, mesh=one_device)
    knobs = networks.Knob(jax.ShapeDtypeStruct((2, 2), jnp.float32))
    batch = {"images": jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.uint8)}
    batch |= {"labels": LABELS, "index": LABELS, "seed": LABELS}
    assert not rounded(lowered(predictor, plain, knobs, batch))


@pytest.mark.parametrize("stage", versions.parts("linf", 5).values(), ids=lambda s: s.name)
def test_autoattack_on_a_network(stage):
    net, plain = network("vit, one block")
    attack = functools.partial(programs.attack_batch, stage.fixed, "linf", 0)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
    active = jax.ShapeDtypeStruct((8,), bool)
    eps = jax.ShapeDtypeStruct((), jnp.float32)
    call = jax.tree_util.Partial(net.evaluate, plain)
    task = programs.Task(IMAGES, LABELS, keys, LABELS, active)
    assert not rounded(lowered(attack, call, task, eps))


def test_images_are_changed_exactly(one_device):
    """A pixel that bfloat16 rounds is off by up to half a step of 1/255."""
    images = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))

    def every(images, keys):
        found = (
            corruptions.corrupt(images, keys, name=name, severity=3)
            for name in corruptions.CORRUPTIONS
        )
        return list(found)

    assert not rounded(lowered(every, images, keys))
    augment = randaugment.make_randaugment(
        one_device, layers=1, magnitude=9.0, std=0.5, fill=(0.5,)
    )
    images = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.uint8)
    assert not rounded(lowered(augment, keys, images))
