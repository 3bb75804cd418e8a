"""RandAugment (Cubuk et al. 2020) on the device, as timm does it in MAE's recipe.

Severities increase: timm calls it "rand-m9-mstd0.5-inc1". An operation takes an image
[H, W, C] of whole numbers 0 to 255 in float32, its value and the colour of what comes in
from outside, and gives such an image: that of Pillow, up to how its last bit is rounded.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from advadapters import meshes
from advadapters.shapes import (
    AnyArray,
    Array,
    Bool,
    Bytes,
    Float,
    Int,
    Num,
    PRNGKey,
    PRNGKeys,
    Scalar,
    UInt8,
)

Image = Float[AnyArray, "H W C"]  # whole numbers from 0 to 255
Colour = Float[AnyArray, " channels"]  # one value or one per channel, 0 to 255
Level = float | Scalar
Value = Callable[[Level, Level], Level]  # (magnitude, sign) -> an operation's value

MOST = 10.0  # the largest magnitude
MOST_DEGREES = 30.0  # of a rotation
PROBABILITY = 0.5  # of an operation that has been drawn to be applied
LUMA = (19595, 38470, 7471)  # of red, green and blue, in parts of 65536


def _autocontrast(image: Image, _: Scalar, __: Colour) -> Image:
    """Each channel stretched to 0 ... 255."""
    low, high = (f(image, axis=(0, 1)).astype(jnp.int32) for f in (jnp.min, jnp.max))
    stretched = (image.astype(jnp.int32) - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched.astype(jnp.float32), image)


def _equalize(image: Image, _: Scalar, __: Colour) -> Image:
    """Each channel's histogram made even, in whole numbers."""
    counts = jnp.sum(image[..., None] == jnp.arange(256), axis=(0, 1), dtype=jnp.int32)
    last = jnp.max(image, axis=(0, 1), keepdims=True) == image
    step = (image[..., 0].size - jnp.sum(last, axis=(0, 1), dtype=jnp.int32)) // 255  # [C]
    below = jnp.cumsum(counts, axis=1) - counts  # [C, 256]
    table = (step[:, None] // 2 + below) // jnp.maximum(step, 1)[:, None]
    chosen = jnp.where(image[..., None] == jnp.arange(256), jnp.minimum(table, 255), 0)
    return jnp.where(step > 0, jnp.sum(chosen, axis=3).astype(jnp.float32), image)


def _invert(image: Image, _: Scalar, __: Colour) -> Image:
    """The negative."""
    return 255 - image


def _posterize(image: Image, bits: Scalar, _: Colour) -> Image:
    """Only the uppermost bits of each value; none leaves black."""
    step = 2.0 ** (8 - bits)
    return jnp.floor(image / step) * step


def _solarize(image: Image, threshold: Scalar, _: Colour) -> Image:
    """The negative of what is not below the threshold."""
    return jnp.where(image < threshold, image, 255 - image)


def _solarize_add(image: Image, more: Scalar, _: Colour) -> Image:
    """Dark values, below 128, become brighter."""
    return jnp.where(image < 128, jnp.minimum(image + more, 255), image)


def _blend(degenerate: Num[AnyArray, "..."], image: Image, factor: Scalar) -> Image:
    """The degenerate image for a factor of 0, the image for 1, and beyond it above."""
    return jnp.floor(jnp.clip(degenerate + factor * (image - degenerate), 0, 255))


def _luma(image: Image) -> Float[AnyArray, "H W 1"]:
    """The luma of an image; that of a gray one is the image itself."""
    if image.shape[2] == 1:
        return image
    parts = jnp.sum(image.astype(jnp.int32) * jnp.array(LUMA), axis=2, keepdims=True)
    return ((parts + 2**15) >> 16).astype(jnp.float32)


def _color(image: Image, factor: Scalar, _: Colour) -> Image:
    """Away from or towards its grays."""
    return _blend(_luma(image), image, factor)


def _contrast(image: Image, factor: Scalar, _: Colour) -> Image:
    """Away from or towards its mean luma."""
    lumas = _luma(image)
    total = jnp.sum(lumas.astype(jnp.int32))
    return _blend((2 * total + lumas.size) // (2 * lumas.size), image, factor)


def _brightness(image: Image, factor: Scalar, _: Colour) -> Image:
    """Away from or towards black."""
    return _blend(jnp.zeros_like(image), image, factor)


def _sharpness(image: Image, factor: Scalar, _: Colour) -> Image:
    """Away from or towards a smoothed image; the pixels of its border stay."""
    total = jax.lax.reduce_window(image, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "VALID")
    smooth = jnp.floor((total + 4 * image[1:-1, 1:-1] + 6) / 13)
    return _blend(jnp.asarray(image).at[1:-1, 1:-1].set(smooth), image, factor)


def _shear_x(image: Image, factor: Scalar, fill: Colour) -> Image:
    """Rows move by their number times the factor."""
    height, width = image.shape[:2]
    return _along_rows(image, _centers(width) + factor * _centers(height)[:, None], fill)


def _translate_x(image: Image, share: Scalar, fill: Colour) -> Image:
    """By a share of the width."""
    height, width = image.shape[:2]
    places = _centers(width) + share * width
    return _along_rows(image, jnp.broadcast_to(places, (height, width)), fill)


def _shear_y(image: Image, factor: Scalar, fill: Colour) -> Image:
    """Columns move by their number times the factor."""
    return _transposed(_shear_x(_transposed(image), factor, fill))


def _translate_y(image: Image, share: Scalar, fill: Colour) -> Image:
    """By a share of the height."""
    return _transposed(_translate_x(_transposed(image), share, fill))


def _transposed(image: Image) -> Float[Array, "W H C"]:
    """Rows as columns."""
    return jnp.swapaxes(image, 0, 1)


def _centers(size: int) -> Float[Array, " size"]:
    """The places of the middles of pixels."""
    return jnp.arange(size, dtype=jnp.float32) + 0.5


def _along_rows(image: Image, places: Float[Array, "H W"], fill: Colour) -> Image:
    """Each row of an image at its own places [H, W], bicubic; `fill` [C] is outside."""
    width = image.shape[1]
    padded = jnp.pad(image, ((0, 0), (2, 2), (0, 0)), mode="edge")
    weights = _cubic(places, width)
    values = jnp.einsum("ywq,yqc->ywc", weights, padded, precision="highest")
    return _finish(values, (places >= 0) & (places < width), fill)


def _rotate(image: Image, degrees: Scalar, fill: Colour) -> Image:
    """Around its middle, anticlockwise, bicubic.

    Matrix products of full rows, for each row of the result, over the rows that a turn by
    MOST_DEGREES can reach: gathering the 16 neighbours of each pixel is what accelerators
    are slow at.
    """
    height, width = image.shape[:2]
    padded = jnp.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    reach = math.ceil(width * math.sin(math.radians(MOST_DEGREES))) + 4
    reach = min(reach, height + 4)
    angle = degrees * (math.pi / 180)
    c, s, x = jnp.cos(angle), jnp.sin(angle), _centers(width) - width / 2

    def row(y: Scalar) -> Float[Array, "W C"]:
        across, down = c * x - s * y + width / 2, s * x + c * y + height / 2
        inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
        top = jnp.floor(jnp.min(down)).astype(jnp.int32)  # in `padded`: two rows above
        top = jnp.clip(top, 0, height + 4 - reach)
        near = jax.lax.dynamic_slice_in_dim(padded, top, reach)
        rows = jax.lax.dynamic_slice_in_dim(_cubic(down, height), top, reach, axis=1)
        columns = _cubic(across, width)
        lines = jnp.einsum("wq,rqc->wrc", columns, near, precision="highest")
        values = jnp.einsum("wr,wrc->wc", rows, lines, precision="highest")
        return _finish(values, inside, fill)

    return jax.lax.map(row, _centers(height) - height / 2)


def _cubic(places: Float[Array, "*places"], size: int) -> Float[Array, "*places q"]:
    """The weights of q = size + 4 pixels of an axis at some places: Keys' bicubic kernel.

    The axis has two pixels more at each end. The kernel's a is -1.
    """
    pixels = jnp.arange(-2, size + 2, dtype=jnp.float32) + 0.5
    t = jnp.abs(places[..., None] - pixels)
    near, far = (t - 2) * t * t + 1, ((5 - t) * t - 8) * t + 4
    return jnp.where(t < 1, near, jnp.where(t < 2, far, 0.0))


def _finish(
    values: Float[Array, "*places C"], inside: Bool[Array, "*places"], fill: Colour
) -> Float[Array, "*places C"]:
    """Values cut to whole numbers 0 ... 255, and `fill` where the place is outside.

    Weights sum to 1 only up to rounding, so that what lacks a thousandth to a whole number
    is taken to be it.
    """
    cut = jnp.floor(jnp.clip(values + 1e-3, 0, 255))
    return jnp.where(inside[..., None], cut, fill)


def _nothing(magnitude: Level, sign: Level) -> Scalar:
    """The value of operations that have none."""
    return jnp.zeros_like(magnitude)


def _signed(most: float) -> Value:
    """Values from -most to most."""
    return lambda magnitude, sign: sign * magnitude * (most / MOST)


def _enhancement(magnitude: Level, sign: Level) -> Scalar:
    """Factors from 0.1 to 1.9, 1 for magnitude 0."""
    return jnp.maximum(1 + sign * magnitude * (0.9 / MOST), 0.1)


def _whole(most: int, start: int = 0) -> Value:
    """Whole numbers from 0 to most, or down from `start` by these."""

    def value(magnitude: Level, sign: Level) -> Scalar:
        steps = jnp.floor(magnitude * (most / MOST))
        return start - steps if start else steps

    return value


# {name: (operation, its value for a magnitude in [0, 10] and a sign)}
OPERATIONS = {
    "AutoContrast": (_autocontrast, _nothing),
    "Equalize": (_equalize, _nothing),
    "Invert": (_invert, _nothing),
    "Rotate": (_rotate, _signed(MOST_DEGREES)),
    "PosterizeIncreasing": (_posterize, _whole(4, start=4)),
    "SolarizeIncreasing": (_solarize, _whole(256, start=256)),
    "SolarizeAdd": (_solarize_add, _whole(110)),
    "ColorIncreasing": (_color, _enhancement),
    "ContrastIncreasing": (_contrast, _enhancement),
    "BrightnessIncreasing": (_brightness, _enhancement),
    "SharpnessIncreasing": (_sharpness, _enhancement),
    "ShearX": (_shear_x, _signed(0.3)),
    "ShearY": (_shear_y, _signed(0.3)),
    "TranslateXRel": (_translate_x, _signed(0.45)),
    "TranslateYRel": (_translate_y, _signed(0.45)),
}


def draw(
    key: PRNGKey, magnitude: float, std: float
) -> tuple[Int[Array, ""], Scalar, Scalar]:
    """Draws a layer: the operation's number, len(OPERATIONS) for none; magnitude; sign."""
    number_key, chance_key, size_key, sign_key = jax.random.split(key, 4)
    number = jax.random.randint(number_key, (), 0, len(OPERATIONS))
    applied = jax.random.bernoulli(chance_key, PROBABILITY)
    number = jnp.where(applied, number, len(OPERATIONS))
    size = jnp.clip(magnitude + std * jax.random.normal(size_key), 0, MOST)
    return number, size, jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)


def _augment_image(
    key: PRNGKey,
    image: UInt8[AnyArray, "H W C"],
    layers: int,
    magnitude: float,
    std: float,
    fill: tuple[float, ...],
) -> UInt8[Array, "H W C"]:
    """One image after `layers` operations; see `make_randaugment`."""
    colour = jnp.round(255 * jnp.array(fill, jnp.float32))
    branches: list[Callable] = [
        lambda image, size, sign, run=run, value=value: run(
            image, value(size, sign), colour
        )
        for run, value in OPERATIONS.values()
    ]
    branches.append(lambda image, size, sign: image)

    def layer(i: Int[Array, ""], image: Image) -> Image:
        number, size, sign = draw(jax.random.fold_in(key, i), magnitude, std)
        return jax.lax.switch(number, branches, image, size, sign)

    return jax.lax.fori_loop(0, layers, layer, image.astype(jnp.float32)).astype(jnp.uint8)


def make_randaugment(
    mesh: jax.sharding.Mesh,
    *,
    layers: int,
    magnitude: float,
    std: float,
    fill: tuple[float, ...],
) -> Callable[[PRNGKeys, Bytes], Bytes] | None:
    """The function that applies RandAugment to a batch: (keys [B], images) -> images.

    Each device goes through its rows one by one and computes only the operation that was
    drawn: under `vmap` a switch would compute all.

    Args:
      mesh: of the devices that the batch is split over.
      layers: operations per image; for 0 the result is None.
      magnitude: from 0 to 10, the mean of a normal distribution.
      std: the distribution's deviation.
      fill: the colour in [0, 1] of what comes in from outside, one or one per channel.
    """
    if not layers:
        return None
    change = functools.partial(
        _augment_image, layers=layers, magnitude=magnitude, std=std, fill=fill
    )
    rows = meshes.batched(mesh).spec
    return jax.shard_map(
        lambda keys, images: jax.lax.map(lambda row: change(*row), (keys, images)),
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=rows,
        check_vma=False,
    )
