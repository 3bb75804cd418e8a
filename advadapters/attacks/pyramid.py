"""Pyramid attack (Herrmann et al. 2022): perturbations at several scales at once."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from advadapters import losses, rng, schema
from advadapters.attacks import checks
from advadapters.attacks.ascent import ascend
from advadapters.attacks.contract import Loss, Steps, Target, checked
from advadapters.attacks.pgd import choose_goal
from advadapters.shapes import (
    AnyArray,
    Float,
    Images,
    Int,
    Labels,
    LogitsFn,
    Number,
    PerImage,
    PRNGKeys,
    Scalar,
)

SIZES = (7, 14, 0)  # 0 is the size of the images
MULTIPLIERS = (20.0, 10.0, 1.0)

StepSize = Annotated[float, schema.Between(low=0.0), "0 stands for eps / 6"]
Levels = list[Float[AnyArray, "B _ _ C"]]  # a grid of pixels for each size


def default_step_size(*, eps: Number, step_size: Number = 0.0, **_: Any) -> Number:
    """The step size of these settings of `pyramid`; a traced one is taken as it is."""
    return step_size if not checks.concrete(step_size) or step_size else eps / 6


@checked
def pyramid(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    key: PRNGKeys,
    *,
    norm: str = "linf",
    eps: Number,
    steps: Steps = 5,
    step_size: StepSize | Scalar = 0.0,
    target: Target = "random",
    loss: Loss = "cross_entropy",
) -> Images:
    """Images moved by coarse, middle and fine perturbations, by default to random classes.

    Each level is a grid of pixels enlarged to the image, kept in [-eps, eps] and then
    multiplied by 20, 10 or 1; levels are added and clipped to [0, 1] in turn. So the
    result lies within 31 eps in Linf, not within eps. The published setting, for images
    in [-1, 1], is eps 6/255 and step 1/255: here, 3/255 and 0.5/255 (step_size 0 asks
    for eps / 6). Steps follow the gradient's sign from zero.
    """
    images = jax.lax.stop_gradient(images)
    keys = rng.per_example(key, images.shape[0])
    goal, sign = choose_goal(logits_fn, images, labels, keys, target)
    size = default_step_size(eps=eps, step_size=step_size)
    batch, height, width, channels = images.shape
    sides = [(s, s) if 0 < s < min(height, width) else (height, width) for s in SIZES]

    def apply(levels: Levels) -> Images:
        moved = images
        for level, multiplier in zip(levels, MULTIPLIERS, strict=True):
            grown = jax.image.resize(level, images.shape, "nearest")
            moved = jnp.clip(moved + multiplier * grown, 0, 1)
        return moved

    def objective(levels: Levels, step: Int[AnyArray, ""]) -> PerImage:
        return sign * losses.LOSSES[loss](logits_fn(apply(levels)), goal)

    def move(levels: Levels, slopes: Levels, step: Int[AnyArray, ""]) -> Levels:
        moves = zip(levels, slopes, strict=True)
        return [level + size * jnp.sign(slope) for level, slope in moves]

    def project(levels: Levels) -> Levels:
        return [jnp.clip(level, -eps, eps) for level in levels]

    start = [jnp.zeros((batch, *side, channels), images.dtype) for side in sides]
    climbed = ascend(objective, start, move=move, project=project, steps=steps)
    return jax.lax.stop_gradient(apply(climbed.points))
