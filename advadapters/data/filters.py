"""Filters of one image [H, W, C] on the device: blurs, resampling, fractal noise, edges.

What is linear along an axis (Gaussian blur, zoom, box resizing) is a matrix, made once in
numpy: that is exact at the borders, whatever the size of the image, and fast.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from advadapters.shapes import AnyArray, Array, Bool, Float, Num, PRNGKey, Scalar

Image = Float[AnyArray, "H W C"]
Plane = Float[AnyArray, "H W"]
# numpy's name of how an image goes on outside.
Border = Literal["edge", "symmetric", "reflect"]

# Of the chamfer distance with a mask of 5x5 (Borgefors 1986): length of a step by offset.
LENGTHS = {(0, 1): 1.0, (1, 1): 1.4, (1, 2): 2.1969}
OFFSETS = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
STEPS = {
    (y, x): LENGTHS[low, high]
    for y, x in OFFSETS
    for low, high in [sorted((abs(y), abs(x)))]
    if (low, high) in LENGTHS
}


def along_axes(
    rows: Float[AnyArray, "h H"], columns: Float[AnyArray, "w W"], image: Image
) -> Float[AnyArray, "h w C"]:
    """rows [h, H] and columns [w, W] applied to an image [H, W, C] -> [h, w, C]."""
    image = jnp.einsum("hH,HWC->hWC", rows, image, precision="highest")
    return jnp.einsum("wW,hWC->hwC", columns, image, precision="highest")


@functools.cache
def _gaussian_matrix(
    size: int, sigma: float, border: Border, truncate: float
) -> Float[np.ndarray, "size size"]:
    """float32 [size, size]: Gaussian blur of one axis, cut off at truncate * sigma pixels.

    border: numpy's name ("edge" or "symmetric") of how the axis goes on outside.
    """
    radius = int(truncate * sigma + 0.5)
    if not radius:
        return np.eye(size, dtype=np.float32)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    sources = np.pad(np.arange(size), radius, mode=border)
    matrix = np.zeros((size, size))
    for offset, weight in enumerate(weights / weights.sum()):
        matrix[np.arange(size), sources[offset : offset + size]] += weight
    return matrix.astype(np.float32)


def gaussian_blur(
    image: Image, sigma: float, border: Border = "edge", truncate: float = 4.0
) -> Image:
    """Gaussian blur of an image [H, W, C]; sigma in pixels."""
    height, width = image.shape[:2]
    rows = _gaussian_matrix(height, sigma, border, truncate)
    return along_axes(rows, _gaussian_matrix(width, sigma, border, truncate), image)


@functools.cache
def zoom_matrix(size: int, factor: float) -> Float[np.ndarray, "size size"]:
    """float32 [size, size]: enlarges the middle of one axis `factor` times, linearly."""
    crop = math.ceil(size / factor)
    grown = round(crop * factor)
    places = np.arange(grown) * (crop - 1) / max(grown - 1, 1)
    places = places[(grown - size) // 2 :][:size]
    low = np.floor(places).astype(int)
    high, share = np.minimum(low + 1, crop - 1), places - low
    matrix, top = np.zeros((size, size)), (size - crop) // 2
    matrix[np.arange(size), top + low] += 1 - share
    matrix[np.arange(size), top + high] += share
    return matrix.astype(np.float32)


@functools.cache
def box_matrix(size: int, result: int) -> Float[np.ndarray, "result size"]:
    """float32 [result, size]: resizes one axis with a box filter, as Pillow places it."""
    scale = size / result
    center = (np.arange(result)[:, None] + 0.5) * scale
    distance = (np.arange(size) + 0.5 - center) / max(scale, 1)
    inside = (distance > -0.5) & (distance <= 0.5)
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def correlate(image: Image, kernel: Num[np.ndarray, "k k"]) -> Image:
    """Every channel of an image [H, W, C] with an odd square kernel, mirrored outside.

    The mirror is the border pixel's centre (OpenCV's BORDER_REFLECT_101).
    """
    reach = len(kernel) // 2
    rows, columns = (np.pad(np.arange(n), reach, mode="reflect") for n in image.shape[:2])
    padded = jnp.transpose(image[rows][:, columns], (2, 0, 1))[:, None]
    weights = jnp.asarray(kernel, image.dtype)[None, None]
    result = jax.lax.conv_general_dilated(padded, weights, (1, 1), "VALID", None, None,
        precision="highest")  # fmt: skip
    return jnp.transpose(result[:, 0], (1, 2, 0))


def motion_blur(
    image: Image, radius: float, sigma: float, degrees: float | Scalar
) -> Image:
    """Half a Gaussian along a line from each pixel, as ImageMagick blurs.

    radius, sigma: pixels, static; the line has 2 ceil(radius) + 1 of them. degrees: its
    direction, clockwise from the right. Outside, border pixels go on.
    """
    taps = np.arange(2 * math.ceil(radius) + 1, dtype=np.float32)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    angle, reach = jnp.deg2rad(degrees), int(taps[-1])
    down = jnp.ceil(taps * jnp.sin(angle) - 0.5).astype(jnp.int32)
    right = jnp.ceil(taps * jnp.cos(angle) - 0.5).astype(jnp.int32)
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")

    def add(total: Image, tap: tuple[Array, Array, Array]) -> tuple[Image, None]:
        weight, y, x = tap
        part = jax.lax.dynamic_slice(padded, (reach + y, reach + x, 0), image.shape)
        return total + weight * part, None

    taps = (jnp.asarray(weights / weights.sum()), down, right)
    return jax.lax.scan(add, jnp.zeros_like(image), taps)[0]


def bilinear(
    image: Image,
    rows: Float[AnyArray, "h w"],
    columns: Float[AnyArray, "h w"],
    border: Border,
) -> Float[AnyArray, "h w C"]:
    """An image [H, W, C] at real-valued places, rows and columns [h, w] -> [h, w, C].

    border: "reflect" mirrors at the border pixel's centre, "symmetric" at its edge.
    """

    def fold(index: Array, size: int) -> Array:
        whole = border == "symmetric"
        period = max(2 * size - (0 if whole else 2), 1)
        index = index.astype(jnp.int32) % period
        return jnp.minimum(index, period - whole - index)

    height, width = image.shape[:2]
    top, left = jnp.floor(rows), jnp.floor(columns)
    y, x = (rows - top)[..., None], (columns - left)[..., None]
    at = lambda r, c: image[fold(r, height), fold(c, width)]  # noqa: E731
    upper = (1 - x) * at(top, left) + x * at(top, left + 1)
    lower = (1 - x) * at(top + 1, left) + x * at(top + 1, left + 1)
    return (1 - y) * upper + y * lower


def plasma(
    key: PRNGKey, height: int, width: int, decay: float
) -> Float[AnyArray, "height width"]:
    """Fractal noise [height, width] in [0, 1] by the diamond-square algorithm on a torus.

    Each halving of the grid, the noise has its roughness divided by decay ** 2.
    """
    levels = math.ceil(math.log2(max(height, width)))
    values = jax.random.uniform(key, (4**levels - 1,), minval=-1, maxval=1)
    grid, rough = jnp.zeros((1, 1)), 100.0
    for level in range(levels):
        size, start = 2**level, 4**level - 1
        noise = values[start : start + 3 * size**2].reshape(3, size, size)
        grid = _refine(grid, rough**2 * noise)
        rough /= decay
    grid -= jnp.min(grid)
    return (grid / jnp.maximum(jnp.max(grid), 1e-9))[:height, :width]


def _refine(
    corners: Float[AnyArray, "n n"], noise: Float[AnyArray, "3 n n"]
) -> Float[AnyArray, "m m"]:
    """A step of diamond-square, [n, n] -> [2n, 2n]: means of four + noise [3, n, n]."""
    pair = corners + jnp.roll(corners, -1, axis=0)
    middle = (pair + jnp.roll(pair, -1, axis=1)) / 4 + noise[0]
    beside = corners + jnp.roll(corners, -1, axis=1) + middle + jnp.roll(middle, 1, axis=0)
    below = pair + middle + jnp.roll(middle, 1, axis=1)
    even = jnp.stack([corners, beside / 4 + noise[1]], axis=-1)  # [n, n, 2]
    odd = jnp.stack([below / 4 + noise[2], middle], axis=-1)
    size = len(corners)
    return jnp.stack([even, odd], axis=1).reshape(2 * size, 2 * size)


def _neighbour(grid: Plane, down: int, right: int, outside: float) -> Plane:
    """The grid [H, W] moved: the value `down` rows below and `right` columns right."""
    height, width = grid.shape
    reach = max(abs(down), abs(right))
    padded = jnp.pad(grid, reach, constant_values=outside)
    return padded[reach + down :, reach + right :][:height, :width]


def canny(grid: Plane, low: float, high: float) -> Bool[AnyArray, "H W"]:
    """bool [H, W]: Canny's edges of values 0 to 255 [H, W], as OpenCV finds them.

    Sobel gradients, |x| + |y| as their size, thinned along the gradient; above `high`, or
    above `low` and connected to such.
    """
    slope = np.outer([1, 2, 1], [-1, 0, 1]).astype(np.float32)
    padded = jnp.pad(grid, 1, mode="edge")[..., None]
    dx, dy = (correlate(padded, k)[1:-1, 1:-1, 0] for k in (slope, slope.T))
    size = jnp.abs(dx) + jnp.abs(dy)
    near = lambda y, x: _neighbour(size, y, x, 0.0)  # noqa: E731
    across = (size > near(0, -1)) & (size >= near(0, 1))
    along = (size > near(-1, 0)) & (size >= near(1, 0))
    falling = (size > near(-1, -1)) & (size > near(1, 1))
    rising = (size > near(-1, 1)) & (size > near(1, -1))
    flat = jnp.abs(dy) < math.tan(math.pi / 8) * jnp.abs(dx)
    steep = jnp.abs(dy) > math.tan(3 * math.pi / 8) * jnp.abs(dx)
    diagonal = jnp.where(dx * dy < 0, rising, falling)
    thin = jnp.where(flat, across, jnp.where(steep, along, diagonal)) & (size > low)

    def grow(state: tuple[Array, Array]) -> tuple[Array, Array]:
        edges, _ = state
        wide = jax.lax.reduce_window(edges, False, jnp.logical_or, (3, 3), (1, 1), "SAME")
        grown = wide & thin
        return grown, jnp.any(grown != edges)

    strong = thin & (size > high)
    return jax.lax.while_loop(lambda state: state[1], grow, (strong, jnp.any(strong)))[0]


def distance(marked: Bool[AnyArray, "H W"], limit: int) -> Plane:
    """float32 [H, W]: chamfer distance to the nearest marked pixel, at most `limit`."""

    def relax(_: Any, lengths: Plane) -> Plane:
        for (y, x), length in STEPS.items():
            lengths = jnp.minimum(lengths, _neighbour(lengths, y, x, float(limit)) + length)
        return lengths

    start = jnp.where(marked, 0.0, float(limit))
    return jax.lax.fori_loop(0, limit, relax, start)


def equalize(grid: Plane, levels: int) -> Plane:
    """Whole numbers 0 to levels - 1 [H, W] -> 0 to 255, their histogram made even."""
    counts = jnp.sum(grid[..., None] == jnp.arange(levels), axis=(0, 1))
    first = jnp.argmax(counts > 0)
    rest = grid.size - counts[first]
    below = jnp.cumsum(counts) - counts[first]
    table = jnp.round(below * 255.0 / jnp.maximum(rest, 1))
    return jnp.where(rest > 0, table[grid.astype(jnp.int32)], grid)
