"""A network, images and a cascade small enough for tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from jax.tree_util import Partial

from advadapters.attacks import (
    autoattack,
    versions,
)

EPS = {"linf": 0.03, "l2": 0.2, "l1": 0.8}


PROGRAMS = {}  # of all tests that attack the same network


def short(version="standard", norm="linf"):
    """Settings that cut the loops of a version; the code is the same."""
    takes = [name for stage in versions.stages(version, norm, 10) for name in stage.takes]
    known = dict(steps=10, queries=30)
    return {name: value for name, value in known.items() if name in takes}


def perceptron(params, images):
    """A network of one hidden layer, quick to compile."""
    first, second = params
    return jnp.tanh(images.reshape(images.shape[0], -1) @ first) @ second


@functools.cache
def network(classes=5, seed=0):
    with jax.ensure_compile_time_eval():  # what is kept must be no tracer of a first caller
        keys = jax.random.split(jax.random.key(seed))
        first = 0.3 * jax.random.normal(keys[0], (64, 16))
        second = 0.5 * jax.random.normal(keys[1], (16, classes))
    return Partial(perceptron, (first, second))


def data(count=20, classes=5):
    """Images with the labels that the network gives, but for every fifth."""
    images = np.asarray(tiny.batch(count)["images"])
    labels = np.array(jnp.argmax(network(classes)(images), axis=1))
    labels[::5] = (labels[::5] + 1) % classes
    return images, labels


def run(classes=5, count=20, norm="linf", key=None, **settings):
    images, labels = data(count, classes)
    settings = dict(eps=EPS[norm], batch_size=16, programs=PROGRAMS) | settings
    settings = short(settings.get("version", "standard"), norm) | settings
    key = jax.random.key(0) if key is None else key
    return autoattack(network(classes), images, labels, key, norm=norm, **settings)
