"""Adapters that add parameters beside a layer: LoRA, LNLoRA, bottleneck, scale and shift.

A model has a tuple of `Added`. Every dense or convolutional layer whose path a target
matches gets the module, whose name is LAYER_NAME: blocks_0/mlp/fc1_lora/{a,b}. At the start
none of them changes what the network computes. Path patterns say which parameters are
trained and which belong to a domain, as for every other parameter.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from advadapters import trees
from advadapters.errors import UsageError
from advadapters.shapes import AnyArray, Float, PRNGKey

Inputs = Float[AnyArray, "*inner D"]  # of a layer: tokens, rows or images with channels
Outputs = Float[AnyArray, "*outer F"]
Leaves = Mapping[str, Float[AnyArray, "..."]]  # the parameters of a module, by name

LAYER_NORM_EPS = 1e-6

# Uniform with variance 1 / (3 fan_in), as the LoRA code draws A; B starts at zero.
a_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Added(NamedTuple):
    """One kind of module on some layers.

    Attributes:
      name: the end of its modules' names, "_NAME".
      kind: a row of KINDS.
      targets: patterns of the paths of layers. qkv can be named whole, or as q, k and v.
      rank: the rank of a LoRA, or the width of a bottleneck.
      scale: the factor s of what is added, which scale and shift do not use.
    """

    name: str
    kind: str
    targets: tuple[str, ...]
    rank: int
    scale: float


class LoRA(nn.Module):
    """y + s * sum_m (x A_m) B_m (Hu et al. 2021), where x is [..., D] and y [..., F].

    The leaves are a [M, D, r] and b [M, r, F], and with `norm` scale and bias [M, D]. M is
    1 except in a mixture of several domains' LoRAs, where each keeps its own, see
    `trees.blend`.

    Attributes:
      rank: the number r of columns of A.
      scale: the factor s.
      norm: whether it is an LNLoRA (Yuan et al. 2024), which takes LN_m(x) in place of x.
        Its layer norm has a scale and a bias of its own.
      dtype: the type of the products.
    """

    rank: int
    scale: float
    norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Inputs, y: Outputs, kernel: tuple[int, ...] = (), stride: int = 1
    ) -> Outputs:
        """Adds to y, which a layer made of x.

        kernel, stride: those of the layer if it is a convolution, which makes A_m one too.
        """
        sides, features = (*kernel, x.shape[-1]), y.shape[-1]
        leaves = self._leaves(sides, features)
        for m in range(leaves["b"].shape[0]):
            component = {name: leaf[m] for name, leaf in leaves.items()}
            inner = self._down(x, component, kernel, stride)
            inner = inner @ component["b"].astype(self.dtype)
            y = y + self.scale * inner.astype(y.dtype)
        return y

    def _down(
        self, x: Inputs, component: Leaves, kernel: tuple[int, ...], stride: int
    ) -> Float[AnyArray, "*outer {self.rank}"]:
        """x A_m or LN_m(x) A_m."""
        if self.norm and not kernel:
            return _layer_norm_product(x, component, self.dtype)
        inner = x
        if self.norm:
            inner = _layer_norm(x, component["scale"], component["bias"])
        inner, a = inner.astype(self.dtype), component["a"].astype(self.dtype)
        return _convolve(inner, a, kernel, stride) if kernel else inner @ a

    def _leaves(self, sides: tuple[int, ...], features: int) -> Leaves:
        """The parameters. Those that are drawn here have one component."""
        width = sides[-1]
        shapes = {"a": (*sides, self.rank), "b": (self.rank, features)}
        initializers: dict[str, Callable[..., jax.Array]] = {
            "a": a_init,
            "b": nn.initializers.zeros,
        }
        if self.norm:
            shapes |= {"scale": (width,), "bias": (width,)}
            initializers |= {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
        # `self.param` would refuse the parameters of a mixture, which have M components.
        if not self.is_initializing():
            return {name: self.get_variable("params", name) for name in shapes}

        def draw(
            key: PRNGKey, shape: tuple[int, ...], name: str
        ) -> Float[AnyArray, "1 ..."]:
            return initializers[name](key, shape, jnp.float32)[None]

        return {name: self.param(name, draw, shapes[name], name) for name in shapes}


def _layer_norm(
    x: Inputs, scale: Float[AnyArray, " D"], bias: Float[AnyArray, " D"]
) -> Inputs:
    """Layer norm over the last axis, in float32."""
    centred, inverse = _standardize(x)
    return centred * inverse * scale + bias


def _standardize(x: Inputs) -> tuple[Inputs, Float[AnyArray, "*inner 1"]]:
    """(x - mean, 1 / deviation) over the last axis, in float32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(centred**2, -1, keepdims=True)
    return centred, jax.lax.rsqrt(variance + LAYER_NORM_EPS)


def _layer_norm_product(
    x: Inputs, component: Leaves, dtype: Any
) -> Float[AnyArray, "*inner r"]:
    """LN(x) A, computed as (x - mean) (scale A) / deviation + bias A.

    In this form LN(x) is never made, which the backward pass would keep for each of six
    layers in a block. On ViT-B/16 with batches of 64 the compiled step then needs 21.0 GB
    instead of 34.2. `jax.checkpoint` changes nothing there on CPUs, where XLA merges what
    is computed again.
    """
    centred, inverse = _standardize(x)
    kernel = (component["scale"][:, None] * component["a"]).astype(dtype)
    product = (centred.astype(dtype) @ kernel).astype(jnp.float32) * inverse
    return (product + component["bias"] @ component["a"]).astype(dtype)


def _convolve(
    x: Float[AnyArray, "B _ _ C"],
    a: Float[AnyArray, "height width C r"],
    kernel: Sequence[int],
    stride: int,
) -> Float[AnyArray, "B _ _ r"]:
    """x convolved with a, padded as `layers.conv` does."""
    padding = [(side // 2, side // 2) for side in kernel]
    return jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(a),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Bottleneck(nn.Module):
    """y + s * up(gelu(down(y))) (Houlsby et al. 2019), up starting at zero."""

    rank: int
    scale: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Inputs, y: Outputs, kernel: tuple[int, ...] = (), stride: int = 1
    ) -> Outputs:
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
    def __call__(
        self, x: Inputs, y: Outputs, kernel: tuple[int, ...] = (), stride: int = 1
    ) -> Outputs:
        gamma = self.param("gamma", nn.initializers.ones, y.shape[-1:])
        beta = self.param("beta", nn.initializers.zeros, y.shape[-1:])
        return y * gamma.astype(y.dtype) + beta.astype(y.dtype)


KINDS = {
    "lora": LoRA,
    "lnlora": lambda **fields: LoRA(norm=True, **fields),
    "bottleneck": Bottleneck,
    "scale_shift": ScaleShift,
}


def add(
    added: Sequence[Added],
    path: Sequence[str],
    x: Inputs,
    y: Outputs,
    *,
    dtype: Any,
    parts: Sequence[str] = (),
    kernel: tuple[int, ...] = (),
    stride: int = 1,
) -> Outputs:
    """y with what is added to the layer that made y of x.

    It is called inside the `nn.compact` of the layer's parent.

    Args:
      added: what the model adds, of which this layer may be no target.
      path: the names that lead to the layer.
      x, y: what goes into the layer and what comes out of it.
      dtype: the type of the products.
      parts: the names of equal column blocks of y, which can be targets too.
      kernel, stride: those of a convolution.

    Raises:
      UsageError: a rank is not below both sides of the kernel.
    """
    *folder, name = path

    def apply(
        adapter: Added, part: str, block: Float[AnyArray, "*outer _"]
    ) -> Float[AnyArray, "*outer _"]:
        if adapter.kind in ("lora", "lnlora"):
            layer = "/".join((*folder, part))
            _check_rank(adapter, x.shape[-1], block.shape[-1], layer)
        fields = dict(rank=adapter.rank, scale=adapter.scale, dtype=dtype)
        module = KINDS[adapter.kind](**fields, name=f"{part}_{adapter.name}")
        return module(x, block, kernel, stride)

    for adapter in added:
        if _is_target(adapter, (*folder, name)):
            y = apply(adapter, name, y)
        blocks = jnp.split(y, len(parts), axis=-1) if parts else []
        targets = [_is_target(adapter, (*folder, part)) for part in parts]
        if any(targets):
            y = jnp.concatenate(
                [
                    apply(adapter, part, block) if is_target else block
                    for part, block, is_target in zip(parts, blocks, targets, strict=True)
                ],
                axis=-1,
            )
    return y


def _is_target(adapter: Added, path: Sequence[str]) -> bool:
    """Whether a target matches the layer."""
    return any(trees.matches(target, "/".join(path)) for target in adapter.targets)


def _check_rank(adapter: Added, width: int, features: int, path: str) -> None:
    """Raises UsageError unless the rank is below both sides of the kernel."""
    if adapter.rank >= min(width, features):
        raise UsageError(
            f"config.model.added.{adapter.name}.rank={adapter.rank} is not below the "
            f"kernel of {path}, which is {width} x {features}: give a smaller rank or "
            "other targets"
        )
