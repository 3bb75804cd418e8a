"""What the backbones share: norms, convolutions, activations, randomness per example.

Every convolutional network has the layers of one `Layers` and the block names of `stages`:
stem, stage1_block1/{norm1,conv1,...}, norm, head.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import advadapters.convolutions  # noqa: F401, installs its rule
from advadapters import rng, schema
from advadapters.errors import UsageError, pick
from advadapters.models.added import Added, add
from advadapters.models.film import Condition, Film, condition_of, filmed
from advadapters.shapes import (
    AnyArray,
    Features,
    Float,
    Images,
    Logits,
    Num,
    Number,
    PRNGKey,
    Shaped,
)


def gelu(x: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """x times the normal distribution's probability below x (Hendrycks and Gimpel 2016).

    It is computed in float32, as bfloat16 has no digits left of 1 + erf(x) below zero.
    `jax.nn.gelu` takes erfc for its last bits there, at two to three times the cost.
    """
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (exact * (0.5 * (1 + jax.lax.erf(exact * math.sqrt(0.5))))).astype(x.dtype)


# By the names that pretrained transformers give them. "tanh" is the default of
# `flax.linen.gelu`, and OpenAI's CLIP has "quick".
GELUS = {
    "erf": gelu,
    "tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
}

NORMS = ("batch", "group", "layer")
ACTIVATIONS = {"relu": nn.relu, "silu": nn.silu}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Settings that all models have, as annotations of their fields: see `schema`.
Norm = Annotated[str, schema.OneOf(NORMS), "batch, group or layer norm"]
Resize = Annotated[
    int,
    schema.Between(low=0),
    "side that images get inside, unseen by attacks; 0: as they are",
]
Activation = Annotated[str, schema.OneOf(ACTIVATIONS), "relu or silu"]
Dtype = Annotated[Any, schema.OneOf(DTYPES), "of matrix products"]

EPS = 1e-5
MOMENTUM = 0.9  # torch counts the other way around and calls it 0.1

# He et al. 2015, "Delving deep into rectifiers", with the fan of the outputs.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Layers(NamedTuple):
    """The layers of one convolutional network, to be called inside `nn.compact`.

    Attributes:
      kind: which norm, in NORMS.
      activation: in ACTIVATIONS.
      stats_axes: the names of the mapped axes over which batch statistics are averaged.
      dtype: the type of the convolutions and of what the norms give.
      train: whether batch norms use the batch's statistics and update the running ones.
      added: the modules beside the convolutions, see `added`.
      path: that of the module that the layers are in.
      film, condition: what lambda does to the results of the norms, see `film`.
    """

    kind: str
    activation: str
    stats_axes: tuple[str, ...]
    dtype: Any
    train: bool
    added: tuple[Added, ...] = ()
    path: tuple[str, ...] = ()
    film: Film | None = None
    condition: Condition | None = None

    def within(self, module: nn.Module) -> "Layers":
        """The same for the layers of a module inside."""
        return self._replace(path=module.path)

    def conditioned(
        self, film: Film | None, lam: float | Num[AnyArray, "..."] | None, batch: Any
    ) -> "Layers":
        """The same with the condition that lambda makes, see `film.condition_of`."""
        return self._replace(film=film, condition=condition_of(film, lam, batch))

    def norm(
        self, x: Float[AnyArray, "B H W C"], name: str, conditioned: bool = True
    ) -> Float[AnyArray, "B H W C"]:
        """x normalised, see `norm`, and then through FiLM where there is one.

        conditioned: whether FiLM is applied.
        """
        make = norm(
            self.kind,
            x.shape[-1],
            train=self.train,
            stats_axes=self.stats_axes,
            dtype=self.dtype,
            name=name,
        )
        return filmed(self.film, make(x), self.condition if conditioned else None, name)

    def conv(
        self, x: Features, channels: int, kernel: int, name: str, stride: int = 1
    ) -> Float[AnyArray, "B _ _ {channels}"]:
        """x convolved, with a result [B, ceil(H / stride), ceil(W / stride), channels]."""
        y = conv(channels, kernel, stride, dtype=self.dtype, name=name)(x)
        return add(
            self.added,
            (*self.path, name),
            x,
            y,
            dtype=self.dtype,
            kernel=(kernel, kernel),
            stride=stride,
        )

    def act(self, x: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
        """The activation of every entry."""
        return ACTIVATIONS[self.activation](x)


def norm(
    kind: str,
    channels: int,
    *,
    train: bool,
    stats_axes: Sequence[str],
    dtype: Any,
    name: str | None,
) -> nn.BatchNorm | nn.GroupNorm:
    """A norm module with parameters scale and bias [channels].

    Its statistics are float32, and its result has `dtype`. Each kind takes other ones:

    - "batch" has those of the batch and all positions in training, and running ones
      otherwise (Ioffe and Szegedy 2015). In training the mapped axes `stats_axes` must be
      bound, except while initialising. The variance is the biased one, and so is the
      running one.
    - "group" has those of each image in up to 32 groups of channels (Wu and He 2018). Where
      there are few channels there are fewer groups, so that none has only one.
    - "layer" has one such group, which is all positions and channels of an image.

    Raises UsageError for another kind.
    """
    if kind == "batch":
        # flax annotates the axes as one string, and takes several too.
        axes: Any = tuple(stats_axes) or None
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=MOMENTUM,
            epsilon=EPS,
            dtype=dtype,
            axis_name=axes,
            name=name,
        )
    groups = {"group": _group_count(channels), "layer": 1}
    return nn.GroupNorm(pick(groups, kind, "norm"), epsilon=EPS, dtype=dtype, name=name)


def _group_count(channels: int) -> int:
    """The largest divisor of the channels up to 32 that leaves no group with only one.

    A group of one channel would normalise each channel of an image by itself.
    """
    most = max(1, min(32, channels // 2))
    return max(n for n in range(1, most + 1) if channels % n == 0)


def conv(
    channels: int, kernel: int, stride: int = 1, *, dtype: Any, name: str | None
) -> nn.Conv:
    """A convolution module without bias, padded by kernel // 2 on all sides as in torch.

    "SAME" would pad strided convolutions on two sides only.
    """
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=conv_init,
        dtype=dtype,
        name=name,
    )


def scaled(channels: int, factor: float) -> int:
    """The channels of a network of another width. Raises UsageError unless whole."""
    product = channels * factor
    if product < 1 or product != int(product):
        raise UsageError(f"width {factor:g} leaves {product:g} of {channels} channels")
    return int(product)


def stages(width: int, depths: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """The (name, channels, stride) of every block.

    From one stage to the next the width doubles, and the image's side is halved.

    Args:
      width: the channels of the first stage.
      depths: the number of blocks of each stage.
    """
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            yield f"stage{stage + 1}_block{block + 1}", width * 2**stage, stride


def standardize(
    images: Images, mean: Sequence[float], std: Sequence[float], side: int = 0
) -> Float[AnyArray, "B _ _ C"]:
    """Images in [0, 1], less the mean [C], over the deviation [C].

    side: that of the square which they are then resized to, see `resize`; 0 for none.
    """
    return resize((images - jnp.array(mean)) / jnp.array(std), side)


def resize(images: Num[AnyArray, "B _ _ C"], side: int) -> Num[AnyArray, "B _ _ C"]:
    """Images resized to [B, side, side, C] by nearest neighbours, or as they are for 0.

    Row i is row floor(i H / side), and columns likewise. This is the corner convention of
    torch's interpolate(mode="nearest"), where `jax.image.resize` takes the pixels' centres.
    The published fine-tuning of ImageNet networks on CIFAR enlarges images in this way.
    (torch takes H / side in float32, which for about 2% of all pairs of sizes moves some
    row by one; 28, 32, 64 or 96 to 224 are not among them.) Rows are repeated and skipped,
    not gathered, so that the gradient is a sum in a fixed order.
    """
    for axis in (1, 2) if side else ():
        images = _nearest(images, axis, side)
    return images


def _nearest(x: Num[AnyArray, "..."], axis: int, size: int) -> Num[AnyArray, "..."]:
    """`resize` along one axis of n entries.

    With g the greatest common divisor of n and size, each entry is repeated size / g times,
    and every (n / g)th of the copies is taken.
    """
    n = x.shape[axis]
    common = math.gcd(n, size)
    repeats, skip = size // common, n // common
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    x = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*before, n, repeats, *after))
    x = x.reshape(*before, n * repeats, *after)
    return jax.lax.slice_in_dim(x, 0, n * repeats, skip, axis)


def logits(x: Features, classes: int, added: Sequence[Added]) -> Logits:
    """The dense layer "head" of the features' mean over positions, in float32."""
    x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    y = nn.Dense(classes, name="head")(x)
    return add(added, ("head",), x, y, dtype=jnp.float32)


def sincos(grid: tuple[int, int], width: int) -> Float[np.ndarray, "N {width}"]:
    """Fixed sine-cosine positions of a grid of patches, as in MoCo v3 and MAE."""
    if width % 4:
        raise UsageError(f"sincos positions need a width divisible by 4, got {width}")
    omega = 1 / 10000 ** (np.arange(width // 4) / (width // 4))
    rows, columns = np.meshgrid(*map(np.arange, grid), indexing="ij")
    angles = [np.outer(axis.reshape(-1), omega) for axis in (columns, rows)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


class LayerScale(nn.Module):
    """x [..., D] times gamma [D] (Touvron et al. 2021), which starts at `first`."""

    first: float

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
        start = nn.initializers.constant(self.first)
        return x * self.param("gamma", start, x.shape[-1:]).astype(x.dtype)


def drop(
    x: Float[AnyArray, "B ..."],
    rate: Number,
    key: PRNGKey,
    index: Num[AnyArray, " B"],
    shape: tuple[int, ...],
) -> Float[AnyArray, "B ..."]:
    """Zeroes entries with probability `rate`, and scales up those that stay.

    Example b draws a mask of `shape`, which broadcasts against x[b], from the key folded
    with index[b]. However a batch is split, an example therefore gets the same mask.
    """
    keys = rng.by_index(key, index)
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0)


def drop_gradient(
    x: Float[AnyArray, "B ..."],
    keep: Float[AnyArray, " B"],
    key: PRNGKey,
    index: Num[AnyArray, " B"],
) -> Float[AnyArray, "B ..."]:
    """x as it is, but the gradient of example b flows back with probability keep[b].

    Otherwise it is zero. The draw comes from the key folded with index[b], and the values
    are the same bit for bit whatever is drawn.
    """
    flows = jax.vmap(jax.random.bernoulli)(rng.by_index(key, index), keep)
    flows = flows.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(flows, x, jax.lax.stop_gradient(x))


def numbered(
    index: Num[AnyArray, " B"] | None, images: Shaped[AnyArray, "B ..."]
) -> Num[AnyArray, " B"]:
    """The numbers of the examples, 0, 1, ... if there is no index."""
    return jnp.arange(images.shape[0]) if index is None else index
