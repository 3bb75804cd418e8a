"""Evaluating soups, against the forward passes alone that it cannot do without.

A grid of mixtures of adapters, by the predictor of evaluation; soups of whole networks, by
the scorer of the search; both in float32. The floor of S soups is S times the same network
on the same images, alone in a program: what mixing and mapping over soups add is above it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import builders, meshes, networks, soups, trees
from advadapters.attacks.pgd import pgd
from advadapters.evaluation import accuracy
from parts import settings, timing
from parts.shapes import SHAPES
from parts.worker import Case

# Network, images, soups at once, whole networks that are mixed.
SIZES = {
    "full": ("s16", 64, 13, 4),
    "cpu": ("ti16", 4, 5, 4),
    "small": ("micro", 8, 3, 2),
}
ROUNDS = {"full": 10, "cpu": 7, "small": 3}


def cases(setting):
    """Adapters clean and, but for the small form, attacked; whole networks."""
    attack = functools.partial(pgd, norm="linf", eps=4 / 255, steps=2, loss="margin")
    made = [
        Case("adapters, clean", 25, functools.partial(adapters, None)),
        Case("whole networks, clean", 25, whole),
        Case("adapters, PGD-2", 40, functools.partial(adapters, attack)),
    ]
    return made[:2] if setting.size == "small" else made


def compare(call, floor, evaluated, count, setting, clock):
    """A row: a call evaluates S soups of a batch, the floor is one network on it."""
    seconds = timing.alternate([call, floor], clock, ROUNDS[setting.size])
    ratios = [own / (evaluated * least) for own, least in seconds]
    own = timing.quartiles([pair[0] for pair in seconds])
    return {
        "soups": evaluated,
        "images": count,
        "seconds": own,
        "floor_seconds": timing.quartiles([evaluated * pair[1] for pair in seconds]),
        "times_floor": timing.quartiles(ratios),
        "passes_per_second": evaluated * count / own[1],
    }


def made(setting):
    """(Run, variables on the device, batch on it)."""
    name, count, _, _ = SIZES[setting.size]
    shape, mesh = SHAPES[name], meshes.make([setting.device])
    run = settings.run_of(shape, "cotrain", count, 2, "float32", mesh)
    state = jax.jit(functools.partial(builders.initial_state, run))()
    batch = meshes.global_batch(mesh, settings.batch_of(shape, count))
    return run, state.variables, batch


def adapters(attack, setting, clock, rows):
    """A line of mixtures of two adapters."""
    _, count, evaluated, _ = SIZES[setting.size]
    run, variables, batch = made(setting)
    weights = np.linspace(0, 1, evaluated, dtype=np.float32)
    knobs = networks.Knob(np.stack([weights, 1 - weights], axis=1))
    predict = functools.partial(
        accuracy.make_predictor, run.network, mesh=meshes.make([setting.device])
    )
    call = predict(attack)
    plain = jax.jit(run.network.at)(variables, networks.Knob(jnp.array([0.5, 0.5])))
    alone = jax.jit(functools.partial(once, run.network.evaluate, attack))
    images, labels = jnp.asarray(batch["images"], jnp.float32) / 255, batch["labels"]
    return compare(
        lambda: call(variables, knobs, batch),
        lambda: alone(plain, images, labels),
        evaluated,
        count,
        setting,
        clock,
    )


def once(apply, attack, plain, images, labels):
    """What evaluation does with one network: it looks, attacks, looks again."""
    found = jnp.argmax(apply(plain, images), axis=-1)
    if attack is None:
        return found
    logits_fn = functools.partial(apply, plain)
    moved = attack(logits_fn, images, labels, jax.random.key(0))
    return found, jnp.argmax(apply(plain, moved), axis=-1)


def whole(setting, clock, rows):
    """Mixtures of networks that share nothing."""
    _, count, evaluated, mixed = SIZES[setting.size]
    run, variables, batch = made(setting)
    plain = trees.plain(variables, (1.0, 0.0))
    ingredients = jax.jit(soups.stack)([plain] * mixed)
    images, labels = np.float32(batch["images"]) / 255, np.asarray(batch["labels"])
    apply = run.network.evaluate
    score = soups.make_scorer(apply, trees.mix, ingredients, batch=count)
    draw = np.random.default_rng(0).dirichlet(np.ones(mixed), evaluated)
    alone = jax.jit(functools.partial(once, apply, None))
    there = jnp.asarray(images)
    return compare(
        lambda: score(draw, images, labels),
        lambda: alone(plain, there, labels),
        evaluated,
        count,
        setting,
        clock,
    )
