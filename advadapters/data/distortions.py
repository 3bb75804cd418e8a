"""What each corruption does to an image, on the device.

A distortion is (key, image [H, W, C] in [0, 1], *parameters) -> image, C being 3 or 1; its
result may leave [0, 1]. Parameters are static; lengths are in pixels. They follow the
programs of Hendrycks and Dietterich (https://github.com/hendrycks/robustness), also where
these do something else than they mean to.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters.data import filters, jpeg
from advadapters.shapes import AnyArray, Array, Float, Int, PRNGKey

Image = Float[AnyArray, "H W C"]
Plane = Float[AnyArray, "H W"]
Values = Float[AnyArray, "..."]

WATER = np.array([175, 238, 238], np.float32) / 255
MUD = np.array([63, 42, 20], np.float32) / 255
ICE = np.array([0.85, 0.93, 1.0], np.float32)


def cut(image: Values) -> Values:
    """Values in [0, 1], cut to whole 1/255 as numpy's uint8 does, not rounded.

    What lacks a thousandth to the next whole number is taken to be it.
    """
    return jnp.floor(255 * jnp.clip(image, 0, 1) + 1e-3) / 255


def _grey(image: Float[AnyArray, "*HW C"]) -> Float[AnyArray, "*HW 1"]:
    """The luminance of colours [..., 3 or 1]."""
    weights = [1.0] if image.shape[-1] == 1 else [0.299, 0.587, 0.114]
    return jnp.sum(image * jnp.array(weights), axis=-1, keepdims=True)


def _colour(value: Float[AnyArray, "3"], image: Image) -> Float[AnyArray, " C"]:
    """A colour as the image has colours: [3], or its luminance [1]."""
    value = jnp.asarray(value)
    return value if image.shape[-1] == 3 else _grey(value)


def gaussian_noise(key: PRNGKey, image: Image, deviation: float) -> Image:
    """Normal noise is added."""
    return image + deviation * jax.random.normal(key, image.shape)


def shot_noise(key: PRNGKey, image: Image, photons: float) -> Image:
    """Poisson noise; `photons`: the number that white stands for."""
    return jax.random.poisson(key, image * photons) / photons


def impulse_noise(key: PRNGKey, image: Image, share: float) -> Image:
    """A share of the values, of each channel by itself, becomes 0 or 1."""
    place_key, value_key = jax.random.split(key)
    changes = jax.random.bernoulli(place_key, share, image.shape)
    salt = jax.random.bernoulli(value_key, 0.5, image.shape).astype(image.dtype)
    return jnp.where(changes, salt, image)


def speckle_noise(key: PRNGKey, image: Image, deviation: float) -> Image:
    """Normal noise in proportion to the values."""
    return image + deviation * image * jax.random.normal(key, image.shape)


def gaussian_blur(key: PRNGKey, image: Image, sigma: float) -> Image:
    """Gaussian blur; sigma in pixels."""
    return filters.gaussian_blur(image, sigma)


def _disk(radius: float, sigma: float) -> Float[np.ndarray, "k k"]:
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


def defocus_blur(key: PRNGKey, image: Image, radius: float, sigma: float) -> Image:
    """Blur by a disk; radius and the softness sigma of its rim in pixels."""
    return filters.correlate(image, _disk(radius, sigma))


def glass_blur(key: PRNGKey, image: Image, sigma: float, reach: int, rounds: int) -> Image:
    """A blur, then `rounds` times pixels displaced by up to `reach`, and a blur again."""
    image = cut(filters.gaussian_blur(image, sigma))
    noise = jax.random.uniform(key, (rounds, 2, *image.shape[:2]))
    for shifts in jnp.floor(2 * reach * noise).astype(jnp.int32) - reach:
        image = displace(image, shifts, reach)
    return filters.gaussian_blur(image, sigma)


def displace(image: Image, shifts: Int[AnyArray, "2 H W"], reach: int) -> Image:
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

    def follow(state: tuple[Array, Array]) -> tuple[Array, Array]:
        source, done = state
        return jnp.where(done, source, source[source]), done | done[source]

    source, _ = jax.lax.while_loop(
        lambda state: ~jnp.all(state[1]), follow, (jnp.asarray(source), jnp.asarray(done))
    )
    return image.reshape(-1, channels)[source].reshape(image.shape)


def motion_blur(key: PRNGKey, image: Image, radius: float, sigma: float) -> Image:
    """Blur along a line at up to 45 degrees to the horizontal; lengths in pixels."""
    angle = jax.random.uniform(key, minval=-45.0, maxval=45.0)
    return jnp.round(255 * filters.motion_blur(image, radius, sigma, angle)) / 255


def zoom_blur(key: PRNGKey, image: Image, stop: float, step: float) -> Image:
    """The mean of the image and of its enlargements by 1, 1 + step, ... below stop."""
    factors = np.arange(1, stop, step).tolist()
    rows, columns = (
        np.stack([filters.zoom_matrix(size, factor) for factor in factors])
        for size in image.shape[:2]
    )

    def add(total: Image, matrices: tuple[Array, Array]) -> tuple[Image, None]:
        across, along = matrices
        return total + filters.along_axes(across, along, image), None

    total, _ = jax.lax.scan(add, image, (jnp.asarray(rows), jnp.asarray(columns)))
    return total / (len(factors) + 1)


class Snow(NamedTuple):
    """The parameters of `snow`.

    Flakes are normal noise of this mean and deviation, enlarged by `zoom`, set to 0 below
    the threshold, and blurred along a line, radius and sigma being in pixels. share: of the
    image that stays as it is; the rest becomes lighter.
    """

    mean: float
    deviation: float
    zoom: float
    threshold: float
    radius: float
    sigma: float
    share: float


def snow(key: PRNGKey, image: Image, *parameters: float) -> Image:
    """Moving flakes over an image that becomes lighter; `Snow` names the parameters."""
    p = Snow(*parameters)
    flakes_key, angle_key = jax.random.split(key)
    height, width = image.shape[:2]
    flakes = p.mean + p.deviation * jax.random.normal(flakes_key, (height, width, 1))
    rows, columns = (filters.zoom_matrix(size, float(p.zoom)) for size in (height, width))
    flakes = filters.along_axes(rows, columns, flakes)
    flakes = cut(jnp.where(flakes < p.threshold, 0, flakes))
    angle = jax.random.uniform(angle_key, minval=-135.0, maxval=-45.0)
    flakes = jnp.round(255 * filters.motion_blur(flakes, p.radius, p.sigma, angle)) / 255
    light = jnp.maximum(image, 1.5 * _grey(image) + 0.5)
    image = p.share * image + (1 - p.share) * light
    return image + flakes + flakes[::-1, ::-1]


def frost(key: PRNGKey, image: Image, share: float, ice_share: float) -> Image:
    """Image and ice, each times its share; it is not the published frost, see `_ice`."""
    pane = _ice(key, *image.shape[:2]) * _colour(ICE, image)  # bluish
    return share * image + ice_share * pane


def _ice(key: PRNGKey, height: int, width: int) -> Float[AnyArray, "height width 1"]:
    """Lightness [H, W, 1] of a frozen pane: a cloudy sheet and six-armed crystals.

    The published frost is made of parts of five photographs; this is drawn to look like
    them from afar and shares nothing with them but the shares of the mixture.
    """
    sheet_key, seed_key, angle_key = jax.random.split(key, 3)
    seeds = jax.random.bernoulli(seed_key, 0.01, (height, width, 1)).astype(jnp.float32)
    length = max(2, min(height, width) // 10)
    angle = jax.random.uniform(angle_key, maxval=60.0)
    arm = jax.vmap(lambda turn: filters.motion_blur(seeds, length, length / 2, turn))
    crystals = jnp.max(arm(angle + 60.0 * jnp.arange(6)), axis=0)
    crystals /= jnp.maximum(jnp.max(crystals), 1e-9)
    sheet = filters.plasma(sheet_key, height, width, 1.8)[..., None]
    return 0.2 + 0.4 * sheet + 0.4 * crystals


def fog(key: PRNGKey, image: Image, amount: float, decay: float) -> Image:
    """Fractal noise is added, and the sum is darkened to the image's maximum."""
    height, width = image.shape[:2]
    noise = filters.plasma(key, height, width, decay)[..., None]
    brightest = jnp.max(image)
    return (image + amount * noise) * brightest / (brightest + amount)


def brightness(key: PRNGKey, image: Image, amount: float) -> Image:
    """The value of HSV, the largest of red, green and blue, grows; the hue stays."""
    value = jnp.max(image, axis=-1, keepdims=True)
    brighter = jnp.clip(value + amount, 0, 1)
    return jnp.where(value > 0, image * brighter / jnp.maximum(value, 1e-9), brighter)


def saturate(key: PRNGKey, image: Image, factor: float, offset: float) -> Image:
    """The saturation of HSV, times a factor plus an offset; grey images stay as they are.

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


def contrast(key: PRNGKey, image: Image, factor: float) -> Image:
    """Each channel is drawn towards its mean over the image."""
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return (image - mean) * factor + mean


def elastic_transform(
    key: PRNGKey, image: Image, strength: float, sigma: float, jolt: float
) -> Image:
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

    def noise(key: PRNGKey) -> Plane:
        rough = jax.random.uniform(key, (height, width, 1), minval=-1, maxval=1)
        smooth = filters.gaussian_blur(rough, sigma * side, "symmetric", 3.0)
        return strength * side * smooth[..., 0]

    return filters.bilinear(image, y + noise(down), x + noise(across), "symmetric")


def pixelate(key: PRNGKey, image: Image, share: float) -> Image:
    """The image is resized to a share of each side and back, with box filters."""
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


def jpeg_compression(key: PRNGKey, image: Image, quality: int) -> Image:
    """JPEG at this quality, with chroma at half the resolution."""
    return jpeg.compress(image, quality)


def spatter(
    key: PRNGKey,
    image: Image,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    amount: float,
    mud: int,
) -> Image:
    """Drops of water, or of mud if `mud` is 1.

    The drops are normal noise of this mean and deviation, blurred by sigma pixels, where it
    is above the threshold. amount: the opacity of water, or the blur of the rims of mud.
    """
    noise = mean + deviation * jax.random.normal(key, (*image.shape[:2], 1))
    liquid = filters.gaussian_blur(noise, sigma)[..., 0]
    liquid = jnp.where(liquid < threshold, 0, liquid)
    if mud:
        cover = (liquid > threshold).astype(jnp.float32)[..., None]
        cover = filters.gaussian_blur(cover, amount)
        cover = jnp.where(cover < 0.8, 0, cover)
        return (1 - cover) * image + cover * _colour(MUD, image)
    cover = _rims(jnp.floor(255 * liquid))[..., None]
    return image + amount * cover * _colour(WATER, image)


def _rims(liquid: Plane) -> Plane:
    """Opacity [H, W] in [0, 1] of drops of water: their thickness (0 to 255) in relief."""
    box = np.full((3, 3), 1 / 9)
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    far = filters.distance(filters.canny(liquid, 50, 150), 20)[..., None]
    even = filters.equalize(jnp.floor(filters.correlate(far, box)[..., 0] + 1e-3), 21)
    raised = jnp.clip(filters.correlate(even[..., None], relief), 0, 255)
    cover = liquid * jnp.round(filters.correlate(raised, box)[..., 0])
    return cover / jnp.maximum(jnp.max(cover), 1e-9)
