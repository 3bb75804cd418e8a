"""RandAugment on the device: timm's, with increasing severities, as in MAE's recipe.

Cubuk et al. (2020); what is called there "rand-m9-mstd0.5-inc1". An operation takes an
image [H, W, C] of whole numbers 0 to 255 in float32 and its value, and gives such an image:
Pillow's, up to where its last bit rounds.
"""

import functools
import math

import jax
import jax.numpy as jnp

from advadapters import mesh as meshes

MOST = 10.0  # the largest magnitude
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
    found = jnp.minimum(table, 255)[jnp.arange(image.shape[2]), image.astype(jnp.int32)]
    return jnp.where(step > 0, found.astype(jnp.float32), image)


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


def rotate(image, degrees, fill):
    """Around its middle, anticlockwise."""
    height, width = image.shape[:2]
    angle = degrees * (math.pi / 180)
    c, s = jnp.cos(angle), jnp.sin(angle)
    y, x = height / 2, width / 2
    return warp(image, (c, -s, x - c * x + s * y), (s, c, y - s * x - c * y), fill)


def shear_x(image, factor, fill):
    """Rows move by their number times the factor."""
    return warp(image, (1, factor, 0), (0, 1, 0), fill)


def shear_y(image, factor, fill):
    """Columns move by their number times the factor."""
    return warp(image, (1, 0, 0), (factor, 1, 0), fill)


def translate_x(image, share, fill):
    """By a share of the width."""
    return warp(image, (1, 0, share * image.shape[1]), (0, 1, 0), fill)


def translate_y(image, share, fill):
    """By a share of the height."""
    return warp(image, (1, 0, 0), (0, 1, share * image.shape[0]), fill)


def warp(image, across, down, fill):
    """What a pixel centre (x, y) shows is at across . (x, y, 1), down . (x, y, 1); bicubic.

    Where that is outside of the image, it is `fill` [C].
    """
    height, width = image.shape[:2]
    y, x = (jnp.arange(n, dtype=jnp.float32) + 0.5 for n in (height, width))
    x, y = (a * x + b * y[:, None] + c for a, b, c in (across, down))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    columns, rows = (
        [jnp.clip(first + tap, 0, size - 1).astype(jnp.int32) for tap in (-1, 0, 1, 2)]
        for first, size in ((left, width), (top, height))
    )
    right, lower = (x - left)[..., None], (y - top)[..., None]
    found = cubic([cubic([image[r, c] for c in columns], right) for r in rows], lower)
    return jnp.where(inside[..., None], jnp.floor(jnp.clip(found, 0, 255)), fill)


def cubic(taps, t):
    """Keys' cubic (a = -1) through four values: t of the way from the second on."""
    one, two, three, four = taps
    cube = two - one + four - three
    square = 2 * (one - two) + three - four
    return two + t * (three - one + t * (square + t * cube))


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
    "Rotate": (rotate, signed(30)),
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
    branches = [
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
