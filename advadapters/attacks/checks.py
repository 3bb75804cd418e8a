"""Checks of what attacks are given: bad input raises UsageError with one line.

What is traced has a type and a shape, but no values that could be checked.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from advadapters import rng
from advadapters.balls import BALLS
from advadapters.errors import UsageError, check_word
from advadapters.shapes import (
    AnyArray,
    Array,
    Float,
    HostImages,
    Int,
    Key,
    Logits,
    Num,
    Shaped,
)

SAMPLE = 64  # images that gradients are looked at on


def concrete(value: Any) -> bool:
    """Whether this process can read the value: it is not traced, and all of it is here."""
    return not isinstance(value, Tracer) and getattr(value, "is_fully_addressable", True)


def radius(norm: Any, eps: Any, shape: tuple[int, ...] = ()) -> float:
    """eps, any kind of number, as a float; raises UsageError unless it fits the norm.

    shape: of an image [H, W, C], where it is known: no radius is larger than the box.
    """
    check_word(BALLS, norm, "norm")
    most, number = largest(norm, shape), _as_float(eps)
    if not (0 <= number <= most and number < math.inf):
        allowed = f"at most {most:g}" if most < math.inf else "finite"
        box = f", the {norm} norm of the whole box [0, 1]^{math.prod(shape)}"
        box = box if shape else ""
        raise UsageError(
            f"eps must be at least 0 and {allowed} for {norm}{box}, got {_one_line(eps)}"
        )
    return number


def largest(norm: str, shape: tuple[int, ...] = ()) -> float:
    """The norm of the whole box of images [H, W, C]: no radius goes further."""
    size = math.prod(shape) if shape else math.inf
    return {"linf": 1.0, "l2": math.sqrt(size), "l1": size}[norm]


def _as_float(value: Any) -> float:
    """The value as a float, NaN if it is no number."""
    number = isinstance(value, int | float | np.number | np.ndarray | jax.Array)
    return float(value) if number and np.ndim(value) == 0 else math.nan


def count(value: Any, what: str) -> int:
    """A whole number of at least 1, as an int; raises UsageError if it is none."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise UsageError(
            f"{what} must be a whole number of at least 1, got {_one_line(value)}"
        )
    return int(value)


def numbers(values: Any, count: int, random: bool) -> Num[np.ndarray, " N"]:
    """Numbers [N] of so many images, 0 to N - 1 for None; raises UsageError for others.

    random: whether the network is, whose draws belong to batches and not to images.
    """
    if values is None:
        return np.arange(count)
    values = np.asarray(values)
    whole = values.dtype.kind in "iu" and values.shape == (count,)
    if not whole or values.min() < 0 or len(np.unique(values)) < count:
        raise UsageError(
            f"numbers must be {count} different whole numbers of at least 0, one for each "
            f"image, got {_one_line(values)}"
        )
    if random:
        raise UsageError("numbers go without version 'rand', whose draws are a batch's")
    return values


def _one_line(value: Any) -> str:
    """repr on one line."""
    return " ".join(repr(value).split())


def random_key(key: Any) -> Key[Array, ""]:
    """The key, an old one (uint32) as a new one; raises UsageError if it is not one."""
    try:
        key = rng.typed(key)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if key.ndim:
        raise UsageError(
            f"key must be one key like jax.random.key(0), got {_one_line(key)}"
        )
    return key


def network(logits_fn: Callable, randomised: bool) -> None:
    """Raises UsageError if logits_fn does not take (images), or (images, key)."""
    wanted = ("images", "key") if randomised else ("images",)
    try:
        inspect.signature(logits_fn).bind(*wanted)
    except TypeError:
        version = "'rand'" if randomised else "other than 'rand'"
        raise UsageError(
            f"a version {version} calls logits_fn({', '.join(wanted)}), but it takes "
            f"{inspect.signature(logits_fn)}"
        ) from None
    except ValueError:
        pass  # It does not tell what it takes.


def inputs(images: Any, labels: Any) -> tuple[HostImages, Int[np.ndarray, " B"]]:
    """(images, labels) as numpy arrays; raises UsageError unless they fit the contract."""
    images, labels = np.asarray(images), np.asarray(labels)
    check_images(images)
    if labels.ndim != 1:
        raise UsageError(
            f"labels must be whole numbers [{len(images)}], got {_kind(labels)}"
        )
    check_labels(labels, len(images))
    check_classes(labels)
    return images, labels.astype(np.int32)


def _kind(array: Shaped[AnyArray, "..."]) -> str:
    """Type and shape in words."""
    return f"{array.dtype} {list(array.shape)}"


def check_images(images: Any) -> None:
    """Raises UsageError unless these are [N, H, W, C], float32 in [0, 1] or uint8."""
    if not isinstance(images, np.ndarray | jax.Array):
        raise UsageError(f"images must be an array, got {type(images).__name__}")
    known = images.dtype in (np.float32, np.uint8)
    if not known or images.ndim != 4 or not len(images):
        raise UsageError(
            f"images must be float32 or uint8 [N, H, W, C] with N > 0, got {_kind(images)}"
        )
    _, rows, columns, channels = images.shape
    if rows == 3 and min(columns, channels) > 4 or rows == 1 and columns == channels > 4:
        raise UsageError(
            f"images must be [N, H, W, C], got {list(images.shape)}, which has channels "
            "first: give images.transpose(0, 2, 3, 1), and turn them back in logits_fn"
        )
    if images.dtype == np.uint8 or not concrete(images):
        return
    images = np.asarray(images)
    bad = sum(not np.isfinite(image).all() for image in images)  # no copy of them all
    if bad:
        raise UsageError(f"{bad} of {len(images)} images have pixels of NaN or infinity")
    if images.min() < 0 or images.max() > 1:
        raise UsageError(
            f"images must lie in [0, 1], got {images.min():g} to {images.max():g}: "
            "divide by 255, and normalise inside logits_fn"
        )


def check_labels(labels: Any, size: int, what: str = "labels") -> None:
    """Raises UsageError unless these are classes [size], or probabilities [size, L]."""
    if not isinstance(labels, np.ndarray | jax.Array):
        raise UsageError(f"{what} must be an array, got {type(labels).__name__}")
    whole = labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer)
    shares = labels.ndim == 2 and jnp.issubdtype(labels.dtype, jnp.floating)
    if not (whole or shares) or len(labels) != size:
        raise UsageError(
            f"{what} must be whole numbers [{size}], or probabilities [{size}, classes] "
            f"for an attack called by hand, got {_kind(labels)}"
        )


def check_classes(
    labels: Num[AnyArray, "..."], classes: int | None = None, what: str = "labels"
) -> None:
    """Raises UsageError for labels that are no class of so many, or of any network.

    To be called before they are cast: what does not fit into int32 would wrap.
    """
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise UsageError(
            f"{what} have {labels.shape[1]} classes, but logits_fn has {classes}"
        )
    if labels.ndim == 1 and concrete(labels):
        values = np.asarray(labels)  # in numpy, as jnp would be traced within a trace
        least, most = int(values.min()), int(values.max())
        if least < 0 or most >= (classes or 2**31):
            there = (
                f"logits_fn has {classes} classes"
                if classes
                else "classes are numbers from 0 on that int32 holds"
            )
            raise UsageError(f"{what} run from {least} to {most}, but {there}")


def check_logits(logits: Any, rows: int) -> None:
    """Raises UsageError unless these are an array [rows, L] with L >= 2."""
    array = isinstance(logits, np.ndarray | jax.Array)
    if array and logits.ndim == 2 and logits.shape[0] == rows and logits.shape[1] > 1:
        return
    given = list(logits.shape) if array else f"a {type(logits).__name__}"
    hint = ": choose its logits" if isinstance(logits, tuple | list | dict) else ""
    raise UsageError(
        f"logits_fn must return [{rows}, classes] for {rows} images, with at least two "
        f"classes, got {given}{hint}"
    )


def rows_of(logits: Any, rows: int) -> Logits:
    """Logits as float32; raises UsageError unless they are [rows, L] with L >= 2."""
    check_logits(logits, rows)
    return jnp.asarray(logits, jnp.float32)


def outputs(logits: Float[np.ndarray, "B L"], labels: Int[np.ndarray, " B"]) -> None:
    """Raises UsageError for logits with NaN on all images and labels out of range."""
    if not np.isfinite(logits).all(axis=1).any():
        raise UsageError(f"logits_fn gives NaN or infinity on all {len(logits)} images")
    check_classes(labels, logits.shape[1])
