"""Pre-activation residual networks (He et al. 2016, "Identity mappings").

Norm and activation come before each convolution, and once more before pooling. The paths
are stem/kernel, stage1_block1/{norm1,conv1,norm2,conv2,shortcut}/..., norm/... and
head/..., with shortcuts only where the shape changes.
"""

import re
from typing import Annotated, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from advadapters import schema
from advadapters.errors import UsageError
from advadapters.models import layers
from advadapters.models.added import Added
from advadapters.models.film import Film
from advadapters.shapes import AnyArray, Features, Images, Logits, Num


class Size(NamedTuple):
    """The channels of the stem and of the first stage, and the blocks of each stage."""

    stem: int
    width: int
    depths: tuple[int, ...]

    def scaled(self, factor: float) -> "Size":
        """The same with all channels times a factor; raises UsageError unless whole."""
        stem, width = (layers.scaled(n, factor) for n in (self.stem, self.width))
        return self._replace(stem=stem, width=width)


SIZES = {"18": Size(64, 64, (2, 2, 2, 2))}


def read_size(text: str) -> Size:
    """Reads "18", or "16x1x1", which is the width and the blocks of each stage.

    Raises UsageError for other texts.

    >>> models.preact_resnet.read_size("16x2x2")
    Size(stem=16, width=16, depths=(2, 2))
    """
    if text in SIZES:
        return SIZES[text]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", text):
        raise UsageError(
            f"config.model.size={text!r} is neither of {', '.join(SIZES)} nor "
            "WIDTHxBLOCKSx..., blocks of each stage, like 16x1x1"
        )
    width, *depths = map(int, text.split("x"))
    return Size(width, width, tuple(depths))


class Block(nn.Module):
    """x + conv2(act(norm2(conv1(act(norm1(x)))))), dropout before conv2.

    Where the shape changes, a 1x1 convolution of act(norm1(x)) replaces x.
    """

    width: int
    stride: int
    dropout: float
    layers: layers.Layers

    @nn.compact
    def __call__(self, x: Features, index: Num[AnyArray, " B"]) -> Features:
        make = self.layers.within(self)
        active = make.act(make.norm(x, "norm1"))
        branch = make.conv(active, self.width, 3, "conv1", self.stride)
        if x.shape != branch.shape:
            x = make.conv(active, self.width, 1, "shortcut", self.stride)
        branch = make.act(make.norm(branch, "norm2"))
        if self.dropout and make.train:
            key, shape = self.make_rng("dropout"), branch.shape[1:]
            branch = layers.drop(branch, self.dropout, key, index, shape)
        return x + make.conv(branch, self.width, 3, "conv2")


class PreActResNet(nn.Module):
    """A network from images [B, H, W, C] in [0, 1] to logits [B, L], both float32.

    Attributes:
      size: its channels and blocks.
      classes: the number L of classes.
      mean, std: those of the channels of images.
      dropout: its rate between the convolutions of a block. In training it needs the random
        stream "dropout".
      resize: the side in pixels that images get inside, see `layers.resize`; 0 for none.
      norm, activation, stats_axes, added, dtype: see `layers.Layers`.
      film: how the network is conditioned on lambda, after every norm but the last.

    A call takes `train`, whether batch norms use the statistics of the batch; `index`, the
    numbers of the images, from which their masks are drawn (0, 1, ... by default); and
    `lam`, lambda [] or [B] if there is a film.
    """

    size: Size
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dropout: Annotated[float, schema.Between(0.0, 0.9), "rate within a block"] = 0.0
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
        index = layers.numbered(index, images)
        x = layers.standardize(images, self.mean, self.std, self.resize)
        x = make.conv(x.astype(self.dtype), self.size.stem, 3, "stem")
        for name, width, stride in layers.stages(self.size.width, self.size.depths):
            x = Block(width, stride, self.dropout, make, name=name)(x, index)
        x = make.act(make.norm(x, "norm", conditioned=False))
        return layers.logits(x, self.classes, self.added)
