"""Digests: the same on the host and on devices, and other for any flipped bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advadapters import digests, meshes

TYPES = (np.float32, jnp.bfloat16, np.int32, np.uint32, np.uint8, np.bool_)


@pytest.mark.parametrize("kind", TYPES)
def test_the_host_and_the_devices_agree(kind, mesh):
    array = np.random.default_rng(0).normal(size=(8, 5)).astype(kind)
    split = jax.device_put(array, meshes.batched(mesh))
    assert len(split.sharding.device_set) == 8
    there = tuple(int(number) for number in digests._sums(split))
    assert digests.of_array(array) == there == digests.of_tree({"a": array})["a"]


def test_every_flipped_bit_is_seen():
    rng = np.random.default_rng(1)
    array = rng.normal(size=37).astype(np.float32)
    before = digests.of_array(array)
    for bit in range(array.nbytes * 8):
        raw = np.frombuffer(array.tobytes(), np.uint8).copy()
        raw[bit // 8] ^= 1 << (bit % 8)
        after = digests.of_array(raw.view(np.float32))
        assert after[0] != before[0] and after[1] != before[1]


def test_places_count():
    """Exchanged numbers, and numbers that are moved on by one, are others."""
    array = np.arange(6, dtype=np.float32)
    sums = {digests.of_array(order) for order in (array, array[::-1], np.roll(array, 1))}
    assert len(sums) == 3


def test_long_arrays_are_summed_in_parts(monkeypatch):
    array = np.random.default_rng(2).normal(size=1000).astype(np.float32)
    whole = digests.of_array(array)
    monkeypatch.setattr(digests, "CHUNK", 64)
    assert digests.of_array(array) == whole


def test_what_is_not_finite_is_named():
    tree = {"a": {"b": np.array([1.0, np.nan])}, "c": (jnp.ones(2), jnp.array([-np.inf]))}
    assert digests.not_finite(tree) == ["a/b", "c/1"]
    assert digests.not_finite({"step": jnp.int32(3), "flag": np.array([True])}) == []
