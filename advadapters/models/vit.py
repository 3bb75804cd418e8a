"""Vision transformers (Dosovitskiy et al. 2021), pre-norm, pure functions in linen.

Modules know nothing of domains or attacks: adapters are leaves of this tree
chosen by path. Paths: class_token, pos_embed, patch_embed/{kernel,bias},
blocks_0/{norm1,attn/qkv,attn/proj,norm2,mlp/fc1,mlp/fc2}/..., norm/..., head/...
(with `scan`, one blocks/... whose leaves have a leading axis [depth]).
"""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from advadapters import schema
from advadapters.errors import UsageError
from advadapters.models import attention as attentions
from advadapters.models import layers
from advadapters.models.added import Added, add
from advadapters.models.film import Film, condition_of, filmed


class Size(NamedTuple):
    """Width D, depth, MLP width and attention heads of one variant."""

    width: int
    depth: int
    mlp: int
    heads: int


SIZES = {
    "Ti": Size(192, 12, 768, 3),
    "S": Size(384, 12, 1536, 6),
    "B": Size(768, 12, 3072, 12),
    "L": Size(1024, 24, 4096, 16),
    "H": Size(1280, 32, 5120, 16),
}

LAYER_NORM_EPS = 1e-6
POOLS = ("tokens", "class")
POSITIONS = ("learned", "sincos")
# What the backward pass need not compute again of a block: everything, the results of
# products with weights (not of queries with keys), nothing. By name, as under `vmap` over
# views products with an adapter are batched like those of attention.
PRODUCT = "product"
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}

token_init = nn.initializers.normal(0.02)
dense_init = nn.initializers.xavier_uniform()


def read_size(text):
    """ "B" or "64x4x256x4" (width x depth x MLP width x heads) -> Size.

    Raises UsageError.
    """
    if text in SIZES:
        return SIZES[text]
    try:
        size = Size(*map(int, text.split("x")))
    except (TypeError, ValueError):
        raise UsageError(
            f"config.model.size={text!r} is neither of {', '.join(SIZES)} nor "
            "WIDTHxDEPTHxMLPxHEADS like 64x4x256x4"
        ) from None
    if min(size) < 1 or size.width % size.heads:
        raise UsageError(f"config.model.size={text!r}: heads must divide the width")
    return size


def make_norm(kind, channels, *, train, stats_axes, dtype, name):
    """As `layers.norm`, but "layer" is over the width of each token alone."""
    if kind == "layer":
        return nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=dtype, name=name)
    return layers.norm(
        kind, channels, train=train, stats_axes=stats_axes, dtype=dtype, name=name
    )


def sincos(grid, width):
    """Fixed two-dimensional sine-cosine positions [h * w, D], as in MoCo v3 and MAE."""
    if width % 4:
        raise UsageError(f"sincos positions need a width divisible by 4, got {width}")
    omega = 1 / 10000 ** (np.arange(width // 4) / (width // 4))
    rows, columns = np.meshgrid(*map(np.arange, grid), indexing="ij")
    angles = [np.outer(axis.reshape(-1), omega) for axis in (columns, rows)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


def patchify(images, patch):
    """[B, H, W, C] -> [B, N, patch * patch * C], patches row by row.

    A reshape, so that patch embedding is a plain matrix product: under `vmap` over
    domains a convolution would merge the axes [K, B] and shard badly.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    tiles = images.reshape(batch, rows, patch, columns, patch, channels)
    tiles = tiles.transpose(0, 1, 3, 2, 4, 5)  # [B, h, w, p, p, C]
    return tiles.reshape(batch, rows * columns, patch * patch * channels)


def dense(module, added, x, features, name, dtype, parts=()):
    """A dense layer `name` of a module, with what is added to it.

    Of rows, since for products over two axes the compiler for CPUs copies its operands.
    """
    rows = x.reshape(-1, x.shape[-1])
    y = nn.Dense(features, dtype=dtype, kernel_init=dense_init, name=name)(rows)
    y = y.reshape(*x.shape[:-1], features)
    y = add(added, (*module.path, name), x, y, dtype=dtype, parts=parts)
    return checkpoint_name(y, PRODUCT)


def gelu(x):
    """x times the normal distribution's probability below x (Hendrycks and Gimpel 2016).

    In float32, as bfloat16 has no digits left of 1 + erf(x) below zero. `jax.nn.gelu`
    takes erfc for its last bits there, at two to three times the cost.
    """
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (exact * (0.5 * (1 + jax.lax.erf(exact * math.sqrt(0.5))))).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention; the columns of qkv are laid out (3, heads, D / heads).

    attention: how it is computed, in `attention.CHOICES`; auto is ours.
    """

    heads: int
    attention: str
    dtype: Any
    added: tuple[Added, ...] = ()

    @nn.compact
    def __call__(self, x):
        batch, tokens, width = x.shape
        make = functools.partial(dense, self, self.added, dtype=self.dtype)
        qkv = make(x, 3 * width, "qkv", parts=("q", "k", "v"))
        shape = (batch, tokens, self.heads, width // self.heads)
        parts = (part.reshape(shape) for part in jnp.split(qkv, 3, axis=2))
        name = "ours" if self.attention == "auto" else self.attention
        x = attentions.IMPLEMENTATIONS[name](*parts)
        return make(x.reshape(batch, tokens, width), width, "proj")


class Mlp(nn.Module):
    """Two dense layers with an exact (erf) GELU between them."""

    hidden: int
    dtype: Any
    added: tuple[Added, ...] = ()

    @nn.compact
    def __call__(self, x):
        make = functools.partial(dense, self, self.added, dtype=self.dtype)
        hidden = gelu(make(x, self.hidden, "fc1"))
        return make(hidden, x.shape[-1], "fc2")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    make_norm: (name=) -> a norm module. index: numbers [B] of the examples, from which
    drop path draws; None for no drop path. gate: None, or (keep [B], numbers [B]) of the
    gradients that flow back through each of the two branches, see `layers.drop_gradient`.
    """

    size: Size
    attention: str
    dtype: Any
    make_norm: Callable
    added: tuple[Added, ...] = ()
    film: Film | None = None

    @nn.compact
    def __call__(self, x, drop_rate, index, gate=None, condition=None):
        drop = functools.partial(self.drop, rate=drop_rate, index=index, gate=gate)
        attention = Attention(
            self.size.heads, self.attention, self.dtype, self.added, name="attn"
        )
        norm = functools.partial(self.norm, condition=condition)
        x = x + drop(attention(norm(x, "norm1")))
        mlp = Mlp(self.size.mlp, self.dtype, self.added, name="mlp")
        return x + drop(mlp(norm(x, "norm2"))), None

    def norm(self, x, name, condition):
        """Normalised, and through FiLM if there is a condition [B, E]."""
        return filmed(self.film, self.make_norm(name=name)(x), condition, name)

    def drop(self, branch, rate, index, gate):
        """Drops a residual branch [B, N, D] for whole examples (Huang et al. 2016), or
        its gradient alone (attention random dropping, Mo et al. 2022).
        """
        if gate is not None:
            keep, numbers = gate
            key = self.make_rng("gradient_drop")
            branch = layers.drop_gradient(branch, keep, key, numbers)
        if index is None:
            return branch
        return layers.drop(branch, rate, self.make_rng("drop_path"), index, (1, 1))


class ViT(nn.Module):
    """Images [B, H, W, C] float32 in [0, 1] -> logits [B, L] float32.

    pool: "tokens" averages the patch tokens without the class token and then
      normalises (the head of MAE's fine-tuning), so that the class token only
      conditions the network; "class" reads the class token after the final norm.
    positions: "learned" [1, N + 1, D] including the class token's, or fixed "sincos".
    attention: how it is computed, in `attention.CHOICES`. Configs replace auto by what
      `attention.trained` knows to be best; here it is ours.
    drop_path: rate of the last block, growing linearly from 0 at the first; in
      training it needs the random stream "drop_path".
    added: modules beside the dense layers, see `added`. prompts: learnt tokens that every
      image gets (Jia et al. 2022), after the class token.
    head_std: deviation of the head's first weights.
    norm: in layers.NORMS, see `make_norm`. stats_axes: names of the mapped axes over
      which batch statistics are averaged.
    resize: side in pixels that images are resized to inside, see `layers.resize`; 0 for
      none.
    remat: in REMAT, what the backward pass computes again of each block; scan: one
      compiled block for all (faster to compile, far more live memory without remat).
    index: int [B], numbers of the examples, from which drop path is drawn; 0, 1, ... by
      default.
    film, lam: how the network is conditioned on lambda ([] or [B]), see `film`: after the
      norms of the blocks.
    gradient_keep: float [B], with what probability gradients flow back through each
      residual branch (drawn from the random stream "gradient_drop"); None for always.
    """

    size: Size
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: Annotated[int, schema.Between(low=1), "side of a patch in pixels"] = 16
    pool: Annotated[str, schema.OneOf(POOLS), "mean of the patch tokens, or class"] = (
        "tokens"
    )
    positions: Annotated[str, schema.OneOf(POSITIONS), "learned or sincos"] = "learned"
    attention: Annotated[
        str, schema.OneOf(attentions.CHOICES), "ours, xla, cudnn, or what is best there"
    ] = "auto"
    drop_path: Annotated[float, schema.Between(0.0, 0.9), "rate of the last block"] = 0.0
    remat: Annotated[
        str, schema.OneOf(REMAT), "what is computed again going back: none, dots, full"
    ] = "none"
    scan: Annotated[bool, schema.Between(), "one compiled block for all"] = False
    resize: layers.Resize = 0
    norm: layers.Norm = "layer"
    stats_axes: tuple[str, ...] = ()
    added: tuple[Added, ...] = ()
    prompts: Annotated[int, schema.Between(low=0), "learnt tokens for every image"] = 0
    head_std: Annotated[
        float, schema.Between(0.0, 1.0), "deviation of the head's first weights"
    ] = 0.02
    film: Film | None = None
    dtype: layers.Dtype = jnp.float32

    read_size = staticmethod(read_size)

    @nn.compact
    def __call__(self, images, train=False, index=None, gradient_keep=None, lam=None):
        x = layers.standardize(images, self.mean, self.std, self.resize)
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(f"patch {self.patch} does not divide images of {x.shape[1:3]}")
        x = self.embed(x.astype(self.dtype))  # [B, N + 1, D]
        norm = functools.partial(
            make_norm,
            self.norm,
            self.size.width,
            train=train,
            stats_axes=self.stats_axes,
        )
        drops, gates = train and self.drop_path > 0, gradient_keep is not None
        gate = (gradient_keep, layers.numbered(index, images)) if gates else None
        index = layers.numbered(index, images) if drops else None
        condition = condition_of(self.film, lam, images.shape[0])
        norms = functools.partial(norm, dtype=self.dtype)
        x = self.blocks(x, index, gate, condition, norms)
        last = norm(dtype=jnp.float32, name="norm")
        if self.pool == "tokens":
            patches = x[:, 1 + self.prompts :].astype(jnp.float32)
            x = last(jnp.mean(patches, axis=1))  # [B, D]
        else:
            x = last(x[:, 0])  # [B, D]: the one token that is read
        head_init = nn.initializers.normal(self.head_std)
        logits = nn.Dense(self.classes, kernel_init=head_init, name="head")(x)
        return add(self.added, ("head",), x, logits, dtype=jnp.float32)

    def embed(self, images):
        """Class token, prompt tokens if any, and patch tokens with positions added."""
        width = self.size.width
        grid = (images.shape[1] // self.patch, images.shape[2] // self.patch)
        patches = patchify(images, self.patch)
        x = dense(self, self.added, patches, width, "patch_embed", self.dtype)  # [B, N, D]
        token = self.param("class_token", token_init, (1, 1, width))
        token = jnp.broadcast_to(token, (x.shape[0], 1, width)).astype(self.dtype)
        x = jnp.concatenate([token, x], axis=1)  # [B, N + 1, D]
        if self.positions == "learned":
            positions = self.param("pos_embed", token_init, (1, x.shape[1], width))
        else:
            positions = jnp.pad(sincos(grid, width), ((1, 0), (0, 0)))
        x = x + positions.astype(self.dtype)
        if not self.prompts:
            return x
        prompt = self.param("prompt", token_init, (1, self.prompts, width))
        prompt = jnp.broadcast_to(prompt, (x.shape[0], self.prompts, width))
        return jnp.concatenate([x[:, :1], prompt.astype(self.dtype), x[:, 1:]], axis=1)

    def blocks(self, x, index, gate, condition, norm):
        """The transformer blocks, unrolled or scanned."""
        depth = self.size.depth
        rates = jnp.linspace(0, self.drop_path, depth)
        block: Any = Block
        policy = REMAT[self.remat]
        if policy:
            block = nn.remat(Block, prevent_cse=not self.scan, policy=policy)
        arguments: dict[str, Any] = dict(
            size=self.size,
            attention=self.attention,
            dtype=self.dtype,
            make_norm=norm,
            added=self.added,
            film=self.film,
        )
        if self.scan:
            axes: Any = (0, *[nn.broadcast] * 3)  # annotated as one number
            block = nn.scan(
                block,
                length=depth,
                in_axes=axes,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True, "drop_path": True, "gradient_drop": True},
            )
            return block(**arguments, name="blocks")(x, rates, index, gate, condition)[0]
        for i in range(depth):
            make = block(**arguments, name=f"blocks_{i}")
            x, _ = make(x, rates[i], index, gate, condition)
        return x
