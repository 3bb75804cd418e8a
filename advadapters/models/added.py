"""Adapters that add parameters beside a layer: LoRA, LNLoRA, bottleneck, scale and shift.

A model has a tuple of `Added`; every dense or convolutional layer whose path a target
matches gets the module, named LAYER_NAME: blocks_0/mlp/fc1_lora/{a,b}. All of them
leave the network as it was at the start. Which parameters are trained and which belong
to a domain is said by path patterns, as for every other parameter.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from advadapters import trees
from advadapters.errors import UsageError

LAYER_NORM_EPS = 1e-6

# Uniform with variance 1 / (3 fan_in), as the LoRA code draws A; B starts at zero.
a_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Added(NamedTuple):
    """One kind of module on some layers.

    name: the end of its modules' names, "_NAME". kind: a row of KINDS. targets: patterns
    over the paths of layers; qkv can be named whole or as q, k and v. rank: of LoRA, or
    width of a bottleneck. scale: factor s of what is added (unused by scale and shift).
    """

    name: str
    kind: str
    targets: tuple[str, ...]
    rank: int
    scale: float


class LoRA(nn.Module):
    """y + s * sum_m (x A_m) B_m (Hu et al. 2021); x [..., D], y [..., F].

    norm: LNLoRA (Yuan et al. 2024), which sees LN_m(x) with a scale and bias of its own.
    Leaves: a [M, D, r], b [M, r, F], scale and bias [M, D]. M is 1 but for a mixture of
    several domains' LoRAs, where each keeps its own, see `trees.blend`.
    """

    rank: int
    scale: float
    norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, y, kernel=(), stride=1):
        """kernel, stride: of a convolution that y came from; A_m is then one too."""
        sides, features = (*kernel, x.shape[-1]), y.shape[-1]
        leaves = self.leaves(sides, features)
        for m in range(leaves["b"].shape[0]):
            own = {name: leaf[m] for name, leaf in leaves.items()}
            inner = self.down(x, own, kernel, stride) @ own["b"].astype(self.dtype)
            y = y + self.scale * inner.astype(y.dtype)
        return y

    def down(self, x, own, kernel, stride):
        """x A_m or LN_m(x) A_m, [..., r]."""
        if self.norm and not kernel:
            return normalised_product(x, own, self.dtype)
        inner = normalised(x, own["scale"], own["bias"]) if self.norm else x
        inner, a = inner.astype(self.dtype), own["a"].astype(self.dtype)
        return convolved(inner, a, kernel, stride) if kernel else inner @ a

    def leaves(self, sides, features):
        """The parameters; only those that are drawn here have to have one component."""
        width = sides[-1]
        shapes = {"a": (*sides, self.rank), "b": (self.rank, features)}
        draw = {"a": a_init, "b": nn.initializers.zeros}
        if self.norm:
            shapes |= {"scale": (width,), "bias": (width,)}
            draw |= {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
        if not self.is_initializing():
            return {name: self.get_variable("params", name) for name in shapes}

        def one(key, shape, name):
            return draw[name](key, shape, jnp.float32)[None]

        return {name: self.param(name, one, shapes[name], name) for name in shapes}


def normalised(x, scale, bias):
    """Layer norm over the last axis, in float32."""
    centred, inverse = standardised(x)
    return centred * inverse * scale + bias


def standardised(x):
    """(x - mean, 1 / deviation [..., 1]) over the last axis, in float32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(centred**2, -1, keepdims=True)
    return centred, jax.lax.rsqrt(variance + LAYER_NORM_EPS)


def normalised_product(x, own, dtype):
    """LN(x) A as (x - mean) (scale A) / deviation + bias A.

    The same without LN(x), which the backward pass would keep for each of six layers in a
    block: on ViT-B/16 with batches of 64, the compiled step needs 21.0 GB instead of 34.2.
    `jax.checkpoint` changes nothing there on CPUs, where XLA merges what is computed again.
    """
    centred, inverse = standardised(x)
    scaled = (own["scale"][:, None] * own["a"]).astype(dtype)
    product = (centred.astype(dtype) @ scaled).astype(jnp.float32) * inverse
    return (product + own["bias"] @ own["a"]).astype(dtype)


def convolved(x, a, kernel, stride):
    """x [B, H, W, C] with a [k, k, C, r], padded as `layers.conv` does."""
    padding = [(side // 2, side // 2) for side in kernel]
    return jax.lax.conv_general_dilated(
        x, a, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class Bottleneck(nn.Module):
    """y + s * up(gelu(down(y))) (Houlsby et al. 2019), up starting at zero."""

    rank: int
    scale: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, y, kernel=(), stride=1):
        hidden = nn.gelu(nn.Dense(self.rank, dtype=self.dtype, name="down")(y))
        zeros = nn.initializers.zeros
        up = nn.Dense(y.shape[-1], dtype=self.dtype, kernel_init=zeros, name="up")
        return y + self.scale * up(hidden).astype(y.dtype)


class ScaleShift(nn.Module):
    """y * gamma + beta by channel (Lian et al. 2022), gamma 1 and beta 0 at the start."""

    rank: int
    scale: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, y, kernel=(), stride=1):
        gamma = self.param("gamma", nn.initializers.ones, y.shape[-1:])
        beta = self.param("beta", nn.initializers.zeros, y.shape[-1:])
        return y * gamma.astype(y.dtype) + beta.astype(y.dtype)


KINDS = {
    "lora": LoRA,
    "lnlora": lambda **fields: LoRA(norm=True, **fields),
    "bottleneck": Bottleneck,
    "scale_shift": ScaleShift,
}


def add(added, path, x, y, *, dtype, parts=(), kernel=(), stride=1):
    """y with what is added to the layer at `path` (a tuple of names) that made y of x.

    parts: names of equal column blocks of y that can be targets too. To be called inside
    the `nn.compact` of the layer's parent. Raises UsageError for a rank that is not below
    both sides of the kernel.
    """
    *folder, name = path

    def module(one, part, block):
        if one.kind in ("lora", "lnlora"):
            check_rank(one, x.shape[-1], block.shape[-1], "/".join((*folder, part)))
        fields = dict(rank=one.rank, scale=one.scale, dtype=dtype)
        made = KINDS[one.kind](**fields, name=f"{part}_{one.name}")
        return made(x, block, kernel, stride)

    for one in added:
        if matched(one, (*folder, name)):
            y = module(one, name, y)
        blocks = jnp.split(y, len(parts), axis=-1) if parts else []
        chosen = [matched(one, (*folder, part)) for part in parts]
        if any(chosen):
            y = jnp.concatenate(
                [
                    module(one, part, block) if hit else block
                    for part, block, hit in zip(parts, blocks, chosen, strict=True)
                ],
                axis=-1,
            )
    return y


def matched(one, path):
    """Whether a target matches the layer."""
    return any(trees.matches(target, "/".join(path)) for target in one.targets)


def check_rank(one, width, features, path):
    """Raises UsageError unless the rank is below both sides of the kernel."""
    if one.rank >= min(width, features):
        raise UsageError(
            f"config.model.added.{one.name}.rank={one.rank} is not below the kernel of "
            f"{path}, which is {width} x {features}: give a smaller rank or other targets"
        )
