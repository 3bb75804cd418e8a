"""Square attack (Andriushchenko et al. 2020): random search, no gradients.

Follows the authors' code as AutoAttack runs it (p = 0.8, margin loss, no rescaling of
the schedule), but every image has its own squares and signs, so that its result does
not depend on the batch, and squares may touch the lower and right border, which the
original's drawing of positions leaves out.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses, rng, schema
from advadapters.attacks.contract import (
    Outcome,
    Problem,
    checked,
    problem_of,
    rows_where,
)
from advadapters.balls import BALLS, Ball
from advadapters.shapes import (
    AnyArray,
    Array,
    Bool,
    Float,
    Images,
    Int,
    Labels,
    LogitsFn,
    Marks,
    Number,
    PerImage,
    PRNGKey,
    PRNGKeys,
)

P_INIT = 0.8
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Search(NamedTuple):
    """What the loop carries: queries done, the best points, their margin, broken [B]."""

    step: Int[Array, ""]
    points: Images
    loss: PerImage
    broken: Marks


Image = Float[AnyArray, "H W C"]
Window = Bool[Array, "H W 1"]
Corner = tuple[Int[AnyArray, ""], Int[AnyArray, ""]]  # row, column
Shape = tuple[int, int]  # height, width
Side = int | Int[AnyArray, ""]
# (start, propose): the first points, of keys [B]; others, of keys, points and side.
Moves = tuple[
    Callable[[PRNGKeys], Images], Callable[[PRNGKeys, Images, Int[Array, ""]], Images]
]


Queries = Annotated[int, schema.Between(low=1), "forward passes of an image at most"]


@checked
def square(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    key: PRNGKeys,
    *,
    norm: str,
    eps: Number,
    queries: Queries = 5000,
) -> Images:
    """The best images [B, H, W, C] found within the queries."""
    labels = losses.class_of(labels)
    problem = problem_of(logits_fn, images, labels, key, norm=norm, eps=eps)
    return run_square(problem, queries=queries).points


def run_square(problem: Problem, *, queries: int = 5000) -> Outcome:
    """Random search; a tie counts only if the label loses it."""
    images, eps, linf = problem.images, problem.eps, problem.norm == "linf"
    sides = side_lengths(queries, images.shape[1:3], smallest=1 if linf else 3)
    if linf:
        start, propose = _linf_moves(images, eps)
    else:
        start, propose = _window_moves(images, eps, problem.ball, sides)
    sides = jnp.array(sides)

    def loss_of(points: Images) -> tuple[PerImage, Marks]:
        logits = problem.logits_fn(points)
        labels = problem.labels
        return losses.margin(logits, labels), losses.misclassified(logits, labels)

    def more(search: Search) -> Bool[Array, ""]:
        return (search.step < queries) & jnp.any(problem.active & ~search.broken)

    def query(search: Search) -> Search:
        draws = problem.draws("square", search.step)
        points = propose(draws, search.points, sides[search.step])
        loss, wrong = loss_of(points)
        # What is broken stays as it is.
        better = ~search.broken & (wrong | (loss > search.loss))
        return Search(
            step=search.step + 1,
            points=rows_where(better, points, search.points),
            loss=jnp.where(better, loss, search.loss),
            broken=search.broken | wrong,
        )

    points = start(problem.draws("square start"))
    search = Search(jnp.zeros((), jnp.int32), points, *loss_of(points))
    search = jax.lax.while_loop(more, query, search)
    points = jax.lax.stop_gradient(search.points)
    return Outcome(points, search.broken, search.step + 1)


def side_lengths(
    queries: int, shape: tuple[int, ...], smallest: int
) -> Int[np.ndarray, " queries"]:
    """The side of the square at each query, int32 [queries]; odd where 3 is the least."""
    area = shape[0] * shape[1]
    sides = []
    for query in range(queries):
        share = P_INIT / 2 ** sum(query > limit for limit in HALVINGS)
        side = max(round(math.sqrt(share * area)), smallest)
        sides.append(side + (smallest == 3 and side % 2 == 0))
    return np.minimum(np.array(sides, np.int32), min(shape))


def _corner(key: PRNGKey, shape: Shape, side: Side) -> Corner:
    """A uniform upper left corner of a window of this side inside the image."""
    row, column = jax.random.split(key)
    return (
        jax.random.randint(row, (), 0, shape[0] - side + 1, jnp.int32),
        jax.random.randint(column, (), 0, shape[1] - side + 1, jnp.int32),
    )


def _window(position: Corner, side: Side, shape: Shape) -> Window:
    """bool [H, W, 1]: the window at a corner."""
    inside = [
        (jnp.arange(size) >= at) & (jnp.arange(size) < at + side)
        for at, size in zip(position, shape, strict=True)
    ]
    return (inside[0][:, None] & inside[1][None, :])[:, :, None]


def _linf_moves(images: Images, eps: Number) -> Moves:
    """(start, propose) for Linf: stripes, then squares of +-eps in every channel."""
    shape = images.shape[1], images.shape[2]
    low, high = jnp.maximum(images - eps, 0), jnp.minimum(images + eps, 1)

    def start(keys: PRNGKeys) -> Images:
        def stripes(key: PRNGKey) -> Float[Array, "1 W C"]:
            return jax.random.rademacher(
                key, (1, images.shape[2], images.shape[3]), dtype=images.dtype
            )

        return jnp.clip(images + eps * jax.vmap(stripes)(keys), 0, 1)

    def propose(keys: PRNGKeys, points: Images, side: Int[Array, ""]) -> Images:
        def move(key: PRNGKey) -> Image:
            place, sign = jax.random.split(key)
            box = _window(_corner(place, shape, side), side, shape)
            signs = jax.random.rademacher(sign, (1, 1, images.shape[3]), dtype=images.dtype)
            return jnp.where(box, 2 * eps * signs, 0)

        return jnp.clip(points + jax.vmap(move)(keys), low, high)

    return start, propose


def _bump(rows: int, columns: int) -> Float[np.ndarray, "rows columns"]:
    """The authors' pyramid on a rectangle: rings whose weights fall as 1 / n^2."""
    values = np.zeros((rows, columns))
    top, left = rows // 2, columns // 2
    for ring in range(max(rows // 2, columns // 2) + 1):
        size = 2 * ring + 1
        values[max(top, 0) : top + size, max(left, 0) : left + size] += 1 / (ring + 1) ** 2
        top, left = top - 1, left - 1
    return values / np.sqrt((values**2).sum())


def _pattern(side: int) -> Float[np.ndarray, "side side"]:
    """Two bumps of opposite sign, one above the other, [side, side], of L2 norm 1."""
    values = np.concatenate([_bump(side // 2, side), -_bump(side - side // 2, side)])
    return values / np.sqrt((values**2).sum())


def _pattern_table(
    sides: Sequence[int] | Int[np.ndarray, " S"], shape: Shape
) -> Float[Array, "S 2 _ _"]:
    """[S, 2, 2H, 2W]: each side's pattern, upright and turned, its corner at (H, W)."""
    height, width = shape
    table = np.zeros((len(sides), 2, 2 * height, 2 * width), np.float32)
    for number, side in enumerate(map(int, sides)):
        upright = _pattern(side)
        for turned, values in enumerate((upright, upright.T)):
            table[number, turned, height : height + side, width : width + side] = values
    return jnp.array(table)


def _size_of(
    ball: Ball, delta: Float[AnyArray, "..."], axes: tuple[int, ...]
) -> Float[Array, "..."]:
    """The L1 or L2 norm over some axes, which stay with length 1."""
    if ball is BALLS["l1"]:
        return jnp.sum(jnp.abs(delta), axis=axes, keepdims=True)
    return jnp.sqrt(jnp.sum(jnp.square(delta), axis=axes, keepdims=True))


def _budget(ball: Ball, delta: Image, union: Window, eps: Number) -> Float[Array, "1 1 1"]:
    """What a window may have in each channel: what is left of eps, and what is in there.

    union: of the window and of the one from which it takes.
    """
    axes, channels = (0, 1, 2), delta.shape[2]
    used = _size_of(ball, delta, axes)
    both = _size_of(ball, jnp.where(union, delta, 0), axes)
    if ball is BALLS["l1"]:
        return jnp.maximum(eps - used, 0) / channels + both
    return jnp.sqrt(jnp.maximum(eps**2 - used**2, 0) / channels + both**2)


def _window_moves(
    images: Images, eps: Number, ball: Ball, sides: Int[np.ndarray, " queries"]
) -> Moves:
    """(start, propose) for L2 and L1: the budget of one window goes to another."""
    shape, channels = (images.shape[1], images.shape[2]), images.shape[3]
    tile = min(max(min(shape) // 5, 2), min(shape))
    known = np.unique([tile, *sides])
    table = _pattern_table(known, shape)

    def place(
        side: Side, position: Corner | Int[AnyArray, " 2"], turned: Int[Array, ""]
    ) -> Float[Array, "H W 1"]:
        """The pattern of a side with its corner at a position, [H, W, 1]."""
        number = jnp.searchsorted(known, side)
        at = (number, turned, shape[0] - position[0], shape[1] - position[1])
        at = [jnp.int32(start) for start in at]
        return jax.lax.dynamic_slice(table, at, (1, 1, *shape))[0, 0, :, :, None]

    def scaled(delta: Images) -> Images:
        norm = jnp.maximum(_size_of(ball, delta, (1, 2, 3)), 1e-12)
        return jnp.clip(images + delta * (eps / norm), 0, 1)

    def start(keys: PRNGKeys) -> Images:
        rows, columns = (range(0, size - tile + 1, tile) for size in shape)
        corners = np.array([(r, c) for r in rows for c in columns], np.int32)

        def add(
            key: PRNGKey, delta: Image, numbered: tuple[Int[Array, ""], Int[Array, " 2"]]
        ) -> tuple[Image, None]:
            number, position = numbered
            flip_key, sign_key = jax.random.split(rng.fold(key, number))
            signs = jax.random.rademacher(sign_key, (1, 1, channels), dtype=delta.dtype)
            turned = jax.random.randint(flip_key, (), 0, 2, jnp.int32)
            return delta + place(tile, position, turned) * signs, None

        def tiles(key: PRNGKey) -> Image:
            delta = jnp.zeros((*shape, channels), images.dtype)
            numbered = (jnp.arange(len(corners)), jnp.asarray(corners))
            return jax.lax.scan(functools.partial(add, key), delta, numbered)[0]

        return scaled(jax.vmap(tiles)(keys))

    def propose(keys: PRNGKeys, points: Images, side: Int[Array, ""]) -> Images:
        def move(key: PRNGKey, delta: Image) -> Image:
            to_key, from_key, flip_key, sign_key = jax.random.split(key, 4)
            position = _corner(to_key, shape, side)
            target = _window(position, side, shape)
            source = _window(_corner(from_key, shape, side), side, shape)
            old = jnp.where(target, delta, 0)  # [H, W, C]
            old = old / (_size_of(ball, old, (0, 1)) + 1e-12)
            signs = jax.random.rademacher(sign_key, (1, 1, channels), dtype=delta.dtype)
            turned = jax.random.randint(flip_key, (), 0, 2, jnp.int32)
            fresh = place(side, position, turned) * signs + old
            fresh = fresh / (_size_of(ball, fresh, (0, 1)) + 1e-12)
            fresh = fresh * _budget(ball, delta, target | source, eps)
            return jnp.where(target, fresh, jnp.where(source, 0, delta))

        return scaled(jax.vmap(move)(keys, points - images))

    return start, propose
