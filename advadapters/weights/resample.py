"""Positions and patch kernels for another number of patches or pixels, along both axes.

Resizing is linear, so each way is a matrix [new, old] for one axis; both axes of a grid get
theirs one after the other.
"""

import numpy as np
from jaxtyping import Float

from advadapters.errors import pick
from advadapters.weights.layouts import Leaf

Matrix = Float[np.ndarray, "new old"]


def bicubic(old: int, new: int) -> Matrix:
    """The cubic of Keys (1981) with a = -1/2, widened where it shrinks.

    timm's, which is torch's interpolate(mode="bicubic", antialias=True).
    """
    scale = old / new
    stretch = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(old) + 0.5 - centres[:, None]) / stretch
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


def cubic(old: int, new: int) -> Matrix:
    """Keys' cubic with a = -3/4 of the four nearest, of which the ends are repeated.

    What transformers and the program of DINOv2 do: torch's interpolate(mode="bicubic").
    """
    places = (np.arange(new) + 0.5) * (old / new) - 0.5
    first, matrix = np.floor(places).astype(int), np.zeros((new, old))
    for tap in range(-1, 3):
        distance = np.abs(places - (first + tap))
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        weights = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), weights)
    return matrix


def linear(old: int, new: int) -> Matrix:
    """Between the two nearest, the ends on the ends: vision_transformer's and big_vision's,
    which is `scipy.ndimage.zoom` of order 1.
    """
    places = np.linspace(0, old - 1, new)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old)))


WAYS = {"bicubic": bicubic, "cubic": cubic, "linear": linear}


def positions(
    grid: Float[np.ndarray, "N D"],
    side: int,
    way: str,
    old: tuple[int, int] | None = None,
) -> Leaf:
    """Positions of a grid of patches, row by row, for a square of side x side of them.

    old: the rows and columns of the grid, by default those of a square.
    """
    rows, columns = old or (round(len(grid) ** 0.5),) * 2
    make = pick(WAYS, way, "config.start.resample")
    table = grid.reshape(rows, columns, -1).astype(np.float64)
    matrices = make(rows, side), make(columns, side)
    resized = np.einsum("ai,bj,ijd->abd", *matrices, table)
    return resized.reshape(side * side, -1).astype(np.float32)


def patches(kernel: Float[np.ndarray, "rows D"], old: int, new: int, way: str) -> Leaf:
    """The kernel [old old C, D] of a patch embedding, for patches of new x new pixels.

    By the pseudo-inverse of resizing the image (FlexiViT, Beyer et al. 2023, equation 6):
    where patches are enlarged, a resized patch meets the new kernel as the old one met the
    old.
    """
    matrix = pick(WAYS, way, "config.start.resample")(old, new)
    inverse = np.linalg.pinv(matrix.T)  # [new, old]
    tiles = kernel.reshape(old, old, -1, kernel.shape[-1]).astype(np.float64)
    resized = np.einsum("ai,bj,ijcd->abcd", inverse, inverse, tiles)
    return resized.reshape(-1, kernel.shape[-1]).astype(np.float32)
