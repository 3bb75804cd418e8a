"""Digests of arrays: whether what is read is, bit by bit, what was written.

A digest is two sums, modulo 2**32, of all words of an array, each times an odd number that
its place gives. A flipped bit changes both sums, as an odd multiple of a power of two is
never 0 modulo 2**32. The sum of the parts is the sum of the whole, so an array that is
split over many devices has the same digest as one on one device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advadapters.shapes import AnyArray, PyTree

Digest = tuple[int, int]
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # bytes of a number -> type of a word
CHUNK = 1 << 20  # words that are multiplied at once, on the host


def of_tree(tree: PyTree) -> dict[str, Digest]:
    """{path: digest} of all arrays, see `name_of`.

    Arrays of this process are looked at on the host, which compiles nothing. Those that
    are spread over the devices of several processes are looked at where they are.
    """
    return {name: (int(a), int(b)) for name, (a, b) in _look(tree, of_array, _sums).items()}


def not_finite(tree: PyTree) -> list[str]:
    """The paths of arrays that hold a number which is not finite."""
    finite = _look(tree, lambda array: np.isfinite(array).all(), _is_finite)
    return [name for name, yes in finite.items() if not yes]


def _look(
    tree: PyTree, here: Callable[[AnyArray], Any], there: Callable[[AnyArray], Any]
) -> dict[str, Any]:
    """{path: what `here` says of an array of this process, and `there` of others}."""
    results = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        near = getattr(leaf, "is_fully_addressable", True)
        results[name_of(path)] = here(np.asarray(leaf)) if near else there(leaf)
    return jax.device_get(results)


def name_of(path: tuple[Any, ...]) -> str:
    """The names of a path, joined by "/": the same for a dict and for a class."""
    keys = [getattr(part, "key", getattr(part, "name", None)) for part in path]
    numbers = [getattr(part, "idx", None) for part in path]
    return "/".join(
        str(number if key is None else key)
        for key, number in zip(keys, numbers, strict=True)
    )


def of_array(array: AnyArray) -> Digest:
    """The digest of one array, computed on the host."""
    whole = np.ascontiguousarray(array).reshape(-1)
    words = whole.view(WORDS.get(whole.dtype.itemsize, np.uint32))
    sums = np.zeros(2, np.uint32)
    with np.errstate(over="ignore"):
        for start in range(0, len(words), CHUNK):
            part = words[start : start + CHUNK].astype(np.uint32)
            places = np.arange(start, start + len(part), dtype=np.uint32)
            for number, factor in enumerate(_factors(places)):
                sums[number] += np.sum(part * factor, dtype=np.uint32)
    return int(sums[0]), int(sums[1])


def _factors(places: Any) -> tuple[Any, Any]:
    """Two odd numbers, uint32, for each place: a multiplicative hash, and a mixed one."""
    first = places * np.uint32(0x9E3779B1) + np.uint32(0x7F4A7C15)
    mixed = (places ^ (places >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return first | np.uint32(1), (mixed ^ (mixed >> np.uint32(16))) | np.uint32(1)


@jax.jit
def _sums(leaf: AnyArray) -> tuple[AnyArray, AnyArray]:
    """The two sums of an array on its devices."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    word = WORDS[leaf.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)
    places = jnp.arange(leaf.size, dtype=jnp.uint32).reshape(leaf.shape)
    first, second = (
        jnp.sum(words * factor, dtype=jnp.uint32) for factor in _factors(places)
    )
    return first, second


@jax.jit
def _is_finite(leaf: AnyArray) -> AnyArray:
    """Whether all numbers of an array are finite."""
    return jnp.isfinite(leaf).all()
