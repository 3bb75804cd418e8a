"""Square: shapes of one row or column, ties; and every attack apart from its batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import on_problem

from advadapters.attacks.apgd import run_apgd
from advadapters.attacks.fab import run_fab
from advadapters.attacks.square import run_square
from advadapters.balls import BALLS
from advadapters.losses import margin

EPS = {"linf": 0.05, "l2": 0.15, "l1": 0.8}
REACH = 1e-3  # how much further an image may get in another batch: logits are about 4
RUNS = {
    "apgd": (on_problem(run_apgd), dict(steps=12)),
    "fab": (on_problem(run_fab), dict(steps=6)),
    "square": (on_problem(run_square), dict(queries=40)),
}


def setup(shape, rng, classes=4):
    """(logits_fn, images, labels) of a small network that is right on all of them."""
    first = rng.normal(size=(int(np.prod(shape[1:])), 16)).astype(np.float32)
    second = rng.normal(size=(16, classes)).astype(np.float32)

    def logits_fn(images):
        return jnp.tanh(0.3 * images.reshape(len(images), -1) @ first) @ second

    images = jnp.asarray(rng.uniform(size=shape), jnp.float32)
    return logits_fn, images, jnp.argmax(logits_fn(images), axis=1)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("sides", [(1, 9), (9, 1), (1, 1), (2, 7)])
def test_narrow_images(sides, norm, rng):
    logits_fn, images, labels = setup((6, *sides, 3), rng)
    run = functools.partial(on_problem(run_square), norm=norm, eps=EPS[norm], queries=60)
    found = jax.jit(run, static_argnums=0)(logits_fn, images, labels, jax.random.key(0))
    assert found.points.min() >= 0 and found.points.max() <= 1
    assert BALLS[norm].norm(found.points - images).max() <= EPS[norm] * (1 + 1e-5)
    gain = margin(logits_fn(found.points), labels) - margin(logits_fn(images), labels)
    assert (gain > 0).mean() > 0.5


def test_a_tie_counts_if_the_label_loses_it():
    images = jnp.full((2, 4, 4, 1), 0.5)
    found = on_problem(run_square)(
        lambda x: jnp.zeros((len(x), 3)), images, jnp.array([0, 1]), jax.random.key(0),
        norm="linf", eps=0.1, queries=5,
    )  # fmt: skip
    assert found.broken.tolist() == [False, True]


def attacked(name, norm):
    """jit: (images, labels, keys, logits_fn) -> (found, how far each image got [B]).

    How far: the margin, which every step of an ascent raises; for FAB the distance.
    """
    run, settings = RUNS[name]
    settings = settings | dict(norm=norm, eps=EPS[norm])

    def attack(logits_fn, images, labels, keys):
        found = run(logits_fn, images, labels, keys, **settings)
        if name == "fab":
            return found, BALLS[norm].norm(found.points - images)
        return found, margin(logits_fn(found.points), labels)

    return jax.jit(attack, static_argnums=0)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", RUNS)
def test_an_image_apart_from_its_batch(name, norm, rng):
    """With a key per image; broken ones too, although the loop ends when all are.

    An ascent is chaotic: rounding, which depends on the shape of the batch and on the
    processor, grows with every step. So what is compared is not pixels but what an
    attack is asked for: the decision, the ball, and how far the image got.
    """
    logits_fn, images, labels = setup((12, 6, 6, 1), rng)
    keys = jax.random.split(jax.random.key(0), 12)
    attack = attacked(name, norm)
    whole, reached = attack(logits_fn, images, labels, keys)
    assert 0 < whole.broken.mean() < 1
    # Decisions are compared where they do not hang on rounding: away from a tie, or,
    # with FAB, from the sphere.
    clear = jnp.abs(reached - (EPS[norm] if name == "fab" else 0)) > REACH
    assert clear.sum() >= 10
    part = slice(3, 8)
    found, again = attack(logits_fn, images[part], labels[part], keys[part])
    np.testing.assert_allclose(again, reached[part], atol=REACH)
    same = found.broken == whole.broken[part]
    assert jnp.all(same | ~clear[part])
    sizes = BALLS[norm].norm(found.points - images[part])
    assert sizes.max() <= EPS[norm] * (1 + 1e-5)


@pytest.mark.parametrize("name", ["apgd", "square"])  # this FAB draws nothing
def test_another_draw_gets_elsewhere(name, rng):
    """An image with its neighbour's draws is what the test above would notice."""
    logits_fn, images, labels = setup((12, 6, 6, 1), rng)
    keys = jax.random.split(jax.random.key(0), 12)
    attack = attacked(name, "l2")
    _, one = attack(logits_fn, images, labels, keys)
    _, other = attack(logits_fn, images, labels, jnp.roll(keys, 1))
    assert jnp.sum(jnp.abs(one - other) > 2 * REACH) >= 4
