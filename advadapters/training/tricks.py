"""What makes attacks on vision transformers weaker early in training (Mo et al. 2022).

"When Adversarial Training Meets Vision Transformers", NeurIPS 2022. Both tricks leave
what an example is attacked through as it is with a probability, or in a share, `keep`
that grows from 0 to 1 in a warm-up, after which they are off. They belong to the making
of the attack alone: the training pass that follows knows nothing of them.
"""

import jax
import jax.numpy as jnp

from advadapters import rng

TRICKS = {"ard": "attention random dropping", "prm": "perturbation random masking"}


def keep(step, warmup):
    """min(step / warmup, 1) as float32 [B]; step int [B], warmup in steps."""
    return jnp.minimum(step / jnp.float32(warmup), 1.0)


def vary(names, logits_fn, batch, keep, key, patch):
    """The argument `vary` of PGD that does the tricks `names`.

    ard: in every backward pass, each residual branch's gradient is dropped with
      probability 1 - keep, each branch and example on its own. The skip connections'
      gradients and all values stay.
    prm: before every pass, floor(P (1 - keep)) of an image's P patches lose their
      perturbation and start again at the image; see `mask`.

    Args:
      names: of TRICKS.
      logits_fn: (images, gate=(key, keep [B])) -> logits; without gate unless "ard".
      batch: with the clean "images" [B, H, W, C] and their numbers "index" [B].
      keep: float [B]. key: one key. patch: side of the patches in pixels.
    """

    def varied(points, turn):
        function = logits_fn
        if "ard" in names:
            gate = (rng.fold(key, "ard", turn), keep)

            def function(images):
                return logits_fn(images, gate=gate)

        if "prm" in names:
            keys = rng.by_index(rng.fold(key, "prm", turn), batch["index"])
            points = mask(points, batch["images"], keys, 1 - keep, patch)
        return points, function

    return varied


def mask(points, images, keys, share, patch):
    """points [B, H, W, C], but the images' own pixels in floor(P * share) random patches.

    P is the number of patches of an image, keys and share are [B].
    """
    rows, columns = points.shape[1] // patch, points.shape[2] // patch

    def one(key, share):
        order = jax.random.permutation(key, rows * columns).reshape(rows, columns)
        chosen = order < jnp.floor(rows * columns * share)
        return jnp.repeat(jnp.repeat(chosen, patch, axis=0), patch, axis=1)

    return jnp.where(jax.vmap(one)(keys, share)[..., None], images, points)
