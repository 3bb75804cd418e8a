"""The common corruptions of Hendrycks and Dietterich (2019) on the device, five severities.

The fifteen of ImageNet-C and CIFAR-10-C and their four extra ones. Parameters are those of
the authors' programs (https://github.com/hendrycks/robustness), which are followed where
they do something else than they mean to. Published frost is made of photographs, which are
not here: `frost` draws ice of its own, so its accuracies are not the published ones. The
files of ImageNet-C are also JPEGs of quality 85, which is not done here. What is drawn
belongs to an image's number. A
corruption is (key, image [H, W, C] in [0, 1], *parameters) -> image, C being 3 or 1;
`corrupt` applies one to a batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import rng
from advadapters.data import filters, jpeg
from advadapters.errors import UsageError, pick

# Images with a shorter side up to this get the parameters for 32 pixels, others those for
# 224: the nearer of the two, in proportion. Lengths stay in pixels, but for elastic's.
SMALL = 84
SEVERITIES = (1, 2, 3, 4, 5)
WATER = np.array([175, 238, 238], np.float32) / 255
MUD = np.array([63, 42, 20], np.float32) / 255
ICE = np.array([0.85, 0.93, 1.0], np.float32)


def cut(image):
    """Cut (not rounded) to whole 1/255, as numpy's uint8 does; but for rounding errors."""
    return jnp.floor(255 * jnp.clip(image, 0, 1) + 1e-3) / 255


def grey(image):
    """Luminance [H, W, 1] of an image [H, W, 3 or 1]."""
    weights = [1.0] if image.shape[-1] == 1 else [0.299, 0.587, 0.114]
    return jnp.sum(image * jnp.array(weights), axis=-1, keepdims=True)


def colour(value, image):
    """A colour [3] as the image has colours: [3], or its luminance [1]."""
    value = jnp.asarray(value)
    return value if image.shape[-1] == 3 else grey(value)


def gaussian_noise(key, image, deviation):
    """Normal noise of this deviation."""
    return image + deviation * jax.random.normal(key, image.shape)


def shot_noise(key, image, photons):
    """Poisson noise: white is so many photons."""
    return jax.random.poisson(key, image * photons) / photons


def impulse_noise(key, image, share):
    """This share of the values (of each channel by itself) becomes 0 or 1."""
    where, which = jax.random.split(key)
    hit = jax.random.bernoulli(where, share, image.shape)
    salt = jax.random.bernoulli(which, 0.5, image.shape).astype(image.dtype)
    return jnp.where(hit, salt, image)


def speckle_noise(key, image, deviation):
    """Normal noise in proportion to the values."""
    return image + deviation * image * jax.random.normal(key, image.shape)


def gaussian_blur(key, image, sigma):
    """Gaussian blur; sigma in pixels."""
    return filters.gaussian_blur(image, sigma)


def disk(radius, sigma):
    """float32 [k, k]: a disk of this radius, its rim softened by a small Gaussian blur."""
    reach, soft = (8, 1) if radius <= 8 else (radius, 2)
    line = np.arange(-reach, reach + 1)
    full = np.add.outer(line**2, line**2) <= radius**2
    weights = np.exp(-0.5 * (np.arange(-soft, soft + 1) / sigma) ** 2)
    kernel = np.pad(full / full.sum(), soft, mode="reflect")
    for axis in (0, 1):
        kernel = np.apply_along_axis(
            lambda line: np.convolve(line, weights / weights.sum(), mode="valid"),
            axis,
            kernel,
        )
    while len(kernel) > 1 and not kernel[0].any():  # no rim of zeros
        kernel = kernel[1:-1, 1:-1]
    return kernel.astype(np.float32)


def defocus_blur(key, image, radius, sigma):
    """Blur by a disk; radius and the softness sigma of its rim in pixels."""
    return filters.correlate(image, disk(radius, sigma))


def glass_blur(key, image, sigma, reach, rounds):
    """Blur, pixels displaced by up to `reach`, as often as `rounds`, and blur again."""
    image = cut(filters.gaussian_blur(image, sigma))
    drawn = jax.random.uniform(key, (rounds, 2, *image.shape[:2]))
    for shifts in jnp.floor(2 * reach * drawn).astype(jnp.int32) - reach:
        image = displace(image, shifts, reach)
    return filters.gaussian_blur(image, sigma)


def displace(image, shifts, reach):
    """Each pixel takes the value of one near it, in turn from the last to the first.

    shifts: down and right, whole numbers [2, H, W]. The published program means to swap
    pixels, but its assignment to views of an array only copies. A pixel whose source has
    had its turn gets what that one got: chains of sources are followed by doubling
    instead of pixel by pixel.
    """
    height, width, channels = image.shape
    y, x = np.indices((height, width))
    moves = (y > reach) & (y <= height - reach) & (x > reach) & (x <= width - reach)
    down, right = shifts
    place = (y * width + x).reshape(-1)
    offset = jnp.where(moves, down * width + right, 0).reshape(-1)
    source = place + offset
    done = ~((source > place) & jnp.asarray(moves.reshape(-1))[source])

    def follow(state):
        source, done = state
        return jnp.where(done, source, source[source]), done | done[source]

    source, _ = jax.lax.while_loop(lambda s: ~jnp.all(s[1]), follow, (source, done))
    return image.reshape(-1, channels)[source].reshape(image.shape)


def motion_blur(key, image, radius, sigma):
    """Blur along a line at up to 45 degrees to the horizontal; lengths in pixels."""
    angle = jax.random.uniform(key, minval=-45.0, maxval=45.0)
    return jnp.round(255 * filters.motion_blur(image, radius, sigma, angle)) / 255


def zoom_blur(key, image, stop, step):
    """The mean of the image and of its enlargements by 1, 1 + step, ... below stop."""
    factors = np.arange(1, stop, step).tolist()
    rows, columns = (
        np.stack([filters.zoom_matrix(size, factor) for factor in factors])
        for size in image.shape[:2]
    )

    def add(total, matrices):
        across, along = matrices
        return total + filters.along_axes(across, along, image), None

    total, _ = jax.lax.scan(add, image, (jnp.asarray(rows), jnp.asarray(columns)))
    return total / (len(factors) + 1)


def snow(key, image, mean, deviation, zoom, threshold, radius, sigma, share):
    """Flakes in motion over an image whose light is drawn to white; lengths in pixels."""
    where, angle = jax.random.split(key)
    height, width = image.shape[:2]
    flakes = mean + deviation * jax.random.normal(where, (height, width, 1))
    rows, columns = (filters.zoom_matrix(size, float(zoom)) for size in (height, width))
    flakes = filters.along_axes(rows, columns, flakes)
    flakes = cut(jnp.where(flakes < threshold, 0, flakes))
    angle = jax.random.uniform(angle, minval=-135.0, maxval=-45.0)
    flakes = jnp.round(255 * filters.motion_blur(flakes, radius, sigma, angle)) / 255
    lit = jnp.maximum(image, 1.5 * grey(image) + 0.5)
    image = share * image + (1 - share) * lit
    return image + flakes + flakes[::-1, ::-1]


def frost(key, image, share, ice_share):
    """Image and ice, each times its share. Not the published frost: see `ice`."""
    return share * image + ice_share * colour_of_ice(ice(key, *image.shape[:2]), image)


def colour_of_ice(lightness, image):
    """Lightness [H, W, 1] -> bluish [H, W, C]."""
    return lightness * colour(ICE, image)


def ice(key, height, width):
    """Lightness [H, W, 1] of a frozen pane: a cloudy sheet and six-armed crystals.

    The published frost is made of parts of five photographs; this is drawn to look like
    them from afar and shares nothing with them but the shares of the mixture.
    """
    sheet, where, angle = jax.random.split(key, 3)
    seeds = jax.random.bernoulli(where, 0.01, (height, width, 1)).astype(jnp.float32)
    length = max(2, min(height, width) // 10)
    angle = jax.random.uniform(angle, maxval=60.0)
    arm = jax.vmap(lambda turn: filters.motion_blur(seeds, length, length / 2, turn))
    crystals = jnp.max(arm(angle + 60.0 * jnp.arange(6)), axis=0)
    crystals /= jnp.maximum(jnp.max(crystals), 1e-9)
    return 0.2 + 0.4 * filters.plasma(sheet, height, width, 1.8)[..., None] + 0.4 * crystals


def fog(key, image, amount, decay):
    """Fractal noise is added and the whole darkened to the old maximum."""
    height, width = image.shape[:2]
    noise = filters.plasma(key, height, width, decay)[..., None]
    brightest = jnp.max(image)
    return (image + amount * noise) * brightest / (brightest + amount)


def brightness(key, image, amount):
    """Adds to the value of HSV (the largest of red, green and blue), hue as it is."""
    value = jnp.max(image, axis=-1, keepdims=True)
    brighter = jnp.clip(value + amount, 0, 1)
    return jnp.where(value > 0, image * brighter / jnp.maximum(value, 1e-9), brighter)


def saturate(key, image, factor, offset):
    """Saturation of HSV times a factor plus an offset; grey images stay as they are.

    A grey pixel of a colour image counts as red, as usual where HSV has no hue.
    """
    if image.shape[-1] == 1:
        return image
    value = jnp.max(image, axis=-1, keepdims=True)
    span = value - jnp.min(image, axis=-1, keepdims=True)
    tone = jnp.where(
        span > 0, (value - image) / jnp.maximum(span, 1e-9), jnp.array([0.0, 1.0, 1.0])
    )
    saturation = jnp.clip(span / jnp.maximum(value, 1e-9) * factor + offset, 0, 1)
    return value * (1 - saturation * tone)


def contrast(key, image, factor):
    """Draws every channel to its mean over the image."""
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return (image - mean) * factor + mean


def elastic_transform(key, image, strength, sigma, jolt):
    """A random affine map, then displacements from smoothed noise.

    strength: of the displacement, sigma: of its Gaussian blur, jolt: of the three corners
    that fix the affine map; all in shorter sides of the image.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    corners, across, down = jax.random.split(key, 3)
    x, y, third = width // 2, height // 2, side // 3
    signs = np.array([[1, 1, 0], [1, -1, 0], [-1, -1, 0]], np.float32)
    old = np.array([x, y, 1], np.float32) + third * signs
    moves = jolt * side * jax.random.uniform(corners, (3, 2), minval=-1, maxval=1)
    new = jnp.concatenate([old[:, :2] + moves, jnp.ones((3, 1))], axis=1)
    back = jnp.linalg.solve(new, old[:, :2])  # [3, 2], from new places to old
    y, x = np.indices((height, width)).astype(np.float32)
    columns, rows = (back[0, i] * x + back[1, i] * y + back[2, i] for i in (0, 1))
    image = filters.bilinear(image, rows, columns, "reflect")

    def noise(key):
        drawn = jax.random.uniform(key, (height, width, 1), minval=-1, maxval=1)
        smooth = filters.gaussian_blur(drawn, sigma * side, "symmetric", 3.0)
        return strength * side * smooth[..., 0]

    return filters.bilinear(image, y + noise(down), x + noise(across), "symmetric")


def pixelate(key, image, share):
    """Resized to this share of each side and back, with box filters."""
    height, width = image.shape[:2]
    small = max(1, int(height * share)), max(1, int(width * share))
    values = 255 * image
    for old, new in (((height, width), small), (small, (height, width))):
        for rows, columns in (
            (np.eye(old[0], dtype=np.float32), filters.box_matrix(old[1], new[1])),
            (filters.box_matrix(old[0], new[0]), np.eye(new[1], dtype=np.float32)),
        ):
            values = jnp.floor(filters.along_axes(rows, columns, values) + 0.5 + 1e-4)
    return values / 255


def jpeg_compression(key, image, quality):
    """JPEG at this quality, with chroma at half the resolution."""
    return jpeg.compress(image, quality)


def spatter(key, image, mean, deviation, sigma, threshold, amount, mud):
    """Drops of water (`amount`: their opacity) or of mud (`amount`: blur of their rims)."""
    drawn = mean + deviation * jax.random.normal(key, (*image.shape[:2], 1))
    liquid = filters.gaussian_blur(drawn, sigma)[..., 0]
    liquid = jnp.where(liquid < threshold, 0, liquid)
    if mud:
        cover = (liquid > threshold).astype(jnp.float32)[..., None]
        cover = filters.gaussian_blur(cover, amount)
        cover = jnp.where(cover < 0.8, 0, cover)
        return (1 - cover) * image + cover * colour(MUD, image)
    cover = rims(jnp.floor(255 * liquid))[..., None]
    return image + amount * cover * colour(WATER, image)


def rims(liquid):
    """Opacity [H, W] in [0, 1] of drops of water: their thickness (0 to 255) in relief."""
    box = np.full((3, 3), 1 / 9)
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    far = filters.distance(filters.canny(liquid, 50, 150), 20)[..., None]
    even = filters.equalize(jnp.floor(filters.correlate(far, box)[..., 0] + 1e-3), 21)
    raised = jnp.clip(filters.correlate(even[..., None], relief), 0, 255)
    cover = liquid * jnp.round(filters.correlate(raised, box)[..., 0])
    return cover / jnp.maximum(jnp.max(cover), 1e-9)


class Corruption(NamedTuple):
    """A function with its parameters by severity: for 224 and for 32 pixels.

    extra: not one of the fifteen that benchmarks average over.
    """

    function: Callable
    large: tuple
    small: tuple
    extra: bool = False


def each(*values):
    """One parameter for each severity."""
    return tuple((value,) for value in values)


def of_244(*rows):
    """Lengths of the published program for 224, which takes the side to be 244."""
    return tuple(tuple(244 / 224 * value for value in row) for row in rows)


CORRUPTIONS = {
    "gaussian_noise": Corruption(
        gaussian_noise,
        each(0.08, 0.12, 0.18, 0.26, 0.38),
        each(0.04, 0.06, 0.08, 0.09, 0.1),
    ),
    "shot_noise": Corruption(
        shot_noise, each(60, 25, 12, 5, 3), each(500, 250, 100, 75, 50)
    ),
    "impulse_noise": Corruption(
        impulse_noise,
        each(0.03, 0.06, 0.09, 0.17, 0.27),
        each(0.01, 0.02, 0.03, 0.05, 0.07),
    ),
    "defocus_blur": Corruption(
        defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": Corruption(
        glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": Corruption(
        motion_blur,
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "zoom_blur": Corruption(
        zoom_blur,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": Corruption(
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Corruption(
        frost,
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    "fog": Corruption(
        fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": Corruption(
        brightness, each(0.1, 0.2, 0.3, 0.4, 0.5), each(0.05, 0.1, 0.15, 0.2, 0.3)
    ),
    "contrast": Corruption(
        contrast, each(0.4, 0.3, 0.2, 0.1, 0.05), each(0.75, 0.5, 0.4, 0.3, 0.15)
    ),
    "elastic_transform": Corruption(
        elastic_transform,
        of_244(
            (2, 0.7, 0.1),
            (2, 0.08, 0.2),
            (0.05, 0.01, 0.02),
            (0.07, 0.01, 0.02),
            (0.12, 0.01, 0.02),
        ),
        (
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
    ),
    "pixelate": Corruption(
        pixelate, each(0.6, 0.5, 0.4, 0.3, 0.25), each(0.95, 0.9, 0.85, 0.75, 0.65)
    ),
    "jpeg_compression": Corruption(
        jpeg_compression, each(25, 18, 15, 10, 7), each(80, 65, 58, 50, 40)
    ),
    "speckle_noise": Corruption(
        speckle_noise,
        each(0.15, 0.2, 0.35, 0.45, 0.6),
        each(0.06, 0.1, 0.12, 0.16, 0.2),
        extra=True,
    ),
    "gaussian_blur": Corruption(
        gaussian_blur, each(1, 2, 3, 4, 6), each(0.4, 0.6, 0.7, 0.8, 1), extra=True
    ),
    "spatter": Corruption(
        spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        extra=True,
    ),
    "saturate": Corruption(
        saturate,
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        extra=True,
    ),
}
COMMON = tuple(name for name, row in CORRUPTIONS.items() if not row.extra)


def parameters(name, severity, side):
    """The parameters of a corruption at a severity for a shorter side in pixels."""
    row = pick(CORRUPTIONS, name, "corruption")
    if severity not in SEVERITIES:
        raise UsageError(f"severity must be one of 1, 2, 3, 4, 5, got {severity}")
    return (row.small if side <= SMALL else row.large)[severity - 1]


def corrupt(images, key, *, name, severity):
    """Images [B, H, W, C] in [0, 1] -> the same, corrupted, in whole 1/255.

    key: one, or one for each image, whose result then does not depend on its batch.
    """
    height, width, channels = images.shape[1:]
    if channels not in (1, 3):
        raise UsageError(f"corruptions are of images with 1 or 3 channels, not {channels}")
    settings = parameters(name, severity, min(height, width))

    def one(key, image):
        key = rng.fold(key, f"{name}-{severity}")
        return cut(CORRUPTIONS[name].function(key, image, *settings))

    return jax.vmap(one)(rng.per_example(key, len(images)), images)
