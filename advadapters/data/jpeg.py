"""What JPEG compression leaves of an image, on the device: no bytes, only the losses.

Baseline JPEG (ITU-T T.81) as libjpeg does it by default: YCbCr with chroma at half the
resolution, the example tables of Annex K scaled by quality, linear upsampling of chroma.
"""

import jax.numpy as jnp
import numpy as np

from advadapters.data.filters import along_axes
from advadapters.shapes import AnyArray, Float, Int

Plane = Float[AnyArray, "H W"]
Table = Float[np.ndarray, "8 8"]

LUMA = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
CHROMA = np.full((8, 8), 99)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
# Rows: Y, Cb, Cr of red, green, blue (JFIF).
TO_YCC = np.array([
    [0.299, 0.587, 0.114],
    [-0.168735892, -0.331264108, 0.5],
    [0.5, -0.418687589, -0.081312411],
], np.float32)  # fmt: skip
TO_RGB = np.linalg.inv(TO_YCC.astype(np.float64)).astype(np.float32)
# The orthonormal DCT of eight samples, [frequency, sample].
DCT = np.cos(np.pi / 8 * np.arange(8)[:, None] * (np.arange(8) + 0.5)) / 2
DCT[0] /= np.sqrt(2)
DCT = DCT.astype(np.float32)


def _table(base: Int[np.ndarray, "8 8"], quality: int) -> Table:
    """A quantisation table [8, 8] for a quality of 1 to 100, by libjpeg's rule."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((base * scale + 50) // 100, 1, 255).astype(np.float32)


def _quantise(plane: Plane, table: Table) -> Plane:
    """A plane of values 0 to 255 after the DCT of its 8x8 blocks was quantised."""
    height, width = plane.shape
    plane = jnp.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge")
    blocks = plane.reshape(plane.shape[0] // 8, 8, plane.shape[1] // 8, 8) - 128
    twice = "ui,aibj,vj->aubv", "ui,aubv,vj->aibj"
    waves = jnp.einsum(twice[0], DCT, blocks, DCT, precision="highest")
    # As libjpeg: coefficients in whole eighths first, then halves away from zero.
    eighths, steps = jnp.round(8 * waves), jnp.asarray(table)[:, None, :]
    multiples = jnp.floor((jnp.abs(eighths) + 4 * steps) / (8 * steps))
    waves = jnp.sign(waves) * multiples * steps
    blocks = jnp.einsum(twice[1], DCT, waves, DCT, precision="highest")
    values = jnp.clip(jnp.round(blocks + 128), 0, 255)
    return values.reshape(plane.shape)[:height, :width]


def _halve(plane: Plane) -> Float[AnyArray, "h w"]:
    """Means of 2x2 pixels; the last row and column are repeated where one is missing."""
    height, width = plane.shape
    plane = jnp.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    sums = plane[::2, ::2] + plane[::2, 1::2] + plane[1::2, ::2] + plane[1::2, 1::2]
    # libjpeg adds 1 and 2 by turns before it cuts.
    turn = jnp.arange(sums.shape[1]) % 2 + 1
    return jnp.floor((sums + turn) / 4)


def _doubling(size: int, result: int) -> Float[np.ndarray, "result size"]:
    """float32 [result, size]: each sample becomes two, 3/4 itself and 1/4 its neighbour."""
    near = np.arange(result) // 2
    far = np.clip(near + np.where(np.arange(result) % 2, 1, -1), 0, size - 1)
    return (0.75 * np.eye(size)[near] + 0.25 * np.eye(size)[far]).astype(np.float32)


def compress(image: Float[AnyArray, "H W C"], quality: int) -> Float[AnyArray, "H W C"]:
    """An image [H, W, 3 or 1] in [0, 1] after JPEG at a quality of 1 to 100."""
    height, width, channels = image.shape
    values = jnp.round(image * 255)
    if channels == 1:
        return _quantise(values[..., 0], _table(LUMA, quality))[..., None] / 255
    planes = jnp.einsum("pc,hwc->phw", TO_YCC, values, precision="highest")
    planes = jnp.round(planes + jnp.array([0, 128, 128])[:, None, None])
    luma = _quantise(planes[0], _table(LUMA, quality))
    halves = [_quantise(_halve(plane), _table(CHROMA, quality)) for plane in planes[1:]]
    halves = jnp.stack(halves, axis=-1)
    chroma = along_axes(
        _doubling(halves.shape[0], height), _doubling(halves.shape[1], width), halves
    )
    planes = jnp.concatenate([luma[..., None], jnp.round(chroma) - 128], axis=-1)
    rgb = jnp.einsum("cp,hwp->hwc", TO_RGB, planes, precision="highest")
    return jnp.clip(jnp.round(rgb), 0, 255) / 255
