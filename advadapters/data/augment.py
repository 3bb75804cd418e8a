"""Augmentation on the device, under jit: uint8 in, images in [0, 1] and soft labels out.

Per-example draws take per-example keys, so they do not depend on the device count.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from advadapters import rng
from advadapters.pixels import to_float


def flip(key, image):
    """Mirrors an image [H, W, C] left to right with probability one half."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def pad_crop(key, image, pad):
    """Pads with zeros on all sides, then cuts a window of the old size at random."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def erase(key, image, probability, mean, std):
    """Noise in place of a random box (Zhong et al. 2020) with this probability, as timm.

    The box has 2 to 33% of the area and a side 0.3 to 3.3 times the other; the noise is
    normal with this mean and deviation, one or one per channel, cut to [0, 1].
    """
    often, size_key, place_key, noise_key = jax.random.split(key, 4)
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
    box = box & jnp.any(fits) & jax.random.bernoulli(often, probability)
    noise = jnp.array(mean) + jnp.array(std) * jax.random.normal(noise_key, image.shape)
    return jnp.where(box, jnp.clip(noise, 0, 1), image)


def mixup(key, images, labels, alpha):
    """Blends the batch with itself in reverse order (Zhang et al. 2018), by one share."""
    share = jax.random.beta(key, alpha, alpha)
    images = share * images + (1 - share) * images[::-1]
    return images, share * labels + (1 - share) * labels[::-1]


def cutmix(key, images, labels, alpha):
    """Pastes one box of the reversed batch; labels follow its area (Yun et al. 2019)."""
    share_key, box_key = jax.random.split(key)
    height, width = images.shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    center = jax.random.uniform(box_key, (2,))
    rows = inside(center[0], side, height)[:, None]
    columns = inside(center[1], side, width)[None, :]
    box = (rows & columns)[None, :, :, None]  # [1, H, W, 1]
    share = 1 - jnp.mean(box.astype(jnp.float32))
    images = jnp.where(box, images[::-1], images)
    return images, share * labels + (1 - share) * labels[::-1]


def inside(center, side, size):
    """bool [size]: the pixels of an interval, clipped at the border, as the paper does."""
    low = jnp.floor((center - side / 2) * size)
    high = jnp.floor((center + side / 2) * size)
    pixels = jnp.arange(size)
    return (pixels >= low) & (pixels < high)


def sometimes(key, mix, images, labels, probability):
    """mix() with this probability, else the images and labels as they are."""
    if probability == 1:
        return mix()
    return jax.lax.cond(
        jax.random.bernoulli(key, probability), mix, lambda: (images, labels)
    )


def mix_batch(key, images, labels, mixup_alpha, cutmix_alpha):
    """Mixup or CutMix, each for half of the batches if both are on (as timm does)."""
    choose, draw = jax.random.split(key)
    if mixup_alpha and cutmix_alpha:
        return jax.lax.cond(
            jax.random.bernoulli(choose),
            lambda: mixup(draw, images, labels, mixup_alpha),
            lambda: cutmix(draw, images, labels, cutmix_alpha),
        )
    if mixup_alpha:
        return mixup(draw, images, labels, mixup_alpha)
    if cutmix_alpha:
        return cutmix(draw, images, labels, cutmix_alpha)
    return images, labels


def make_augment(
    classes,
    *,
    flip_horizontal,
    pad,
    mixup_alpha,
    cutmix_alpha,
    label_smoothing,
    mix_probability=1.0,
    randaugment=None,
    erasing: dict[str, Any] | None = None,
):
    """(batch of uint8, key) -> {"images" in [0, 1], "labels" [B, L] float32, "index"}.

    mix_probability: the share of batches that mixup and CutMix touch (timm's `prob`).
    Both are drawn once for the whole global batch, which is mixed with its own reverse: the
    same on any number of devices. MAE's and timm's programs draw in each process, 64 times
    in a step of 4,096 images, so their gradient has the same mean and another variance.
    randaugment: see `make_randaugment`; it comes
    after flip and crop. erasing: further arguments of `erase`, which comes last before the
    mixing; None for none.
    """

    def augment(batch, key):
        images = batch["images"]
        labels = jax.nn.one_hot(batch["labels"], classes)
        labels = labels * (1 - label_smoothing) + label_smoothing / classes

        def keys(name):
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
        own = (rng.fold(key, "mix"), images, labels, mixup_alpha, cutmix_alpha)
        images, labels = sometimes(
            rng.fold(key, "mix_or_not"),
            lambda: mix_batch(*own),
            images,
            labels,
            mix_probability if mixup_alpha or cutmix_alpha else 1,
        )
        return {"images": images, "labels": labels, "index": batch["index"]}

    return augment
