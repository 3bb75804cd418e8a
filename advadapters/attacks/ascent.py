"""Projected gradient ascent whose parts are functions: the core of the attacks.

    points = ascend(objective, start, move=move, project=project, steps=10).points

climbs `objective` from `start`: each step takes the gradient at the points, moves them
along it, and projects them back into what is allowed. `pgd`, `pma`, `pyramid` and `n_fgsm`
are fillings of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from advadapters import trees
from advadapters.balls import Ball
from advadapters.shapes import (
    AnyArray,
    Array,
    Bool,
    Float,
    Images,
    Int,
    Number,
    PerImage,
    Points,
)


class Ascent(NamedTuple):
    """Where an ascent stands; the loop carries it, and it is what `ascend` returns.

    step: how many steps have been taken. points: where the last of them led. memory: the
    state of `transform`. kept: what `keep` has made of the points so far.
    """

    step: Int[Array, ""]
    points: Points
    memory: Any
    kept: Any


Objective = Callable[..., PerImage | tuple[PerImage, Any]]
Move = Callable[[Points, Points, Int[Array, ""]], Points]
Project = Callable[[Points], Points]


def ascend(
    objective: Objective,
    start: Points,
    *,
    move: Move,
    project: Project,
    steps: int,
    transform: optax.GradientTransformation | None = None,
    vary: Callable[[Points, Int[Array, ""]], tuple[Points, Any]] | None = None,
    keep: Callable[..., Any] | None = None,
    kept: Any = None,
    until: Callable[[Ascent], Bool[AnyArray, ""]] | None = None,
    has_aux: bool = False,
) -> Ascent:
    """Climbs an objective by projected gradient steps.

    An attack with a step rule of its own is a few lines. This one takes steps that get
    shorter, along the gradient divided by its mean size:

    >>> def decaying(logits_fn, images, labels, key, *, norm, eps, steps=10):
    ...     def objective(points, step):
    ...         return losses.cross_entropy(logits_fn(points), labels)
    ...
    ...     def move(points, slope, step):
    ...         size = jnp.mean(jnp.abs(slope), axis=(1, 2, 3), keepdims=True)
    ...         return points + eps / (step + 1) * slope / (size + 1e-12)
    ...
    ...     project = within(BALLS[norm], images, eps)
    ...     return ascend(objective, images, move=move, project=project, steps=steps).points

    Args:
      objective: (points, step) -> loss [B], which is climbed; the loss of an example must
        depend on its own points alone. With `has_aux` it returns (loss, more).
      start: the first points, an array [B, ...] or a tree of such arrays.
      move: (points, slope, step) -> points, the step rule; see `steepest`.
      project: points -> the nearest points that are allowed; see `within`.
      steps: how many steps are taken, at most where `until` is given.
      transform: what slopes go through first, such as `optax.scale_by_adam()` or
        `optax.trace(0.9)`; without one they are taken as they are.
      vary: (points, step) -> (points, argument), called before each gradient: where it is
        taken, and what the objective is given in place of the step.
      keep: (kept, points, loss, more) -> kept, called after each gradient with the points
        where it was taken, from `kept` on; `more` is None without `has_aux`.
      until: (Ascent) -> whether to stop early, bool [].

    Slopes are finite, and losses are not NaN; see `with_slopes`. No gradient flows through
    the result. One trace, whatever the number of steps.
    """
    look = with_slopes(objective, has_aux=has_aux)

    def advance(state: Ascent) -> Ascent:
        points, argument = state.points, state.step
        if vary is not None:
            points, argument = vary(points, argument)
        loss, more, slope = look(points, argument)
        kept = state.kept if keep is None else keep(state.kept, points, loss, more)
        memory = state.memory
        if transform is not None:
            with jax.numpy_dtype_promotion("standard"):  # optax mixes types
                slope, memory = transform.update(slope, memory, points)
            slope = trees.finite(slope)  # moments of huge slopes overflow
        points = project(move(points, slope, state.step))
        return Ascent(state.step + 1, points, memory, kept)

    memory = () if transform is None else transform.init(start)
    state = Ascent(jnp.zeros((), jnp.int32), start, memory, kept)
    if until is None:
        state = jax.lax.fori_loop(0, steps, lambda _, state: advance(state), state)
    else:
        more = lambda state: (state.step < steps) & ~until(state)  # noqa: E731
        state = jax.lax.while_loop(more, advance, state)
    return jax.lax.stop_gradient(state)


def with_slopes(
    objective: Objective, *, has_aux: bool = False
) -> Callable[..., tuple[PerImage, Any, Points]]:
    """The function (points, ...) -> (loss [B], more, slopes of the loss) of an objective.

    Slopes are finite: an entry that is not becomes 0, as it says nothing of the others.
    Otherwise one root of 0 in a network would switch the attack off for the whole image.
    Nor is any loss NaN: one without a value ranks below all others.
    """

    def total(points: Points, *args: Any) -> tuple[Float[Array, ""], tuple[PerImage, Any]]:
        value: Any = objective(points, *args)
        loss, more = value if has_aux else (value, None)
        return jnp.sum(loss), (loss, more)

    def look(points: Points, *args: Any) -> tuple[PerImage, Any, Points]:
        (_, (loss, more)), slopes = gradient(points, *args)
        return jnp.where(jnp.isnan(loss), -jnp.inf, loss), more, trees.finite(slopes)

    gradient = jax.value_and_grad(total, has_aux=True)
    return look


def steepest(ball: Ball, size: Number, steps: int) -> Move:
    """The step rule of steepest ascent in the ball's own norm, by `size` in each step.

    In L1, a step goes over fewer and fewer coordinates; see `spread`.
    """

    def move(points: Images, slope: Images, step: Int[Array, ""]) -> Images:
        count = jnp.full(len(points), spread(step, steps, points[0].size), jnp.float32)
        return ball.step(points, slope, size, count)

    return move


def within(ball: Ball, images: Images, eps: Number) -> Project:
    """The projection on the ball around the images and on the box [0, 1] together."""
    return lambda points: ball.project(points, images, eps)


def spread(step: Int[Array, ""] | int, steps: int, size: int) -> Float[Array, ""]:
    """Over how many of `size` coordinates an L1 step goes: from 5% of them down to 1.

    With a fixed number the iterates never get sparser than that, and part of what an
    L1 ball allows is out of reach.
    """
    return jnp.maximum((0.05 * size) ** (1 - step / max(steps - 1, 1)), 1.0)
