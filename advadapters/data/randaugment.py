"""RandAugment on the device: timm's, with increasing severities, as in MAE's recipe.

Cubuk et al. (2020); what is called there "rand-m9-mstd0.5-inc1". An operation takes an
image [H, W, C] of whole numbers 0 to 255 in float32 and its value, and gives such an image:
Pillow's, up to where its last bit rounds.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from advadapters import meshes

MOST = 10.0  # the largest magnitude
MOST_DEGREES = 30.0  # of a rotation
PROBABILITY = 0.5  # of an operation that has been drawn to be applied
LUMA = (19595, 38470, 7471)  # of red, green and blue, in parts of 65536


def autocontrast(image, _, __):
    """Each channel stretched to 0 ... 255."""
    low, high = (f(image, axis=(0, 1)).astype(jnp.int32) for f in (jnp.min, jnp.max))
    stretched = (image.astype(jnp.int32) - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched.astype(jnp.float32), image)


def equalize(image, _, __):
    """Each channel's histogram made even, in whole numbers."""
    counts = jnp.sum(image[..., None] == jnp.arange(256), axis=(0, 1), dtype=jnp.int32)
    last = jnp.max(image, axis=(0, 1), keepdims=True) == image
    step = (image[..., 0].size - jnp.sum(last, axis=(0, 1), dtype=jnp.int32)) // 255  # [C]
    below = jnp.cumsum(counts, axis=1) - counts  # [C, 256]
    table = (step[:, None] // 2 + below) // jnp.maximum(step, 1)[:, None]
    chosen = jnp.where(image[..., None] == jnp.arange(256), jnp.minimum(table, 255), 0)
    return jnp.where(step > 0, jnp.sum(chosen, axis=3).astype(jnp.float32), image)


def invert(image, _, __):
    """The negative."""
    return 255 - image


def posterize(image, bits, _):
    """Only the uppermost bits of each value; none leaves black."""
    step = 2.0 ** (8 - bits)
    return jnp.floor(image / step) * step


def solarize(image, threshold, _):
    """The negative of what is not below the threshold."""
    return jnp.where(image < threshold, image, 255 - image)


def solarize_add(image, more, _):
    """Dark values, below 128, become brighter."""
    return jnp.where(image < 128, jnp.minimum(image + more, 255), image)


def blend(degenerate, image, factor):
    """0 is the degenerate image, 1 the image, and above 1 lies what is beyond it."""
    return jnp.floor(jnp.clip(degenerate + factor * (image - degenerate), 0, 255))


def gray(image):
    """The luma [H, W, 1] of an image; a gray one is its own."""
    if image.shape[2] == 1:
        return image
    parts = jnp.sum(image.astype(jnp.int32) * jnp.array(LUMA), axis=2, keepdims=True)
    return ((parts + 2**15) >> 16).astype(jnp.float32)


def color(image, factor, _):
    """Away from or towards its grays."""
    return blend(gray(image), image, factor)


def contrast(image, factor, _):
    """Away from or towards its mean luma."""
    lumas = gray(image)
    total = jnp.sum(lumas.astype(jnp.int32))
    return blend((2 * total + lumas.size) // (2 * lumas.size), image, factor)


def brightness(image, factor, _):
    """Away from or towards black."""
    return blend(jnp.zeros_like(image), image, factor)


def sharpness(image, factor, _):
    """Away from or towards a smoothed image; the pixels of its border stay."""
    total = jax.lax.reduce_window(image, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "VALID")
    smooth = jnp.floor((total + 4 * image[1:-1, 1:-1] + 6) / 13)
    return blend(image.at[1:-1, 1:-1].set(smooth), image, factor)


def shear_x(image, factor, fill):
    """Rows move by their number times the factor."""
    height, width = image.shape[:2]
    return along_rows(image, centers(width) + factor * centers(height)[:, None], fill)


def translate_x(image, share, fill):
    """By a share of the width."""
    height, width = image.shape[:2]
    places = centers(width) + share * width
    return along_rows(image, jnp.broadcast_to(places, (height, width)), fill)


def shear_y(image, factor, fill):
    """Columns move by their number times the factor."""
    return turned(shear_x(turned(image), factor, fill))


def translate_y(image, share, fill):
    """By a share of the height."""
    return turned(translate_x(turned(image), share, fill))


def turned(image):
    """Rows as columns."""
    return jnp.swapaxes(image, 0, 1)


def centers(size):
    """float32 [size]: where the middles of pixels are."""
    return jnp.arange(size, dtype=jnp.float32) + 0.5


def along_rows(image, places, fill):
    """Each row of an image at its own places [H, W], bicubic; `fill` [C] is outside."""
    width = image.shape[1]
    padded = jnp.pad(image, ((0, 0), (2, 2), (0, 0)), mode="edge")
    found = jnp.einsum("ywq,yqc->ywc", cubic(places, width), padded, precision="highest")
    return finish(found, (places >= 0) & (places < width), fill)


def rotate(image, degrees, fill):
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
    c, s, x = jnp.cos(angle), jnp.sin(angle), centers(width) - width / 2

    def row(y):
        across, down = c * x - s * y + width / 2, s * x + c * y + height / 2
        inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
        top = jnp.floor(jnp.min(down)).astype(jnp.int32)  # in `padded`: two rows above
        top = jnp.clip(top, 0, height + 4 - reach)
        near = jax.lax.dynamic_slice_in_dim(padded, top, reach)
        rows = jax.lax.dynamic_slice_in_dim(cubic(down, height), top, reach, axis=1)
        columns = cubic(across, width)
        lines = jnp.einsum("wq,rqc->wrc", columns, near, precision="highest")
        found = jnp.einsum("wr,wrc->wc", rows, lines, precision="highest")
        return finish(found, inside, fill)

    return jax.lax.map(row, centers(height) - height / 2)


def cubic(places, size):
    """Weights [..., size + 4] of an axis of pixels, and two more at each end, at places.

    Keys' bicubic kernel with a = -1.
    """
    pixels = jnp.arange(-2, size + 2, dtype=jnp.float32) + 0.5
    t = jnp.abs(places[..., None] - pixels)
    near, far = (t - 2) * t * t + 1, ((5 - t) * t - 8) * t + 4
    return jnp.where(t < 1, near, jnp.where(t < 2, far, 0.0))


def finish(values, inside, fill):
    """Cut to whole numbers 0 ... 255, and `fill` where that was outside.

    Weights sum to 1 up to rounding only: what lacks a thousandth to a whole number is it.
    """
    cut = jnp.floor(jnp.clip(values + 1e-3, 0, 255))
    return jnp.where(inside[..., None], cut, fill)


def nothing(magnitude, sign):
    """For operations without a value."""
    return jnp.zeros_like(magnitude)


def signed(most):
    """Values from -most to most."""
    return lambda magnitude, sign: sign * magnitude * (most / MOST)


def enhancement(magnitude, sign):
    """Factors from 0.1 to 1.9, 1 for magnitude 0."""
    return jnp.maximum(1 + sign * magnitude * (0.9 / MOST), 0.1)


def whole(most, start=0):
    """Whole numbers: 0 to most, or from `start` down by these."""

    def value(magnitude, sign):
        steps = jnp.floor(magnitude * (most / MOST))
        return start - steps if start else steps

    return value


# {name: (operation, its value for a magnitude in [0, 10] and a sign)}
OPERATIONS = {
    "AutoContrast": (autocontrast, nothing),
    "Equalize": (equalize, nothing),
    "Invert": (invert, nothing),
    "Rotate": (rotate, signed(MOST_DEGREES)),
    "PosterizeIncreasing": (posterize, whole(4, start=4)),
    "SolarizeIncreasing": (solarize, whole(256, start=256)),
    "SolarizeAdd": (solarize_add, whole(110)),
    "ColorIncreasing": (color, enhancement),
    "ContrastIncreasing": (contrast, enhancement),
    "BrightnessIncreasing": (brightness, enhancement),
    "SharpnessIncreasing": (sharpness, enhancement),
    "ShearX": (shear_x, signed(0.3)),
    "ShearY": (shear_y, signed(0.3)),
    "TranslateXRel": (translate_x, signed(0.45)),
    "TranslateYRel": (translate_y, signed(0.45)),
}


def draw(key, magnitude, std):
    """(operation's number, len(OPERATIONS) for none; magnitude; sign) of one layer."""
    which, applied, size, sign = jax.random.split(key, 4)
    number = jax.random.randint(which, (), 0, len(OPERATIONS))
    number = jnp.where(jax.random.bernoulli(applied, PROBABILITY), number, len(OPERATIONS))
    drawn = jnp.clip(magnitude + std * jax.random.normal(size), 0, MOST)
    return number, drawn, jnp.where(jax.random.bernoulli(sign), 1.0, -1.0)


def augment_image(key, image, layers, magnitude, std, fill):
    """One image uint8 [H, W, C], `layers` operations one after the other."""
    colour = jnp.round(255 * jnp.array(fill, jnp.float32))
    branches: list[Callable] = [
        lambda image, size, sign, run=run, value=value: run(
            image, value(size, sign), colour
        )
        for run, value in OPERATIONS.values()
    ]
    branches.append(lambda image, size, sign: image)

    def layer(i, image):
        number, size, sign = draw(jax.random.fold_in(key, i), magnitude, std)
        return jax.lax.switch(number, branches, image, size, sign)

    return jax.lax.fori_loop(0, layers, layer, image.astype(jnp.float32)).astype(jnp.uint8)


def make_randaugment(mesh, *, layers, magnitude, std, fill):
    """(keys [B], images uint8 [B, H, W, C]) -> images, or None for no layers.

    magnitude: 0 to 10, the mean of a normal distribution with deviation `std`; fill: the
    colour [C] in [0, 1] of what comes in from outside. Each device goes through its own
    rows one by one and computes the operation that was drawn, no other: under `vmap` a
    switch would compute all.
    """
    if not layers:
        return None
    own = functools.partial(
        augment_image, layers=layers, magnitude=magnitude, std=std, fill=fill
    )
    rows = meshes.batched(mesh).spec
    return jax.shard_map(
        lambda keys, images: jax.lax.map(lambda row: own(*row), (keys, images)),
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=rows,
        check_vma=False,
    )
