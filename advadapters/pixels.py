"""Pixels: uint8 from 0 to 255, or float32 in [0, 1]."""

import numpy as np

from advadapters.shapes import AnyArray, Num


def to_float(images: Num[AnyArray, "*shape"]) -> Num[AnyArray, "*shape"]:
    """uint8 images, of numpy or jax, as float32 in [0, 1]; others as they are."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images
