"""The common corruptions of Hendrycks and Dietterich (2019) on the device, five severities.

These are the fifteen of ImageNet-C and CIFAR-10-C and their four extra ones, with the
parameters of the authors' programs. Published frost is made of photographs, which are not
here: `distortions.frost` draws ice of its own, so accuracies under it are not the published
ones. The files of ImageNet-C are also JPEGs of quality 85, which is not done here. What is
drawn belongs to an image's number.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from advadapters import rng
from advadapters.data import distortions
from advadapters.errors import UsageError, pick
from advadapters.shapes import AnyArray, Float, Images, PRNGKey, PRNGKeys

# Images with a shorter side up to this get the parameters for 32 pixels, others those for
# 224: the nearer of the two, in proportion. Lengths stay in pixels, but for elastic's.
SMALL = 84
SEVERITIES = (1, 2, 3, 4, 5)

Rows = tuple[tuple[float, ...], ...]  # the parameters of each severity


class Corruption(NamedTuple):
    """A distortion and its parameters by severity, for images of 224 and of 32 pixels.

    extra: whether it is none of the fifteen that benchmarks average over.
    """

    function: Callable[..., Float[AnyArray, "H W C"]]
    large: Rows
    small: Rows
    extra: bool = False


def _each(*values: float) -> Rows:
    """Rows of one parameter, for each severity."""
    return tuple((value,) for value in values)


def _of_244(*rows: tuple[float, ...]) -> Rows:
    """Lengths of the published program for 224 pixels, which takes the side to be 244."""
    return tuple(tuple(244 / 224 * value for value in row) for row in rows)


CORRUPTIONS = {
    "gaussian_noise": Corruption(
        distortions.gaussian_noise,
        _each(0.08, 0.12, 0.18, 0.26, 0.38),
        _each(0.04, 0.06, 0.08, 0.09, 0.1),
    ),
    "shot_noise": Corruption(
        distortions.shot_noise, _each(60, 25, 12, 5, 3), _each(500, 250, 100, 75, 50)
    ),
    "impulse_noise": Corruption(
        distortions.impulse_noise,
        _each(0.03, 0.06, 0.09, 0.17, 0.27),
        _each(0.01, 0.02, 0.03, 0.05, 0.07),
    ),
    "defocus_blur": Corruption(
        distortions.defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": Corruption(
        distortions.glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": Corruption(
        distortions.motion_blur,
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "zoom_blur": Corruption(
        distortions.zoom_blur,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": Corruption(
        distortions.snow,
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
        distortions.frost,
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    "fog": Corruption(
        distortions.fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": Corruption(
        distortions.brightness,
        _each(0.1, 0.2, 0.3, 0.4, 0.5),
        _each(0.05, 0.1, 0.15, 0.2, 0.3),
    ),
    "contrast": Corruption(
        distortions.contrast,
        _each(0.4, 0.3, 0.2, 0.1, 0.05),
        _each(0.75, 0.5, 0.4, 0.3, 0.15),
    ),
    "elastic_transform": Corruption(
        distortions.elastic_transform,
        _of_244(
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
        distortions.pixelate,
        _each(0.6, 0.5, 0.4, 0.3, 0.25),
        _each(0.95, 0.9, 0.85, 0.75, 0.65),
    ),
    "jpeg_compression": Corruption(
        distortions.jpeg_compression, _each(25, 18, 15, 10, 7), _each(80, 65, 58, 50, 40)
    ),
    "speckle_noise": Corruption(
        distortions.speckle_noise,
        _each(0.15, 0.2, 0.35, 0.45, 0.6),
        _each(0.06, 0.1, 0.12, 0.16, 0.2),
        extra=True,
    ),
    "gaussian_blur": Corruption(
        distortions.gaussian_blur,
        _each(1, 2, 3, 4, 6),
        _each(0.4, 0.6, 0.7, 0.8, 1),
        extra=True,
    ),
    "spatter": Corruption(
        distortions.spatter,
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
        distortions.saturate,
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        extra=True,
    ),
}
COMMON = tuple(name for name, row in CORRUPTIONS.items() if not row.extra)


def parameters(name: str, severity: int, side: int) -> tuple[float, ...]:
    """The parameters of a corruption at a severity, for images of this shorter side."""
    row = pick(CORRUPTIONS, name, "corruption")
    if severity not in SEVERITIES:
        raise UsageError(f"severity must be one of 1, 2, 3, 4, 5, got {severity}")
    return (row.small if side <= SMALL else row.large)[severity - 1]


def corrupt(images: Images, key: PRNGKey | PRNGKeys, *, name: str, severity: int) -> Images:
    """Corrupts images [B, H, W, C] in [0, 1]; the result is in whole 1/255.

    Args:
      images: of 1 or 3 channels.
      key: one key, or one for each image, whose result then does not depend on its batch.
      name: of the corruption, in CORRUPTIONS.
      severity: one of SEVERITIES.

    Raises:
      UsageError: there is no such corruption or severity, or images have other channels.
    """
    height, width, channels = images.shape[1:]
    if channels not in (1, 3):
        raise UsageError(f"corruptions are of images with 1 or 3 channels, not {channels}")
    settings = parameters(name, severity, min(height, width))

    def corrupt_image(
        key: PRNGKey, image: Float[AnyArray, "H W C"]
    ) -> Float[AnyArray, "H W C"]:
        key = rng.fold(key, f"{name}-{severity}")
        return distortions.cut(CORRUPTIONS[name].function(key, image, *settings))

    return jax.vmap(corrupt_image)(rng.per_example(key, len(images)), images)
