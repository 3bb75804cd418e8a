"""AutoAttack, beside the official suite in torch on the same device.

Networks: those of tests/reference, whose official results are known image by image, and a
ViT-S/16 for 1,000 classes. The latter's weights are random; its labels are what it says
itself, and the radius is one at which a step along the gradient turns about half of the
images, so that every stage has images to attack, and some are left. It is attacked with
fewer steps, targets and queries, the same in both suites.

Parity: the share of images that are robust under both suites or under none, and under ours
and what the reference's files tell. The official suite is imported as `autoattack`
(github.com/fra31/auto-attack) or as `pyautoattack` (the same algorithms, on PyPI); without
them a row has ours only.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import reference_networks as reference
from jax.tree_util import Partial

from advadapters import losses
from advadapters.attacks import autoattack
from advadapters.networks import make_network
from parts import settings
from parts.shapes import REFERENCES, SHAPES
from parts.worker import Case

# {network: (images, settings of the attacks where they are not the standard ones)}.
LIGHT = dict(steps=20, targets=3, queries=300)
TINY = dict(version=("apgd-t", "square"), steps=3, targets=1, queries=5)
SIZES = {
    "full": {
        "s16": (64, LIGHT),
        "vit_linf": (500, {}),
        "cnn_l2": (500, {}),
        "cnn_l1": (500, {}),
    },
    "cpu": {
        "cnn_l2": (100, {}),
        "vit_linf": (60, LIGHT),
        "s16": (2, TINY),
    },
    "small": {"micro": (8, TINY)},
}
ESTIMATES = {"s16": 90, "micro": 90, "vit_linf": 90, "cnn_l2": 60, "cnn_l1": 60}
BATCH = 250  # images at once, in both suites


def cases(setting):
    """A row for each network."""
    chosen = setting.options["networks"]
    return [
        Case(name, ESTIMATES[name], functools.partial(row, name, count, light))
        for name, (count, light) in SIZES[setting.size].items()
        if name in chosen or not chosen
    ]


def row(name, count, light, setting, clock, rows):
    """Our cascade, then the official one."""
    chosen = (anchor if name in REFERENCES else random)(name, count)
    report = ours(chosen, light)
    known = None if light or "known" not in chosen else chosen["known"]
    found = {
        "images": count,
        "settings": light,
        "norm": chosen["norm"],
        "eps": chosen["eps"],
        "stages": report.stages,
        "costs": report.costs,
        "forwards": total(report, "forwards"),
        "seconds": total(report, "seconds"),
        "compile_seconds": total(report, "compile_seconds"),
        "agrees_with_known": None
        if known is None
        else float(np.mean(report.robust == known)),
    }
    if setting.torch:
        found["official"] = official(chosen, light, setting.fast, report)
    return found


def total(report, kind):
    """The sum over stages of a kind of cost."""
    return sum(cost[kind] for cost in report.costs.values())


def anchor(name, count):
    """A reference network: its logits_fn, torch model, images, labels and threat."""
    told = reference.OFFICIAL[name]
    images, labels = reference.data(count)
    last = list(told["stages"])[-1]
    return {
        "logits_fn": reference.network(told["model"]),
        "torch": told["model"],
        "images": images,
        "labels": labels,
        "norm": told["norm"],
        "eps": told["eps"],
        "known": reference.robust_after(name, last, count),
    }


def random(name, count):
    """The same of a ViT for 1,000 classes with random weights, see above."""
    shape = SHAPES[name]
    network = make_network(settings.model_of(shape), (shape.side, shape.side, 3))
    plain = jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0)))
    plain = jax.tree.map(jnp.asarray, settings.drawn(plain))
    images = settings.images_of(shape, count)
    logits_fn = Partial(network.evaluate, plain)
    labels, radius = jax.jit(nearest)(logits_fn, images)
    return {
        "logits_fn": logits_fn,
        "torch": (name, plain["params"]),
        "images": images,
        "labels": np.asarray(labels),
        "norm": "linf",
        "eps": float(np.median(radius)),
    }


def nearest(logits_fn, images):
    """(classes said [B], Linf radius [B] to the next one, were all linear)."""
    labels = jnp.argmax(logits_fn(images), axis=-1)

    def margin(images):
        rows = losses.LOSSES["margin"](logits_fn(images), labels)
        return jnp.sum(rows), rows

    slope, rows = jax.grad(margin, has_aux=True)(images)
    return labels, -rows / jnp.sum(jnp.abs(slope), axis=(1, 2, 3))


def ours(chosen, light):
    """The Report of our cascade."""
    return autoattack(
        chosen["logits_fn"],
        chosen["images"],
        chosen["labels"],
        jax.random.key(0),
        norm=chosen["norm"],
        eps=chosen["eps"],
        batch_size=BATCH,
        quiet=True,
        **light,
    )


def official(chosen, light, fast, report):
    """What the official suite says of the same images, or {"missing": the package}."""
    from parts import in_torch

    try:
        began = time.perf_counter()
        robust, forwards = in_torch.autoattack(chosen, light, BATCH, fast)
    except ModuleNotFoundError as error:
        return {"missing": str(error)}
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "forwards": forwards,
        "robust_accuracy": float(robust.mean()),
        "agrees": float(np.mean(robust == report.robust)),
        "times_official": seconds / total(report, "seconds"),
    }
