"""Pyramid attack (Herrmann et al. 2022): perturbations at several scales at once."""

from typing import Annotated

import jax
import jax.numpy as jnp

from advadapters import losses, rng, schema
from advadapters.attacks import checks
from advadapters.attacks.contract import Loss, Steps, Target, ascent, checked
from advadapters.attacks.pgd import choose_goal

SIZES = (7, 14, 0)  # 0 is the size of the images
MULTIPLIERS = (20.0, 10.0, 1.0)

StepSize = Annotated[float, schema.Between(low=0.0), "0 stands for eps / 6"]


def own_step_size(*, eps, step_size=0.0, **_):
    """The step size of these settings of `pyramid`; a traced one is taken as it is."""
    return step_size if not checks.concrete(step_size) or step_size else eps / 6


@checked
def pyramid(
    logits_fn,
    images,
    labels,
    key,
    *,
    norm="linf",
    eps,
    steps: Steps = 5,
    step_size: StepSize = 0.0,
    target: Target = "random",
    loss: Loss = "cross_entropy",
):
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
    step_size = own_step_size(eps=eps, step_size=step_size)
    batch, height, width, channels = images.shape
    sides = [(s, s) if 0 < s < min(height, width) else (height, width) for s in SIZES]
    levels = [jnp.zeros((batch, *side, channels), images.dtype) for side in sides]

    def apply(levels):
        moved = images
        for level, multiplier in zip(levels, MULTIPLIERS, strict=True):
            grown = jax.image.resize(level, images.shape, "nearest")
            moved = jnp.clip(moved + multiplier * grown, 0, 1)
        return moved

    def objective(levels):
        return sign * losses.LOSSES[loss](logits_fn(apply(levels)), goal), ()

    def climb(_, levels):
        _, _, slopes = ascent(objective)(levels)
        return [
            jnp.clip(level + step_size * jnp.sign(slope), -eps, eps)
            for level, slope in zip(levels, slopes, strict=True)
        ]

    return jax.lax.stop_gradient(apply(jax.lax.fori_loop(0, steps, climb, levels)))
