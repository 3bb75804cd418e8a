"""What the backbones share: norms, convolutions, activations, randomness per example.

Every convolutional network has the layout of one `Layers` and the block names of
`stages`: stem, stage1_block1/{norm1,conv1,...}, norm, head.
"""

import functools
import math
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import advadapters.convolutions  # noqa: F401, installs its rule
from advadapters import rng, schema
from advadapters.errors import UsageError, pick
from advadapters.models.added import Added, add
from advadapters.models.film import Film, condition_of, filmed


def gelu(x):
    """x times the normal distribution's probability below x (Hendrycks and Gimpel 2016).

    In float32, as bfloat16 has no digits left of 1 + erf(x) below zero. `jax.nn.gelu`
    takes erfc for its last bits there, at two to three times the cost.
    """
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (exact * (0.5 * (1 + jax.lax.erf(exact * math.sqrt(0.5))))).astype(x.dtype)


# Names of what pretrained transformers have; "tanh" is `flax.linen.gelu`'s default, "quick"
# is OpenAI's CLIP's.
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
    """The layers of one convolutional network; to be called inside `nn.compact`.

    kind: in NORMS. activation: in ACTIVATIONS. stats_axes: names of the mapped axes over
    which batch statistics are averaged. dtype: of the convolutions and of what the
    norms give. train: whether batch norms use, and update by, the batch's statistics.
    added: modules beside the convolutions, see `added`. path: of the module that the
    layers are in. film, condition: what lambda does to the norms' results, see `film`.
    """

    kind: str
    activation: str
    stats_axes: tuple[str, ...]
    dtype: Any
    train: bool
    added: tuple[Added, ...] = ()
    path: tuple[str, ...] = ()
    film: Film | None = None
    condition: Any = None

    def within(self, module):
        """The same for the layers of a module inside."""
        return self._replace(path=module.path)

    def conditioned(self, film, lam, batch):
        """The same with the condition [B, E] that lambda makes, if there is a film."""
        return self._replace(film=film, condition=condition_of(film, lam, batch))

    def norm(self, x, name, conditioned=True):
        """x [B, H, W, C] normalised, see `norm`, and then through FiLM if there is any."""
        make = norm(
            self.kind,
            x.shape[-1],
            train=self.train,
            stats_axes=self.stats_axes,
            dtype=self.dtype,
            name=name,
        )
        return filmed(self.film, make(x), self.condition if conditioned else None, name)

    def conv(self, x, channels, kernel, name, stride=1):
        """x [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), channels]."""
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

    def act(self, x):
        """The activation of every entry."""
        return ACTIVATIONS[self.activation](x)


def norm(kind, channels, *, train, stats_axes, dtype, name):
    """A norm module with parameters scale and bias [channels].

    Statistics are float32, the result has `dtype`.

    "batch": of the batch and all positions in training, running ones otherwise (Ioffe
      and Szegedy 2015). In training the mapped axes `stats_axes` must be bound, except
      while initialising; the variance is the biased one, the running one too.
    "group": of each image, in up to 32 groups of channels (Wu and He 2018). Where there
      are few channels there are fewer groups, so that none has only one.
    "layer": the same with one group: over all positions and channels of an image.

    Raises UsageError for another kind.
    """
    if kind == "batch":
        axes: Any = tuple(stats_axes) or None  # annotated as a string; several go too
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=MOMENTUM,
            epsilon=EPS,
            dtype=dtype,
            axis_name=axes,
            name=name,
        )
    groups = {"group": group_count(channels), "layer": 1}
    return nn.GroupNorm(pick(groups, kind, "norm"), epsilon=EPS, dtype=dtype, name=name)


def group_count(channels):
    """The largest divisor of the channels up to 32 that leaves no group with only one.

    A group of one channel would normalise each channel of an image by itself.
    """
    most = max(1, min(32, channels // 2))
    return max(n for n in range(1, most + 1) if channels % n == 0)


def conv(channels, kernel, stride=1, *, dtype, name):
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


def scaled(channels, factor):
    """Channels of a network of another width. Raises UsageError unless whole."""
    found = channels * factor
    if found < 1 or found != int(found):
        raise UsageError(f"width {factor:g} leaves {found:g} of {channels} channels")
    return int(found)


def stages(width, depths):
    """(name, channels, stride) of every block.

    depths: blocks of each stage. From one stage to the next the width doubles and the
    image's side is halved.
    """
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            yield f"stage{stage + 1}_block{block + 1}", width * 2**stage, stride


def standardize(images, mean, std, side=0):
    """Images [B, H, W, C] in [0, 1], less the mean [C], over the deviation [C].

    side: that of the square which they are then resized to, see `resize`; 0 for none.
    """
    return resize((images - jnp.array(mean)) / jnp.array(std), side)


def resize(images, side):
    """Images [B, H, W, C] -> [B, side, side, C] by nearest neighbours; as they are for 0.

    Row i is row floor(i H / side), columns likewise: the corner convention of torch's
    interpolate(mode="nearest"), where `jax.image.resize` takes the pixels' centres. The
    published fine-tuning of ImageNet networks on CIFAR enlarges images in this way.
    (torch takes H / side in float32, which for about 2% of all pairs of sizes moves some
    row by one; 28, 32, 64 or 96 to 224 are not among them.) Written as repeating and
    skipping, without a gather, so that the gradient is a sum in a fixed order.
    """
    for axis in (1, 2) if side else ():
        images = nearest(images, axis, side)
    return images


def nearest(x, axis, size):
    """`resize` along one axis: with g = gcd, each entry size / g times, every (n / g)th."""
    n = x.shape[axis]
    common = math.gcd(n, size)
    repeats, skip = size // common, n // common
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    x = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*before, n, repeats, *after))
    x = x.reshape(*before, n * repeats, *after)
    return jax.lax.slice_in_dim(x, 0, n * repeats, skip, axis)


def logits(x, classes, added):
    """Features [B, H, W, C] of any type -> float32 [B, L]: mean over positions, "head"."""
    x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    y = nn.Dense(classes, name="head")(x)
    return add(added, ("head",), x, y, dtype=jnp.float32)


def sincos(grid, width):
    """Fixed two-dimensional sine-cosine positions [h * w, D], as in MoCo v3 and MAE."""
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
    def __call__(self, x):
        start = nn.initializers.constant(self.first)
        return x * self.param("gamma", start, x.shape[-1:]).astype(x.dtype)


def drop(x, rate, key, index, shape):
    """Zeroes entries of x [B, ...] with probability `rate`, scales up those that stay.

    Example b draws a mask of `shape` (that broadcasts against x[b]) from the key folded
    with index[b]: however a batch is split, an example meets the same mask.
    """
    keys = rng.by_index(key, index)
    keep = jax.vmap(lambda one: jax.random.bernoulli(one, 1 - rate, shape))(keys)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0)


def drop_gradient(x, keep, key, index):
    """x [B, ...] as it is, but example b's gradient flows back with probability keep[b].

    Else it is zero. The draw comes from the key folded with index[b]; whatever it is,
    the values are the same bit for bit.
    """
    flows = jax.vmap(jax.random.bernoulli)(rng.by_index(key, index), keep)
    flows = flows.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(flows, x, jax.lax.stop_gradient(x))


def numbered(index, images):
    """The numbers [B] of the examples, 0, 1, ... if there is no index."""
    return jnp.arange(images.shape[0]) if index is None else index
