"""Residual networks (He et al. 2015, "Deep residual learning"), post-activation.

The stride is on the 3x3 convolution, as in torchvision. The paths are stem/kernel,
norm/..., head/... and
stage1_block1/{conv1,norm1,conv2,norm2,conv3,norm3,shortcut,shortcut_norm}/...,
with conv3 in bottlenecks only, and shortcuts only where the shape changes.
"""

import re
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from advadapters import schema
from advadapters.errors import UsageError
from advadapters.models import layers
from advadapters.models.added import Added
from advadapters.models.film import Film
from advadapters.shapes import AnyArray, Features, Images, Logits, Num


class Size(NamedTuple):
    """The channels of the first stage, the blocks of each, whether they are bottlenecks."""

    width: int
    depths: tuple[int, ...]
    bottleneck: bool

    def scaled(self, factor: float) -> "Size":
        """The same with all channels times a factor; raises UsageError unless whole."""
        return self._replace(width=layers.scaled(self.width, factor))


SIZES = {
    "18": Size(64, (2, 2, 2, 2), False),
    "34": Size(64, (3, 4, 6, 3), False),
    "50": Size(64, (3, 4, 6, 3), True),
}

STEMS = ("cifar", "imagenet")
EXPANSION = 4  # how much wider a bottleneck's end is than its middle


def read_size(text: str) -> Size:
    """Reads "18", or "basic-16x1x1": the kind, the width and the blocks of each stage.

    Raises UsageError for other texts.

    >>> models.resnet.read_size("basic-16x2x2")
    Size(width=16, depths=(2, 2), bottleneck=False)
    """
    if text in SIZES:
        return SIZES[text]
    match = re.fullmatch(r"(basic|bottleneck)-([1-9]\d*(?:x[1-9]\d*)+)", text)
    if not match:
        raise UsageError(
            f"config.model.size={text!r} is neither of {', '.join(SIZES)} nor "
            "basic-WIDTHxBLOCKSx... or bottleneck-WIDTHxBLOCKSx... like basic-16x1x1"
        )
    width, *depths = map(int, match[2].split("x"))
    return Size(width, tuple(depths), match[1] == "bottleneck")


class Block(nn.Module):
    """act(x + branch(x)): two 3x3 convolutions, or 1x1, 3x3 and 1x1 for a bottleneck."""

    width: int
    stride: int
    bottleneck: bool
    layers: layers.Layers

    @nn.compact
    def __call__(self, x: Features) -> Features:
        make, width, stride = self.layers.within(self), self.width, self.stride
        if self.bottleneck:
            convs = [(width, 1, 1), (width, 3, stride), (EXPANSION * width, 1, 1)]
        else:
            convs = [(width, 3, stride), (width, 3, 1)]
        branch = x
        for i, (channels, kernel, step) in enumerate(convs, start=1):
            branch = make.act(branch) if i > 1 else branch
            branch = make.conv(branch, channels, kernel, f"conv{i}", step)
            branch = make.norm(branch, f"norm{i}")
        if x.shape != branch.shape:
            x = make.conv(x, branch.shape[-1], 1, "shortcut", stride)
            x = make.norm(x, "shortcut_norm", conditioned=False)
        return make.act(x + branch)


class ResNet(nn.Module):
    """A network from images [B, H, W, C] in [0, 1] to logits [B, L], both float32.

    Attributes:
      size: its channels and blocks.
      classes: the number L of classes.
      mean, std: those of the channels of images.
      stem: "cifar", a 3x3 convolution, or "imagenet", one of 7x7 with stride 2 and a 3x3
        max-pool with stride 2.
      resize: the side in pixels that images get inside, see `layers.resize`; 0 for none.
      norm, activation, stats_axes, added, dtype: see `layers.Layers`.
      film: how the network is conditioned on lambda, after every norm but those of
        shortcuts.

    A call takes `train`, whether batch norms use the statistics of the batch; `index`, as
    every model does, although nothing here is random; and `lam`, lambda [] or [B] if there
    is a film.
    """

    size: Size
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stem: Annotated[str, schema.OneOf(STEMS), "cifar or imagenet"] = "cifar"
    norm: layers.Norm = "batch"
    activation: layers.Activation = "relu"
    resize: layers.Resize = 0
    stats_axes: tuple[str, ...] = ()
    added: tuple[Added, ...] = ()
    film: Film | None = None
    dtype: layers.Dtype = jnp.float32

    read_size = staticmethod(read_size)
    scales = True  # narrower ones are corners of its leaves

    @nn.compact
    def __call__(
        self,
        images: Images,
        train: bool = False,
        index: Num[AnyArray, " B"] | None = None,
        lam: float | Num[AnyArray, "..."] | None = None,
    ) -> Logits:
        make = layers.Layers(
            self.norm, self.activation, self.stats_axes, self.dtype, train, self.added
        )
        make = make.conditioned(self.film, lam, images.shape[0])
        x = layers.standardize(images, self.mean, self.std, self.resize)
        large, x = self.stem == "imagenet", x.astype(self.dtype)
        x = make.conv(x, self.size.width, 7 if large else 3, "stem", 2 if large else 1)
        x = make.act(make.norm(x, "norm"))
        if large:
            padding: Any = ((1, 1), (1, 1))  # annotated as a string
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
        for name, width, stride in layers.stages(self.size.width, self.size.depths):
            x = Block(width, stride, self.size.bottleneck, make, name=name)(x)
        return layers.logits(x, self.classes, self.added)
