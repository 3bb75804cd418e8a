"""Bad input of cascades, in one line, and the numbers and keys that they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascades import network, run

from advadapters import rng as keys_by_name
from advadapters.attacks import (
    autoattack,
    checks,
)
from advadapters.errors import UsageError


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(eps=-0.1), "eps must be at least 0 and at most 1 for linf, .*got -0.1"),
        (dict(eps=8.0), "at most 1"),
        (dict(eps=np.ones((2, 2))), "eps must be at least 0"),
        (dict(eps=np.nan), "eps must be at least 0"),
        (dict(eps=np.inf, norm="l2"), "at least 0 and at most 8 for l2.*, got inf"),
        (dict(eps=8.1, norm="l2"), "at most 8 for l2, the l2 norm of the whole box"),
        (dict(eps=64.1, norm="l1"), "at most 64 for l1, the l1 norm of the whole box"),
        (dict(eps="0.1"), "eps must be at least 0"),
        (dict(key=0), "key must be a random key like jax.random.key\\(0\\), got 0"),
        (dict(key=jax.random.split(jax.random.key(0))), "key must be one key"),
        (dict(version="rand"), "'rand' calls logits_fn\\(images, key\\), but it takes"),
        (dict(logits_fn=lambda x, key: x), "calls logits_fn\\(images\\), but it takes"),
        (dict(norm="l7"), "unknown norm 'l7'; there are: linf, l2, l1"),
        (dict(norm="Linf"), "linf, l2, l1; did you mean 'linf'\\?"),
        (dict(norm=["linf"]), "unknown norm \\['linf'\\]; there are"),
        (dict(batch_size=2.0), "batch_size must be a whole number of at least 1, got 2.0"),
        (dict(batch_size=0), "batch_size must be a whole number of at least 1, got 0"),
        (dict(version="best"), "unknown suite 'best'; there are: standard, plus, rand"),
        (dict(version=("cw",)), "unknown attack 'cw'; there are: apgd-ce"),
        (dict(images=np.zeros((2, 8, 8, 1))), "images must be float32"),
        (
            dict(images=np.full((2, 8, 8, 1), 2, np.float32)),
            "images must lie in \\[0, 1\\]",
        ),
        (
            dict(images=np.full((2, 8, 8, 1), np.nan, np.float32)),
            "2 of 2 images have pixels of NaN or infinity",
        ),
        (dict(images=np.zeros((2, 3, 8, 8), np.float32)), "which has channels first"),
        (dict(images=np.zeros((2, 1, 8, 8), np.float32)), "which has channels first"),
        (dict(labels=np.zeros(3, int)), "labels must be whole numbers \\[2\\]"),
        (dict(labels=np.zeros(2)), "labels must be whole numbers"),
        (dict(labels=np.array([0, -1])), "labels run from -1 to 0"),
        (dict(labels=np.array([0, 2**32])), "labels run from 0 to 4294967296"),
        (dict(labels=np.zeros((2, 5))), "labels must be whole numbers"),
        (dict(labels=np.array([0, 5])), "labels run from 0 to 5, but logits_fn has 5"),
        (
            dict(logits_fn=lambda x: jnp.zeros((len(x), 5)) * jnp.nan),
            "NaN or infinity on all 2",
        ),
        (dict(logits_fn=lambda x: jnp.zeros((3, 5))), "logits_fn must return"),
        (dict(logits_fn=lambda x: jnp.zeros((len(x), 1))), "at least two classes"),
        (dict(logits_fn=lambda x: (network()(x), x)), "got a tuple: choose its logits"),
    ],
)
def test_bad_input_in_one_line(change, message):
    arguments = dict(
        logits_fn=network(),
        images=np.zeros((2, 8, 8, 1), np.float32),
        labels=np.zeros(2, int),
        key=jax.random.key(0),
        norm="linf",
        eps=0.1,
    )
    with pytest.raises(UsageError, match=message) as error:
        autoattack(**(arguments | change))
    assert "\n" not in str(error.value)


def test_any_number_and_any_key():
    report = run(version=("apgd-ce",), eps=np.float32(0.03))
    for change in (dict(eps=jnp.float32(0.03)), dict(key=jax.random.PRNGKey(0))):
        other = run(version=("apgd-ce",), **dict(eps=np.float32(0.03)) | change)
        assert isinstance(other.eps, float) and report.eps == other.eps
        np.testing.assert_array_equal(report.images, other.images)


def test_old_keys_of_every_generator():
    for name in ("threefry2x32", "rbg", "unsafe_rbg"):
        new, old = jax.random.key(3, impl=name), jax.random.PRNGKey(3, impl=name)
        with jax.default_prng_impl(name):
            assert checks.random_key(old) == new
    old = jax.random.PRNGKey(3, impl="rbg")  # while another generator is the default
    assert checks.random_key(old) == jax.random.key(3, impl="rbg")
    assert keys_by_name.per_example(old, 3).shape == (3,)
    with pytest.raises(ValueError, match="one for each of the 3 examples, got \\[2\\]"):
        keys_by_name.per_example(jax.random.split(jax.random.key(0)), 3)
