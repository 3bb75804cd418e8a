"""What makes attacks on vision transformers weaker early in training (Mo et al. 2022).

"When Adversarial Training Meets Vision Transformers", NeurIPS 2022. Both tricks leave
what an example is attacked through as it is with a probability, or in a share, `keep`
that grows from 0 to 1 in a warm-up, after which they are off. They belong to the making
of the attack alone: the training pass that follows knows nothing of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from advadapters import rng
from advadapters.shapes import AnyArray, Bool, Float, Images, Int, PRNGKey, PRNGKeys, Scalar

TRICKS = {"ard": "attention random dropping", "prm": "perturbation random masking"}


def keep(step: Int[AnyArray, "..."], warmup: float) -> Float[AnyArray, "..."]:
    """min(step / warmup, 1) as float32, of the shape of `step`; warmup is in steps."""
    return jnp.minimum(step / jnp.float32(warmup), 1.0)


def vary(
    names: Sequence[str],
    logits_fn: Callable,
    batch: Mapping[str, Any],
    keep: Float[AnyArray, " B"],
    key: PRNGKey,
    patch: int,
) -> Callable[[Any, Any], tuple[Any, Callable]]:
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

    def apply_tricks(points: Images, turn: Any) -> tuple[Images, Callable]:
        function = logits_fn
        if "ard" in names:
            gate = (rng.fold(key, "ard", turn), keep)

            def function(images: Images) -> Any:
                return logits_fn(images, gate=gate)

        if "prm" in names:
            keys = rng.by_index(rng.fold(key, "prm", turn), batch["index"])
            points = mask(points, batch["images"], keys, 1 - keep, patch)
        return points, function

    return apply_tricks


def mask(
    points: Images,
    images: Images,
    keys: PRNGKeys,
    share: Float[AnyArray, " B"],
    patch: int,
) -> Images:
    """points [B, H, W, C], but the images' own pixels in floor(P * share) random patches.

    P is the number of patches of an image, keys and share are [B].
    """
    rows, columns = points.shape[1] // patch, points.shape[2] // patch

    def draw_pixels(key: PRNGKey, share: Scalar) -> Bool[AnyArray, "H W"]:
        order = jax.random.permutation(key, rows * columns).reshape(rows, columns)
        patches = order < jnp.floor(rows * columns * share)
        return jnp.repeat(jnp.repeat(patches, patch, axis=0), patch, axis=1)

    return jnp.where(jax.vmap(draw_pixels)(keys, share)[..., None], images, points)
