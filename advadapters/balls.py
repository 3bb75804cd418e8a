"""Balls: the only place where the Linf, L2 and L1 threat models differ.

The allowed set around an image x [B, H, W, C] in [0, 1] is the ball of radius eps
intersected with the box [0, 1]. `project` is the exact Euclidean projection on
that intersection, not one projection after the other: for L2 and L1 the two
differ as soon as a pixel is near 0 or 1, and the shorter way leaves part of the
budget unused (Croce and Hein 2021 show it for L1).

Everything acts on each example alone. Batch are float32, radii are in the same
units as pixels: max |d| for Linf, sqrt(sum d^2) for L2, sum |d| for L1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from advadapters.shapes import (
    AnyArray,
    Array,
    Bool,
    Float,
    Number,
    PerImage,
    PRNGKey,
    Radii,
)

Batch = Float[AnyArray, "B *image"]  # images, or changes of them
Rows = Float[AnyArray, "B D"]  # images, or changes of them, flat
Column = Float[AnyArray, "B 1"]  # a number for each row
Threshold = Column | Number
Noise = Float[AnyArray, "..."]  # of the shape of one image
Shape = tuple[int, ...]
Counts = Float[AnyArray, " B"] | Number
Project = Callable[[Batch, Batch, Radii], Batch]
ToPlane = Callable[[Rows, Rows, PerImage], Rows]

# Halvings of an interval: float32 has 24 bits, the rest is for intervals that start
# far too wide.
BISECTIONS = 32


class Ball(NamedTuple):
    """One threat model.

    Args:
      project: (points, images, eps) -> the nearest points of ball and box, like points.
      step: (points, gradient, size, count) -> points moved by `size`, in the ball's own
        norm, along the direction that raises a linear function most; they are not
        projected. count [B]: over how many coordinates, for L1 alone.
      sample: (key, shape, eps) -> a perturbation that is uniform in the ball; `shape` is
        without B.
      outward: (key, shape, eps) -> a random perturbation at the sphere or outside, to be
        projected.
      norm: (perturbations [B, ...]) -> [B].
      dual: (gradients [B, ...]) -> [B], the largest gain of a linear function per eps.
      to_plane: (points [B, D], weights [B, D], gap [B]) -> the shortest d [B, D], in the
        ball's norm, with <weights, d> = gap and points + d in the box; if the box does
        not reach the plane, the point of the box nearest to it.
    """

    project: Project
    step: Callable[[Batch, Batch, Radii, Counts], Batch]
    sample: Callable[[PRNGKey, Shape, Number], Noise]
    outward: Callable[[PRNGKey, Shape, Number], Noise]
    norm: Callable[[Float[AnyArray, "B ..."]], PerImage]
    dual: Callable[[Float[AnyArray, "B ..."]], PerImage]
    to_plane: ToPlane


# Nothing of this size or below is divided by: its inverse may be infinite.
TINY = 1e-30


def divisor(sizes: Float[AnyArray, "*sizes"]) -> Float[AnyArray, "*sizes"]:
    """Sizes >= 0 to divide by, 1 in place of zeros.

    A maximum with a tiny number would guard eager code alone: a compiler may divide once
    by the product of two such numbers, which is zero.
    """
    return jnp.where(sizes > TINY, sizes, 1)


def flat(images: Float[AnyArray, "B ..."]) -> Rows:
    """[B, ...] -> [B, D]."""
    return images.reshape(images.shape[0], -1)


def _bisect(
    holds: Callable[[Column], Bool[AnyArray, "B 1"]], upper: Column
) -> tuple[Column, Column]:
    """(low, high) [B, 1]: holds(high) is true, holds(low) false, both near the change.

    `holds` is monotone and true at `upper`; if it is true at 0 already, both are 0.
    """

    def halve(_: Any, ends: tuple[Column, Column]) -> tuple[Column, Column]:
        low, high = ends
        middle = 0.5 * (low + high)
        enough = holds(middle)
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    zero = jnp.zeros_like(upper)
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (zero, upper))
    at_once = holds(zero)
    return jnp.where(at_once, zero, low), jnp.where(at_once, zero, high)


def fill(priority: Rows, room: Rows, budget: Column) -> Rows:
    """Spends a budget on coordinates in the order of their priority.

    Each gets its room at most, and coordinates of priority 0 get nothing.
    """

    def spent(threshold: Column) -> Column:
        return jnp.sum(jnp.where(priority > threshold, room, 0), axis=1, keepdims=True)

    top = jnp.max(priority, axis=1, keepdims=True)
    low, high = _bisect(lambda threshold: spent(threshold) <= budget, top)
    full, more = spent(high), spent(low)
    # Between the two thresholds lies one coordinate, or a few that float32 cannot part.
    share = jnp.clip((budget - full) / divisor(more - full), 0, 1)
    return room * jnp.where(priority > high, 1, jnp.where(priority > low, share, 0))


def project_linf(points: Batch, images: Batch, eps: Radii) -> Batch:
    """Clips to [x - eps, x + eps] and [0, 1]: for boxes one after the other is exact."""
    eps = _per_row(eps, images)
    return jnp.clip(points, jnp.maximum(images - eps, 0), jnp.minimum(images + eps, 1))


def _per_row(eps: Radii, images: Batch) -> Float[Array, "..."]:
    """eps, a number or [B], in a shape that broadcasts with images."""
    eps = jnp.asarray(eps, images.dtype)
    return eps.reshape(-1, *[1] * (images.ndim - 1)) if eps.ndim else eps


def _project_dual(
    shrink: Callable[[Rows, Column], Rows],
    norm: Callable[[Rows], Column],
    upper: Callable[[Rows, Column], Column],
) -> Project:
    """A projection on ball and box by its one multiplier m per example.

    The Lagrange conditions give z = clip(x + shrink(y - x, m), 0, 1); the norm of
    z - x falls with m, so bisection finds it.
    """

    def project(points: Batch, images: Batch, eps: Radii) -> Batch:
        center = flat(images)
        delta = flat(points) - center
        eps = jnp.broadcast_to(jnp.asarray(eps, images.dtype), images.shape[:1])[:, None]

        def at(multiplier: Column) -> Rows:
            return jnp.clip(shrink(delta, multiplier), -center, 1 - center)

        _, multiplier = _bisect(lambda m: norm(at(m)) <= eps, upper(delta, eps))
        moved = jnp.clip(center + at(multiplier), 0, 1)
        return moved.reshape(images.shape)

    return project


def _rows_l2(delta: Rows) -> Column:
    """The L2 norm of each row."""
    return jnp.sqrt(jnp.sum(jnp.square(delta), axis=1, keepdims=True))


def _rows_l1(delta: Rows) -> Column:
    """The L1 norm of each row."""
    return jnp.sum(jnp.abs(delta), axis=1, keepdims=True)


project_l2 = _project_dual(
    shrink=lambda delta, m: delta / (1 + m),
    norm=_rows_l2,
    upper=lambda delta, eps: _rows_l2(delta) / eps,
)

project_l1 = _project_dual(
    shrink=lambda delta, m: jnp.sign(delta) * jnp.maximum(jnp.abs(delta) - m, 0),
    norm=_rows_l1,
    upper=lambda delta, eps: jnp.max(jnp.abs(delta), axis=1, keepdims=True),
)


def step_linf(points: Batch, gradient: Batch, size: Radii, count: Counts) -> Batch:
    return points + _per_row(size, points) * jnp.sign(gradient)


def step_l2(points: Batch, gradient: Batch, size: Radii, count: Counts) -> Batch:
    rows = flat(gradient)
    # Scaled first, so that squares of tiny gradients do not vanish.
    rows = rows / divisor(jnp.max(jnp.abs(rows), axis=1, keepdims=True))
    unit = rows / divisor(_rows_l2(rows))
    return points + _per_row(size, points) * unit.reshape(points.shape)


def step_l1(
    points: Batch,
    gradient: Batch,
    size: Radii,
    count: Counts,
    walls: bool | Bool[AnyArray, ""] = True,
) -> Batch:
    """Spends `size` on the coordinates with the largest gradient that have room.

    Each takes at most its room to the box and size / count: where there is room this
    is the sign of the top `count` coordinates (Croce and Hein 2021). Count 1 fills one
    coordinate after the other, which is the exact maximum of a linear function over
    an L1 ball in the box. Without `walls` the top `count` go size / count each, out of
    the box too: then the projection takes from the others what was too much.
    """
    start, slope = flat(points), flat(gradient)
    size = jnp.broadcast_to(jnp.asarray(size, start.dtype), start.shape[:1])[:, None]
    count = jnp.reshape(count, (-1, 1))
    room = jnp.where(slope > 0, 1 - start, start)
    room = jnp.where(walls, room, jnp.inf)
    room = jnp.clip(room, 0, size / jnp.maximum(count, 1))
    amount = fill(jnp.abs(slope), room, size)
    return (start + jnp.sign(slope) * amount).reshape(points.shape)


def sample_linf(key: PRNGKey, shape: Shape, eps: Number) -> Noise:
    return jax.random.uniform(key, shape, jnp.float32, minval=-eps, maxval=eps)


def sample_l2(key: PRNGKey, shape: Shape, eps: Number) -> Noise:
    direction, radius = jax.random.split(key)
    normal = jax.random.normal(direction, shape, jnp.float32)
    size = normal.size
    radius = eps * jax.random.uniform(radius, (), jnp.float32) ** (1 / size)
    return radius * normal / divisor(jnp.sqrt(jnp.sum(jnp.square(normal))))


def sample_l1(key: PRNGKey, shape: Shape, eps: Number) -> Noise:
    """Uniform: D exponentials with signs, over the sum of D + 1 exponentials."""
    sizes, signs = jax.random.split(key)
    total = 1
    for side in shape:
        total *= side
    parts = jax.random.exponential(sizes, (total + 1,), jnp.float32)
    signs = jax.random.rademacher(signs, (total,), dtype=parts.dtype)
    return (eps * signs * parts[:-1] / jnp.sum(parts)).reshape(shape)


def outward_linf(key: PRNGKey, shape: Shape, eps: Number) -> Noise:
    """Uniform, scaled so that the largest coordinate is eps."""
    draw = jax.random.uniform(key, shape, jnp.float32, minval=-1, maxval=1)
    return eps * draw / divisor(jnp.max(jnp.abs(draw)))


def outward_l2(key: PRNGKey, shape: Shape, eps: Number) -> Noise:
    """Uniform on the sphere."""
    draw = jax.random.normal(key, shape, jnp.float32)
    return eps * draw / divisor(jnp.sqrt(jnp.sum(jnp.square(draw))))


def outward_l1(key: PRNGKey, shape: Shape, eps: Number) -> Noise:
    """Normal: its projection on the ball is sparse, as good L1 perturbations are."""
    return jax.random.normal(key, shape, jnp.float32)


def _rooms(points: Rows, signs: Rows) -> Rows:
    """How far each coordinate can go in the direction of `signs` inside the box."""
    return jnp.where(signs > 0, 1 - points, jnp.where(signs < 0, points, 0))


def _towards(points: Rows, weights: Rows, gap: PerImage) -> tuple[Rows, Rows, Rows, Column]:
    """(directions, _rooms, |weights|, gap >= 0): as if the plane were to be climbed to.

    Weights and gap are divided by the largest weight, so that their scale is all one.
    """
    signs = jnp.sign(weights) * jnp.where(gap < 0, -1, 1)[:, None]
    size, gap = jnp.abs(weights), jnp.abs(gap)[:, None]
    scale = divisor(jnp.max(size, axis=1, keepdims=True))
    # No plane further than that is within reach, as _rooms and sizes are at most 1.
    gap = jnp.minimum(gap / scale, 2.0 * size.shape[1])
    return signs, _rooms(points, signs), size / scale, gap


def _to_plane_dual(reach: Callable[[Rows, Threshold], Rows]) -> ToPlane:
    """The shortest d for a norm whose best moves grow with one multiplier m.

    reach(|weights|, m) is how far each coordinate goes where there is room.
    """

    def to_plane(points: Rows, weights: Rows, gap: PerImage) -> Rows:
        signs, room, size, gap = _towards(points, weights, gap)

        def move(multiplier: Column) -> Rows:
            return jnp.minimum(room, reach(size, multiplier))

        def arrived(multiplier: Column) -> Bool[AnyArray, "B 1"]:
            return jnp.sum(size * move(multiplier), axis=1, keepdims=True) >= gap

        # Without the box the multiplier is `least`; at `most` all room is used up. The
        # two can be far apart, so the exponent between them is halved.
        least = gap / divisor(jnp.sum(size * reach(size, 1.0), axis=1, keepdims=True))
        slowest = jnp.min(jnp.where(size > 1e-8, reach(size, 1.0), 1e8), 1, keepdims=True)
        least = jnp.maximum(least, 1e-20)
        ratio = jnp.maximum(1 / slowest / least, 1)
        _, exponent = _bisect(lambda t: arrived(least * ratio**t), jnp.ones_like(gap))
        multiplier = least * ratio**exponent
        return signs * move(multiplier)

    return to_plane


to_plane_linf = _to_plane_dual(lambda size, m: m * jnp.sign(size))
to_plane_l2 = _to_plane_dual(lambda size, m: m * size)


def to_plane_l1(points: Rows, weights: Rows, gap: PerImage) -> Rows:
    """The largest weights first: each unit of distance then gains most."""
    signs, room, size, gap = _towards(points, weights, gap)
    gained = fill(size, size * room, gap)
    return signs * gained / divisor(size)


def _max_abs(delta: Float[AnyArray, "B ..."]) -> PerImage:
    """Linf norm [B] of [B, ...]."""
    return jnp.max(jnp.abs(flat(delta)), axis=1)


def _sum_abs(delta: Float[AnyArray, "B ..."]) -> PerImage:
    """L1 norm [B] of [B, ...]."""
    return _rows_l1(flat(delta))[:, 0]


def _root_squares(delta: Float[AnyArray, "B ..."]) -> PerImage:
    """L2 norm [B] of [B, ...]."""
    return _rows_l2(flat(delta))[:, 0]


LINF = Ball(
    project_linf,
    step_linf,
    sample_linf,
    outward_linf,
    norm=_max_abs,
    dual=_sum_abs,
    to_plane=to_plane_linf,
)
L2 = Ball(
    project_l2,
    step_l2,
    sample_l2,
    outward_l2,
    norm=_root_squares,
    dual=_root_squares,
    to_plane=to_plane_l2,
)
L1 = Ball(
    project_l1,
    step_l1,
    sample_l1,
    outward_l1,
    norm=_sum_abs,
    dual=_max_abs,
    to_plane=to_plane_l1,
)

BALLS = {"linf": LINF, "l2": L2, "l1": L1}
