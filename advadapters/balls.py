"""Balls: the only place where the Linf, L2 and L1 threat models differ.

The allowed set around an image x [B, H, W, C] in [0, 1] is the ball of radius eps
intersected with the box [0, 1]. `project` is the exact Euclidean projection on
that intersection, not one projection after the other: for L2 and L1 the two
differ as soon as a pixel is near 0 or 1, and the shorter way leaves part of the
budget unused (Croce and Hein 2021 show it for L1).

Everything acts on each example alone. Images are float32, radii are in the same
units as pixels: max |d| for Linf, sqrt(sum d^2) for L2, sum |d| for L1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Halvings of the multiplier's interval: float32 has 24 bits, and the start of the
# interval can be 2^16 times the solution before the last bits are lost.
BISECTIONS = 40


class Ball(NamedTuple):
    """One threat model.

    project: (points, images, eps) -> the nearest points of ball and box, like points
    step:    (points, gradient, size) -> points moved by `size`, in the ball's own
             norm, along the direction that raises a linear function most; not projected
    sample:  (key, shape, eps) -> perturbations uniform in the ball, `shape` without B
    norm:    (perturbations [B, ...]) -> [B]
    """

    project: Callable
    step: Callable
    sample: Callable
    norm: Callable


def flat(images):
    """[B, ...] -> [B, D]."""
    return images.reshape(images.shape[0], -1)


def bisect_multiplier(shrink, norm, upper, eps):
    """The smallest multiplier [B, 1] with norm(shrink(multiplier)) <= eps.

    `norm(shrink(m))` falls as m grows and is at most eps at `upper`. The upper end
    of the last interval is returned: there the constraint holds.
    """

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        inside = norm(shrink(middle)) <= eps
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    zero = jnp.zeros_like(upper)
    fits = norm(shrink(zero)) <= eps
    _, high = jax.lax.fori_loop(0, BISECTIONS, halve, (zero, upper))
    return jnp.where(fits, zero, high)


def project_linf(points, images, eps):
    """Clips to [x - eps, x + eps] and [0, 1]: for boxes one after the other is exact."""
    eps = per_row(eps, images)
    return jnp.clip(points, jnp.maximum(images - eps, 0), jnp.minimum(images + eps, 1))


def per_row(eps, images):
    """eps, a number or [B], in a shape that broadcasts with images."""
    eps = jnp.asarray(eps, images.dtype)
    return eps.reshape(-1, *[1] * (images.ndim - 1)) if eps.ndim else eps


def project_dual(shrink, norm, upper):
    """A projection on ball and box by its one multiplier m per example.

    The Lagrange conditions give z = clip(x + shrink(y - x, m), 0, 1); the norm of
    z - x falls with m, so bisection finds it.
    """

    def project(points, images, eps):
        center = flat(images)
        delta = flat(points) - center
        eps = jnp.broadcast_to(jnp.asarray(eps, images.dtype), images.shape[:1])[:, None]

        def at(multiplier):
            return jnp.clip(shrink(delta, multiplier), -center, 1 - center)

        multiplier = bisect_multiplier(at, norm, upper(delta, eps), eps)
        moved = jnp.clip(center + at(multiplier), 0, 1)
        return moved.reshape(images.shape)

    return project


def rows_l2(delta):
    return jnp.sqrt(jnp.sum(jnp.square(delta), axis=1, keepdims=True))


def rows_l1(delta):
    return jnp.sum(jnp.abs(delta), axis=1, keepdims=True)


project_l2 = project_dual(
    shrink=lambda delta, m: delta / (1 + m),
    norm=rows_l2,
    upper=lambda delta, eps: rows_l2(delta) / eps,
)

project_l1 = project_dual(
    shrink=lambda delta, m: jnp.sign(delta) * jnp.maximum(jnp.abs(delta) - m, 0),
    norm=rows_l1,
    upper=lambda delta, eps: jnp.max(jnp.abs(delta), axis=1, keepdims=True),
)


def step_linf(points, gradient, size):
    return points + per_row(size, points) * jnp.sign(gradient)


def step_l2(points, gradient, size):
    rows = flat(gradient)
    # Scaled first, so that squares of tiny gradients do not vanish.
    rows = rows / jnp.maximum(jnp.max(jnp.abs(rows), axis=1, keepdims=True), TINY)
    unit = rows / jnp.maximum(rows_l2(rows), TINY)
    return points + per_row(size, points) * unit.reshape(points.shape)


TINY = 1e-30


def step_l1(points, gradient, size, sparsity=0.05):
    """Spends `size` on the coordinates with the largest gradient that have room.

    Each takes at most its room to the box and size / (sparsity * D): where there is
    room this is the sign of the top 5% coordinates (the start value of Croce and
    Hein's APGD); sparsity 0 fills one coordinate after the other, which is the exact
    maximum of a linear function over an L1 ball in the box.
    """
    start, slope = flat(points), flat(gradient)
    size = jnp.broadcast_to(jnp.asarray(size, start.dtype), start.shape[:1])[:, None]
    room = jnp.where(slope > 0, 1 - start, jnp.where(slope < 0, start, 0))
    most = size / jnp.maximum(sparsity * start.shape[1], 1)
    room = jnp.clip(room, 0, most)
    order = jnp.argsort(jnp.where(room > 0, -jnp.abs(slope), jnp.inf), axis=1)
    sorted_room = jnp.take_along_axis(room, order, axis=1)
    before = jnp.cumsum(sorted_room, axis=1) - sorted_room
    spent = jnp.clip(size - before, 0, sorted_room)
    amount = jnp.put_along_axis(jnp.zeros_like(start), order, spent, 1, inplace=False)
    return (start + jnp.sign(slope) * amount).reshape(points.shape)


def sample_linf(key, shape, eps):
    return jax.random.uniform(key, shape, minval=-eps, maxval=eps)


def sample_l2(key, shape, eps):
    direction, radius = jax.random.split(key)
    normal = jax.random.normal(direction, shape)
    size = normal.size
    radius = eps * jax.random.uniform(radius) ** (1 / size)
    return radius * normal / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(normal))), TINY)


def sample_l1(key, shape, eps):
    """Uniform: D exponentials with signs, over the sum of D + 1 exponentials."""
    sizes, signs = jax.random.split(key)
    total = 1
    for side in shape:
        total *= side
    parts = jax.random.exponential(sizes, (total + 1,))
    signs = jax.random.rademacher(signs, (total,), dtype=parts.dtype)
    return (eps * signs * parts[:-1] / jnp.sum(parts)).reshape(shape)


LINF = Ball(
    project_linf,
    step_linf,
    sample_linf,
    norm=lambda delta: jnp.max(jnp.abs(flat(delta)), axis=1),
)
L2 = Ball(project_l2, step_l2, sample_l2, norm=lambda delta: rows_l2(flat(delta))[:, 0])
L1 = Ball(project_l1, step_l1, sample_l1, norm=lambda delta: rows_l1(flat(delta))[:, 0])

BALLS = {"linf": LINF, "l2": L2, "l1": L1}
