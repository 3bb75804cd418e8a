"""N-FGSM (de Jorge et al. 2022): one step from noise larger than the ball, not clipped."""

from typing import Annotated

import jax
import jax.numpy as jnp

from advadapters import losses, rng, schema
from advadapters.attacks.contract import ascent, checked
from advadapters.balls import BALLS

Noise = Annotated[float, schema.Between(low=0.0), "half the side of its cube, in eps"]


@checked
def n_fgsm(logits_fn, images, labels, key, *, norm="linf", eps, noise: Noise = 2.0):
    """Images one step of eps along the gradient's sign from uniform noise of noise * eps.

    The result is not clipped to the ball, which is what keeps training with it from
    overfitting to the single step: it lies within (1 + noise) eps in Linf, and in [0, 1].
    """
    ball = BALLS[norm]
    images = jax.lax.stop_gradient(images)
    keys = rng.per_example(key, images.shape[0])
    draw = jax.vmap(lambda k: ball.sample(rng.fold(k, "start"), images.shape[1:], eps))
    start = jnp.clip(images + noise * draw(keys), 0, 1)
    look = ascent(lambda points: (losses.cross_entropy(logits_fn(points), labels), ()))
    _, _, slope = look(start)
    return jax.lax.stop_gradient(jnp.clip(start + eps * jnp.sign(slope), 0, 1))
