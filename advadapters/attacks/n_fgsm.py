"""N-FGSM (de Jorge et al. 2022): one step from noise larger than the ball, not clipped."""

from typing import Annotated

import jax
import jax.numpy as jnp

from advadapters import losses, rng, schema
from advadapters.attacks.ascent import ascend
from advadapters.attacks.contract import checked
from advadapters.balls import BALLS
from advadapters.shapes import Images, Labels, LogitsFn, Number, PRNGKeys

Noise = Annotated[float, schema.Between(low=0.0), "half the side of its cube, in eps"]


@checked
def n_fgsm(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    key: PRNGKeys,
    *,
    norm: str = "linf",
    eps: Number,
    noise: Noise = 2.0,
) -> Images:
    """Images one step of eps along the gradient's sign from uniform noise of noise * eps.

    The result is not clipped to the ball, which is what keeps training with it from
    overfitting to the single step: it lies within (1 + noise) eps in Linf, and in [0, 1].
    """
    ball = BALLS[norm]
    images = jax.lax.stop_gradient(images)
    keys = rng.per_example(key, images.shape[0])
    draw = jax.vmap(lambda k: ball.sample(rng.fold(k, "start"), images.shape[1:], eps))
    return ascend(
        lambda points, step: losses.cross_entropy(logits_fn(points), labels),
        jnp.clip(images + noise * draw(keys), 0, 1),
        move=lambda points, slope, step: points + eps * jnp.sign(slope),
        project=lambda points: jnp.clip(points, 0, 1),
        steps=1,
    ).points
