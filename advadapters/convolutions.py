"""Convolutions in the forms that XLA does fast on CPUs, wherever they stand.

The compiler's kernels take images NHWC and weights HWIO. It transposes what comes
otherwise, but in the entry of a program only: in the body of a loop, where attacks live,
gradients of convolutions, and convolutions of images NCHW, run as nested scalar loops. Here
they are transposed before the compiler sees them, by a lowering rule for CPUs alone:
derivatives, `vmap` and programs for other devices stay as they are, and a network that
knows nothing of this package is served too. Importing this module installs the rule.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir

from advadapters.shapes import Array, Shaped

GROUPS = 16  # up to which each is a convolution of its own
PLACES = 64  # of windows, up to which what they see is written out

Operand = Shaped[Array, "..."]  # images or weights, in any order of axes


def _form(
    out: Any,
    lhs: Any,
    rhs: Any,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int,
    batch_group_count: int,
    **_: Any,
) -> Callable[..., Operand] | None:
    """The function that computes a convolution of these shapes fast, None if XLA does."""
    sizes = (*lhs.shape, *rhs.shape)
    known = all(isinstance(size, int) and size for size in sizes)
    split = any(axis for x in (out, lhs, rhs) for axis in x.sharding.spec)
    if not known or split or not jnp.issubdtype(lhs.dtype, jnp.floating):
        return None
    groups = feature_group_count * batch_group_count
    if groups > 1:
        return _apart if groups <= GROUPS else None
    images, weights, result = dimension_numbers
    inside, window, places = (
        math.prod(x.shape[axis] for axis in numbers[2:])
        for x, numbers in ((lhs, images), (rhs, weights), (out, result))
    )
    # A window of more entries than the images the compiler exchanges with them, which its
    # kernels do not take; a gradient with respect to weights 1x1 has one place.
    if places == 1 or window > inside and places <= PLACES:
        return _product
    return None if dimension_numbers == _last(lhs.ndim) else _transposed


def _last(ndim: int) -> lax.ConvDimensionNumbers:
    """The dimension numbers of NHWC, HWIO and NHWC, with as many axes of space."""
    space = tuple(range(ndim - 2))
    images = (0, ndim - 1, *(axis + 1 for axis in space))
    return lax.ConvDimensionNumbers(images, (ndim - 1, ndim - 2, *space), images)


def _transposed(
    lhs: Operand,
    rhs: Operand,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    **params: Any,
) -> Operand:
    """The same convolution of NHWC and HWIO."""
    plain = _last(lhs.ndim)
    lhs, rhs = (
        jnp.transpose(x, [outer[inner.index(axis)] for axis in range(x.ndim)])
        for x, outer, inner in zip((lhs, rhs), dimension_numbers, plain, strict=False)
    )
    y = lax.conv_general_dilated_p.bind(lhs, rhs, dimension_numbers=plain, **params)
    outer, inner = dimension_numbers[2], plain[2]
    return jnp.transpose(y, [inner[outer.index(axis)] for axis in range(y.ndim)])


def _apart(
    lhs: Operand,
    rhs: Operand,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int,
    batch_group_count: int,
    **params: Any,
) -> Operand:
    """Each group of channels, or of images, by itself."""
    images, weights, result = dimension_numbers
    groups = feature_group_count * batch_group_count
    parts = zip(
        jnp.split(lhs, groups, images[feature_group_count > 1]),
        jnp.split(rhs, groups, weights[0]),
        strict=True,
    )
    convolve = functools.partial(
        lax.conv_general_dilated_p.bind,
        dimension_numbers=dimension_numbers,
        feature_group_count=1,
        batch_group_count=1,
        **params,
    )
    return jnp.concatenate([convolve(*part) for part in parts], result[1])


def _product(
    lhs: Operand,
    rhs: Operand,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    precision: Any,
    preferred_element_type: Any,
    **params: Any,
) -> Operand:
    """One product of matrices: of all that the window sees in each place, with weights.

    params: the others of a convolution, by the names that `lax` gives them.
    """
    images, weights, result = dimension_numbers
    places, size, steps = [], list(lhs.shape), [1] * lhs.ndim
    config = [(0, 0, 0)] * lhs.ndim
    for number, (axis, other) in enumerate(zip(images[2:], weights[2:], strict=True)):
        config[axis] = (*params["padding"][number], params["lhs_dilation"][number] - 1)
        steps[axis] = params["rhs_dilation"][number]
        size[axis] = (rhs.shape[other] - 1) * steps[axis] + 1
    lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), config)
    for axis, stride in zip(images[2:], params["window_strides"], strict=True):
        places.append(range(0, lhs.shape[axis] - size[axis] + 1, stride))
    # Both are summed over the same axes, in the order of the second.
    summed = sorted(zip(weights[1:], images[1:], strict=True))

    def view(place: tuple[int, ...]) -> Shaped[Array, "S N"]:
        start = [0] * lhs.ndim
        for axis, at in zip(images[2:], place, strict=True):
            start[axis] = at
        stop = [at + length for at, length in zip(start, size, strict=True)]
        part = lax.slice(lhs, start, stop, steps)
        part = jnp.transpose(part, [*(axis for _, axis in summed), images[0]])
        return part.reshape(-1, part.shape[-1])  # [S, N]

    left = jnp.concatenate([view(place) for place in itertools.product(*places)], axis=1)
    right = jnp.transpose(rhs, [*(axis for axis, _ in summed), weights[0]])
    y = lax.dot_general(
        left,
        right.reshape(-1, right.shape[-1]),
        (((0,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    y = y.reshape(*map(len, places), -1, y.shape[-1])  # space, N, O
    space = len(places)
    order = (space, space + 1, *range(space))
    return jnp.transpose(y, [order[result.index(axis)] for axis in range(y.ndim)])


def lower(ctx: Any, lhs: Any, rhs: Any, **params: Any) -> Any:
    """The lowering rule for CPUs."""
    function = _form(*ctx.avals_out, *ctx.avals_in, **params)
    if function is None:
        return BEFORE(ctx, lhs, rhs, **params)
    params |= {"out_sharding": None}  # where no array is split by name, it says nothing
    return mlir.lower_fun(function, multiple_results=False)(ctx, lhs, rhs, **params)


# Not public: a jax that keeps its rules elsewhere goes on without this one, and is slow.
RULES = getattr(mlir, "_platform_specific_lowerings", {}).get("cpu", {})
KEPT = RULES.get(lax.conv_general_dilated_p)
BEFORE = getattr(KEPT, "rule", KEPT)
if KEPT is not None:
    mlir.register_lowering(lax.conv_general_dilated_p, lower, platform="cpu")
