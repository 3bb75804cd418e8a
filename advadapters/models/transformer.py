"""The blocks of vision transformers: attention, MLP, and what they have in common."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from advadapters.models import attention as attentions
from advadapters.models import layers
from advadapters.models.added import Added, add
from advadapters.models.film import Condition, Film, filmed
from advadapters.shapes import AnyArray, Float, Num, Number

Tokens = Float[AnyArray, "B N D"]
Numbers = Num[AnyArray, " B"]  # of the examples
Gate = tuple[Float[AnyArray, " B"], Numbers]  # see `layers.drop_gradient`

PRODUCT = "product"  # the name that what dense layers give has for `jax.checkpoint`

_dense_init = nn.initializers.xavier_uniform()


def dense(
    module: nn.Module,
    added: Sequence[Added],
    x: Tokens,
    features: int,
    name: str,
    dtype: Any,
    parts: Sequence[str] = (),
    bias: bool = True,
) -> Float[AnyArray, "B N {features}"]:
    """The dense layer `name` of a module, with what is added to it.

    parts: names of equal column blocks of the result, see `added.add`.
    """
    # For products over two axes the compiler for CPUs would copy its operands.
    rows = x.reshape(-1, x.shape[-1])
    settings: dict[str, Any] = dict(kernel_init=_dense_init, use_bias=bias)
    y = nn.Dense(features, dtype=dtype, **settings, name=name)(rows)
    y = y.reshape(*x.shape[:-1], features)
    y = add(added, (*module.path, name), x, y, dtype=dtype, parts=parts)
    return checkpoint_name(y, PRODUCT)


class Attention(nn.Module):
    """Multi-head self-attention. The columns of qkv are laid out (3, heads, D / heads).

    Attributes:
      heads: their number.
      attention: how it is computed, in `attention.CHOICES`, where auto means ours.
      dtype: the type of the products.
      added: the modules beside the dense layers.
      bias: whether queries, keys and values have one.
    """

    heads: int
    attention: str
    dtype: Any
    added: tuple[Added, ...] = ()
    bias: bool = True

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        batch, tokens, width = x.shape
        make = functools.partial(dense, self, self.added, dtype=self.dtype)
        qkv = make(x, 3 * width, "qkv", parts=("q", "k", "v"), bias=self.bias)
        shape = (batch, tokens, self.heads, width // self.heads)
        parts = (part.reshape(shape) for part in jnp.split(qkv, 3, axis=2))
        name = "ours" if self.attention == "auto" else self.attention
        x = attentions.IMPLEMENTATIONS[name](*parts)
        return make(x.reshape(batch, tokens, width), width, "proj")


class Mlp(nn.Module):
    """Two dense layers with a GELU between them.

    Attributes:
      hidden: the width between the layers.
      dtype: the type of the products.
      added: the modules beside the dense layers.
      gelu: a row of `layers.GELUS`.
    """

    hidden: int
    dtype: Any
    added: tuple[Added, ...] = ()
    gelu: str = "erf"

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        make = functools.partial(dense, self, self.added, dtype=self.dtype)
        hidden = layers.GELUS[self.gelu](make(x, self.hidden, "fc1"))
        return make(hidden, x.shape[-1], "fc2")


class Block(nn.Module):
    """x + attention(norm(x)), and then x + mlp(norm(x)).

    Attributes:
      heads: the number of attention heads.
      hidden: the width between the layers of the MLP.
      make_norm: makes a norm module of its name.
      attention, dtype, added, film, qkv_bias, gelu, layer_scale: those of `vit.ViT`.
    """

    heads: int
    hidden: int
    attention: str
    dtype: Any
    make_norm: Callable[..., nn.Module]
    added: tuple[Added, ...] = ()
    film: Film | None = None
    qkv_bias: bool = True
    gelu: str = "erf"
    layer_scale: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        drop_rate: Number,
        index: Numbers | None,
        gate: Gate | None = None,
        condition: Condition | None = None,
    ) -> tuple[Tokens, None]:
        """The tokens after the block, and what `nn.scan` would stack, which is nothing.

        Args:
          x: the tokens before the block.
          drop_rate: the rate of drop path.
          index: the numbers from which drop path draws, None for no drop path.
          gate: with what probability gradients flow back through each of the two branches,
            and the numbers from which that is drawn; None for always.
          condition: what FiLM sees of lambda.
        """
        drop = functools.partial(self._drop, rate=drop_rate, index=index, gate=gate)
        common: dict[str, Any] = dict(dtype=self.dtype, added=self.added)
        heads, bias = self.heads, self.qkv_bias
        attention = Attention(heads, self.attention, bias=bias, **common, name="attn")
        norm = functools.partial(self._norm, condition=condition)
        x = x + drop(self._scale(attention(norm(x, "norm1")), "layer_scale1"))
        mlp = Mlp(self.hidden, gelu=self.gelu, **common, name="mlp")
        return x + drop(self._scale(mlp(norm(x, "norm2")), "layer_scale2")), None

    def _scale(self, branch: Tokens, name: str) -> Tokens:
        """A branch through its LayerScale, if it has one."""
        first = self.layer_scale
        return layers.LayerScale(first, name=name)(branch) if first else branch

    def _norm(self, x: Tokens, name: str, condition: Condition | None) -> Tokens:
        """The tokens normalised, and through FiLM if there is a condition."""
        return filmed(self.film, self.make_norm(name=name)(x), condition, name)

    def _drop(
        self, branch: Tokens, rate: Number, index: Numbers | None, gate: Gate | None
    ) -> Tokens:
        """Drops a residual branch for whole examples (Huang et al. 2016).

        With a gate it drops their gradients (attention random dropping, Mo et al. 2022).
        """
        if gate is not None:
            keep, numbers = gate
            key = self.make_rng("gradient_drop")
            branch = layers.drop_gradient(branch, keep, key, numbers)
        if index is None:
            return branch
        return layers.drop(branch, rate, self.make_rng("drop_path"), index, (1, 1))
