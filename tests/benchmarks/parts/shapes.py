"""The networks that are measured, by name; plain values, no jax."""

from typing import NamedTuple


class Shape(NamedTuple):
    """A network's size as torch needs it too, and the side of its images in pixels."""

    width: int
    depth: int
    hidden: int
    heads: int
    patch: int
    side: int


SHAPES = {
    "b16": Shape(768, 12, 3072, 12, 16, 224),
    "s16": Shape(384, 12, 1536, 6, 16, 224),
    "s4": Shape(384, 12, 1536, 6, 4, 32),
    "ti16": Shape(192, 12, 768, 3, 16, 224),
    "tiny": Shape(64, 4, 256, 4, 4, 28),
    "micro": Shape(16, 1, 32, 2, 4, 8),
}
REFERENCES = ("vit_linf", "cnn_l2", "cnn_l1")  # of tests/reference
REFERENCE_VIT = Shape(64, 4, 256, 4, 7, 28)
