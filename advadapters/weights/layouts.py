"""How arrays of other programs are laid out, and ours made of them and back, bit for bit.

A layout reads the arrays there (one, or those of queries, keys and values) as one leaf
here, and writes the leaf as those arrays. Ours are those of `models`: a dense kernel is
[in, out], the columns of qkv are (3, heads, D / heads), patches are rows of
patch x patch x channels.
"""

from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float, Shaped

from advadapters.errors import UsageError

Leaf = Float[np.ndarray, "..."]
Stored = Shaped[np.ndarray, "..."]  # as a file has it, of any type


class Geometry(NamedTuple):
    """What of a network a layout needs to be written, and no array shows."""

    heads: int = 1
    patch: int = 1
    channels: int = 3


class Layout(NamedTuple):
    """axes: how many each array has there. read: [arrays] -> leaf. write: its inverse."""

    axes: int
    read: Callable[[list[Leaf]], Leaf]
    write: Callable[[Leaf, Geometry], list[Leaf]]


def _same(axes: int) -> Layout:
    """The array as it is."""
    return Layout(axes, lambda arrays: arrays[0], lambda leaf, _: [leaf])


def _turned(*order: int) -> Layout:
    """The array with its axes in another order: axis i is axis order[i] there."""
    back = tuple(int(i) for i in np.argsort(order))
    return Layout(
        len(order),
        lambda arrays: arrays[0].transpose(order),
        lambda leaf, _: [leaf.transpose(back)],
    )


def _tiles(leaf: Leaf, geometry: Geometry) -> Leaf:
    """Patches as rows [p p C, D] -> [p, p, C, D]."""
    patch, channels = geometry.patch, geometry.channels
    return leaf.reshape(patch, patch, channels, leaf.shape[-1])


def _rows(kernel: Leaf) -> Leaf:
    """[p, p, C, D] -> [p p C, D]."""
    return kernel.reshape(-1, kernel.shape[-1])


def _thirds(leaf: Leaf) -> list[Leaf]:
    """The columns of queries, keys and values."""
    return np.split(leaf, 3, axis=-1)


def _by_heads(leaf: Leaf, geometry: Geometry) -> list[Leaf]:
    """Queries, keys and values, whose last axis is split: [..., H, D / H]."""
    heads = geometry.heads
    return [part.reshape(*part.shape[:-1], heads, -1) for part in _thirds(leaf)]


def _joined(arrays: list[Leaf]) -> Leaf:
    """Queries, keys and values side by side."""
    return np.concatenate(arrays, axis=-1)


LAYOUTS = {
    "vector": _same(1),
    "matrix": _same(2),  # [in, out]
    "tokens": _same(3),  # [1, N, D]
    "linear": _turned(1, 0),  # [out, in]
    "conv": _turned(2, 3, 1, 0),  # [out, in, height, width]
    # One token as [D], a table of positions as [N, D].
    "token": Layout(1, lambda a: a[0][None, None], lambda leaf, _: [leaf[0, 0]]),
    "table": Layout(2, lambda a: a[0][None], lambda leaf, _: [leaf[0]]),
    # Kernels of patches: as a convolution of torch's, of flax's.
    "patches": Layout(
        4,
        lambda a: _rows(a[0].transpose(2, 3, 1, 0)),
        lambda leaf, geometry: [_tiles(leaf, geometry).transpose(3, 2, 0, 1)],
    ),
    "flax_patches": Layout(
        4, lambda a: _rows(a[0]), lambda leaf, geometry: [_tiles(leaf, geometry)]
    ),
    # Queries, keys and values apart: [out, in] and [out] each.
    "linears": Layout(
        2,
        lambda a: _joined([array.T for array in a]),
        lambda leaf, _: [part.T for part in _thirds(leaf)],
    ),
    "vectors": Layout(1, _joined, lambda leaf, _: _thirds(leaf)),
    # The same, [in, H, D / H] and [H, D / H] each, and [H, D / H, out].
    "flax_linears": Layout(
        3, lambda a: _joined([x.reshape(x.shape[0], -1) for x in a]), _by_heads
    ),
    "flax_vectors": Layout(2, lambda a: _joined([x.reshape(-1) for x in a]), _by_heads),
    "flax_out": Layout(
        3,
        lambda a: a[0].reshape(-1, a[0].shape[-1]),
        lambda leaf, geometry: [leaf.reshape(geometry.heads, -1, leaf.shape[-1])],
    ),
}


def values(array: Stored, name: str, axes: int) -> Leaf:
    """An array of a file as float32.

    Raises UsageError unless it holds finite floats and has so many axes.
    """
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        raise UsageError(f"{name} must hold floats, got {array.dtype}")
    if array.ndim != axes:
        raise UsageError(f"{name} must have {axes} axes, got {list(array.shape)}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UsageError(f"{name} has values that are not finite")
    return array


def read(layout: str, arrays: list[Stored], names: list[str]) -> Leaf:
    """The leaf that is made of arrays with these names. Raises UsageError as `values`."""
    row = LAYOUTS[layout]
    stored = [values(a, n, row.axes) for a, n in zip(arrays, names, strict=True)]
    if len({array.shape for array in stored}) > 1:
        shapes = ", ".join(str(list(array.shape)) for array in stored)
        raise UsageError(f"{', '.join(names)} must have one shape, got {shapes}")
    return np.ascontiguousarray(row.read(stored))


def write(layout: str, leaf: Leaf, geometry: Geometry) -> list[Leaf]:
    """The arrays of another program that `read` makes the leaf of."""
    arrays = LAYOUTS[layout].write(np.asarray(leaf), geometry)
    return [np.ascontiguousarray(array) for array in arrays]
