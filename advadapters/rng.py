"""Random keys by name: what is drawn depends on (seed, step, example), nothing else."""

import zlib

import jax
import jax.numpy as jnp


def fold(key, *parts):
    """Folds names (str) and numbers (int or traced) into a key, one after another."""
    for part in parts:
        data = zlib.crc32(part.encode()) if isinstance(part, str) else part
        key = jax.random.fold_in(key, data)
    return key


def per_example(key, size):
    """One key for each example of a batch, [size].

    A single key gives example i the key fold(key, i). Keys that are already one
    per example pass through, so that a caller who knows each image's own number
    gets results that do not depend on how images are batched. Old keys (uint32, two
    numbers each) are taken as well.
    """
    if key.dtype == jnp.uint32:
        key = jax.random.wrap_key_data(key)
    if key.ndim:
        if key.shape != (size,):
            raise ValueError(f"{key.shape} keys for a batch of {size}")
        return key
    return by_index(key, jnp.arange(size))


def by_index(key, indices):
    """Keys [B] of the examples with these numbers [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
