"""Random keys by name: what is drawn depends on (seed, step, example), nothing else."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advadapters.shapes import AnyArray, Array, Key, Num, PRNGKey, PRNGKeys, Shaped

# How many numbers an old key of each generator has.
WORDS = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}


def fold(key: PRNGKey, *parts: str | int | np.integer | Shaped[AnyArray, ""]) -> PRNGKey:
    """Folds names (str) and numbers (int or traced) into a key, one after another."""
    for part in parts:
        data = zlib.crc32(part.encode()) if isinstance(part, str) else part
        key = jax.random.fold_in(key, data)
    return key


def per_example(key: Any, size: int) -> PRNGKeys:
    """One key for each example of a batch, [size].

    A single key gives example i the key fold(key, i). Keys that are already one
    per example pass through, so that a caller who knows each image's own number
    gets results that do not depend on how images are batched. Old keys (see `typed`)
    are taken as well; what is no key, or another number of them, raises ValueError.
    """
    key = typed(key)
    if key.shape not in ((), (size,)):
        raise ValueError(
            f"key must be one key, or one for each of the {size} examples, got "
            f"{list(key.shape)} of them"
        )
    if key.ndim:
        return key
    return by_index(key, jnp.arange(size))


def typed(key: Any) -> Key[Array, "..."]:
    """Keys as `jax.random.key` makes them; old ones, uint32 [..., 2 or 4], become such.

    Of several generators with as many numbers the default one is meant, if it is among
    them. Raises ValueError for what is no key.
    """
    if isinstance(key, jax.Array | np.ndarray):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return jnp.asarray(key)
        words = key.shape[-1] if key.ndim and key.dtype == np.uint32 else 0
        default = jax.config.jax_default_prng_impl  # pyright: ignore[reportAttributeAccessIssue]
        for name in (default, *WORDS):
            if words and WORDS.get(name) == words:
                return jax.random.wrap_key_data(jnp.asarray(key), impl=name)
    text = " ".join(repr(key).split())
    raise ValueError(f"key must be a random key like jax.random.key(0), got {text}")


def by_image(batch: Mapping[str, Any], name: str) -> PRNGKeys:
    """Keys [B] for what `name` draws for each image of a batch of the pipeline.

    They depend on its "seed" and "index" [B], the seed and the image's number, alone.
    """
    return jax.vmap(lambda seed, index: fold(jax.random.key(seed), name, index))(
        batch["seed"], batch["index"]
    )


def by_index(key: PRNGKey, indices: Num[AnyArray, " B"]) -> PRNGKeys:
    """Keys [B] of the examples with these numbers [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
