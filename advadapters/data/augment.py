"""Augmentation on the device, under jit: uint8 in, images in [0, 1] and soft labels out.

Per-example draws take per-example keys, so they do not depend on the device count.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advadapters import rng
from advadapters.pixels import to_float
from advadapters.shapes import (
    AnyArray,
    Array,
    Bool,
    Float,
    Images,
    PRNGKey,
    PRNGKeys,
    Scalar,
    Shaped,
    Soft,
)

Pixels = Shaped[AnyArray, "H W C"]  # an image, bytes or floats
Mixed = tuple[Images, Soft]  # images and their labels
Batch = Mapping[str, Shaped[AnyArray, "..."]]


def flip(key: PRNGKey, image: Pixels) -> Pixels:
    """Mirrors an image [H, W, C] left to right with probability one half."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def pad_crop(key: PRNGKey, image: Pixels, pad: int) -> Pixels:
    """Pads with zeros on all sides, then cuts a window of the old size at random."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def erase(
    key: PRNGKey,
    image: Float[AnyArray, "H W C"],
    probability: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[AnyArray, "H W C"]:
    """Random erasing (Zhong et al. 2020) as timm does it: noise in place of a random box.

    The box has 2 to 33% of the area and a side 0.3 to 3.3 times the other.

    Args:
      key: of what is drawn.
      image: in [0, 1].
      probability: that the image is changed at all.
      mean: of the noise, one or one per channel; it is normal, cut to [0, 1].
      std: its deviation, likewise.
    """
    chance_key, size_key, place_key, noise_key = jax.random.split(key, 4)
    # Ten tries for a box that fits.
    area, ratio = jax.random.uniform(size_key, (2, 10))
    area = (0.02 + (1 / 3 - 0.02) * area) * image.shape[0] * image.shape[1]
    ratio = jnp.exp(math.log(0.3) * (1 - 2 * ratio))
    sides = jnp.round(jnp.sqrt(jnp.stack([area * ratio, area / ratio])))  # [2, 10]
    fits = jnp.all(sides < jnp.array(image.shape[:2])[:, None], axis=0)
    sides = sides[:, jnp.argmax(fits)]
    place = jax.random.uniform(place_key, (2,))
    axes = []
    for side, share, pixels in zip(sides, place, image.shape, strict=False):
        first = jnp.floor(share * (pixels - side + 1))
        axes.append((jnp.arange(pixels) >= first) & (jnp.arange(pixels) < first + side))
    box = axes[0][:, None, None] & axes[1][None, :, None]  # [H, W, 1]
    box = box & jnp.any(fits) & jax.random.bernoulli(chance_key, probability)
    noise = jnp.array(mean) + jnp.array(std) * jax.random.normal(noise_key, image.shape)
    return jnp.where(box, jnp.clip(noise, 0, 1), image)


def mixup(key: PRNGKey, images: Images, labels: Soft, alpha: float) -> Mixed:
    """Mixup (Zhang et al. 2018): the batch and its reverse are averaged, by one share."""
    share = jax.random.beta(key, alpha, alpha)
    images = share * images + (1 - share) * images[::-1]
    return images, share * labels + (1 - share) * labels[::-1]


def cutmix(key: PRNGKey, images: Images, labels: Soft, alpha: float) -> Mixed:
    """CutMix (Yun et al. 2019): one box of the reversed batch is pasted into each image.

    Labels are averaged by the box's area.
    """
    share_key, box_key = jax.random.split(key)
    height, width = images.shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    center = jax.random.uniform(box_key, (2,))
    rows = _inside(center[0], side, height)[:, None]
    columns = _inside(center[1], side, width)[None, :]
    box = (rows & columns)[None, :, :, None]  # [1, H, W, 1]
    share = 1 - jnp.mean(box.astype(jnp.float32))
    images = jnp.where(box, images[::-1], images)
    return images, share * labels + (1 - share) * labels[::-1]


def _inside(center: Scalar, side: Scalar, size: int) -> Bool[Array, " size"]:
    """The pixels of an interval, which is clipped at the border, as in the paper.

    center, side: as shares of the size.
    """
    low = jnp.floor((center - side / 2) * size)
    high = jnp.floor((center + side / 2) * size)
    pixels = jnp.arange(size)
    return (pixels >= low) & (pixels < high)


def _sometimes(
    key: PRNGKey,
    mix: Callable[[], Mixed],
    images: Images,
    labels: Soft,
    probability: float,
) -> Mixed:
    """mix() with this probability, else the images and labels as they are."""
    if probability == 1:
        return mix()
    return jax.lax.cond(
        jax.random.bernoulli(key, probability), mix, lambda: (images, labels)
    )


def _mix_batch(
    key: PRNGKey, images: Images, labels: Soft, mixup_alpha: float, cutmix_alpha: float
) -> Mixed:
    """Mixup or CutMix, each for half of the batches if both are on, as timm does."""
    choice_key, draw_key = jax.random.split(key)
    if mixup_alpha and cutmix_alpha:
        return jax.lax.cond(
            jax.random.bernoulli(choice_key),
            lambda: mixup(draw_key, images, labels, mixup_alpha),
            lambda: cutmix(draw_key, images, labels, cutmix_alpha),
        )
    if mixup_alpha:
        return mixup(draw_key, images, labels, mixup_alpha)
    if cutmix_alpha:
        return cutmix(draw_key, images, labels, cutmix_alpha)
    return images, labels


def make_augment(
    classes: int,
    *,
    flip_horizontal: bool,
    pad: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    label_smoothing: float,
    mix_probability: float = 1.0,
    randaugment: Callable[[PRNGKeys, Any], Any] | None = None,
    erasing: Mapping[str, Any] | None = None,
) -> Callable[[Batch, PRNGKey], Batch]:
    """The function that augments a batch of training images, in the order of arguments.

    Mixup and CutMix are drawn once for the whole global batch, which is mixed with its own
    reverse: the same on any number of devices. MAE's and timm's programs draw in each
    process, 64 times in a step of 4,096 images, so their gradient has the same mean and
    another variance.

    Args:
      classes: how many there are.
      flip_horizontal: whether half of the images are mirrored left to right.
      pad: pixels of zero padding before a random crop; 0 for none.
      mixup_alpha: of mixup's Beta distribution; 0 for none.
      cutmix_alpha: of CutMix's Beta distribution; 0 for none.
      label_smoothing: the share of a label that goes to all classes alike.
      mix_probability: the share of batches that mixup and CutMix touch (timm's `prob`).
      randaugment: of `make_randaugment`; it comes after the crop.
      erasing: the further arguments of `erase`, which comes before mixup; None for none.

    Returns:
      (batch, key) -> batch: from images uint8 and labels [B] to images in [0, 1] and labels
      float32 [B, L]; "index" stays as it is.
    """

    def augment(batch: Batch, key: PRNGKey) -> Batch:
        images = batch["images"]
        labels = jax.nn.one_hot(batch["labels"], classes)
        labels = labels * (1 - label_smoothing) + label_smoothing / classes

        def keys(name: str) -> PRNGKeys:
            return rng.by_index(rng.fold(key, name), batch["index"])

        if flip_horizontal:
            images = jax.vmap(flip)(keys("flip"), images)
        if pad:
            cut = jax.vmap(pad_crop, in_axes=(0, 0, None))
            images = cut(keys("pad_crop"), images, pad)
        if randaugment:
            images = randaugment(keys("randaugment"), images)
        images = to_float(images)
        if erasing is not None:
            erased = jax.vmap(functools.partial(erase, **erasing))
            images = erased(keys("erasing"), images)
        unmixed = (rng.fold(key, "mix"), images, labels, mixup_alpha, cutmix_alpha)
        images, labels = _sometimes(
            rng.fold(key, "mix_or_not"),
            lambda: _mix_batch(*unmixed),
            images,
            labels,
            mix_probability if mixup_alpha or cutmix_alpha else 1,
        )
        return {"images": images, "labels": labels, "index": batch["index"]}

    return augment
