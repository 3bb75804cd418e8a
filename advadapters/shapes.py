"""The shapes in use, by name: annotations say them, and the tests check them at each call.

One letter means one size within a call: B images of H x W pixels and C channels, L classes,
K domains or networks. Arrays are jax's or numpy's, and what is traced counts as an array.
"""

from collections.abc import Callable, Sequence
from typing import SupportsFloat

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key, Num, PyTree, Shaped, UInt8

AnyArray = jax.Array | np.ndarray

Scalar = Float[AnyArray, ""]
PerImage = Float[AnyArray, " B"]  # a loss, a distance, a margin
Images = Float[AnyArray, "B H W C"]  # in [0, 1]
Features = Float[AnyArray, "B _ _ _"]  # images inside a network, of any size
Bytes = UInt8[AnyArray, "B H W C"]  # images as files hold them
HostImages = Num[np.ndarray, "B H W C"]  # float32 in [0, 1], or uint8, not on a device
Classes = Int[AnyArray, " B"]  # class numbers
Soft = Float[AnyArray, "B L"]  # a probability for each class
Labels = Classes | Soft
Logits = Float[AnyArray, "B L"]
Marks = Bool[AnyArray, " B"]  # a yes or no for each image
Mixture = Float[AnyArray, " K"]  # a weight for each domain
MixtureLike = Num[AnyArray, " K"] | Sequence[SupportsFloat]
Mixtures = Float[AnyArray, "N K"]  # one row is one mixture
PRNGKey = Key[Array, ""]
PRNGKeys = Key[Array, " B"]  # one for each image
Number = int | float | np.number | Num[AnyArray, ""]  # of Python, numpy or jax, traced too
Radii = Number | PerImage  # one for all images, or one for each
Points = PyTree[Float[AnyArray, "B ..."]]  # what an attack moves: images, or parts of them
LogitsFn = Callable[..., Logits]  # of images, of a random network also of a key
Tree = PyTree[Shaped[AnyArray, "..."]]  # parameters, statistics, moments

__all__ = [
    "AnyArray",
    "Array",
    "Bool",
    "Bytes",
    "Classes",
    "Features",
    "Float",
    "HostImages",
    "Images",
    "Int",
    "Integer",
    "Key",
    "Labels",
    "Logits",
    "LogitsFn",
    "Marks",
    "Mixture",
    "MixtureLike",
    "Mixtures",
    "Num",
    "Number",
    "PRNGKey",
    "PRNGKeys",
    "PerImage",
    "Points",
    "PyTree",
    "Radii",
    "Scalar",
    "Shaped",
    "Soft",
    "Tree",
    "UInt8",
]
