"""Vision transformers (Dosovitskiy et al. 2021), pre-norm, pure functions in linen.

Modules know nothing of domains or attacks: adapters are leaves of this tree
chosen by path. Paths: class_token, pos_embed, patch_embed/{kernel,bias},
blocks_0/{norm1,attn/qkv,attn/proj,norm2,mlp/fc1,mlp/fc2}/..., norm/..., head/...
(with `scan`, one blocks/... whose leaves have a leading axis [depth]). Where they are asked
for: prompt, norm_pre/..., blocks_0/{layer_scale1,layer_scale2}/gamma.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
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

# What the head reads: the mean of the patch tokens, then normalised (fine-tuned MAE); the
# class token after the norm; the mean of the normalised patch tokens (big_vision's "gap");
# the class token and that mean, one after the other (DINOv2's linear head).
POOLS = ("tokens", "class", "normed_tokens", "class_and_tokens")
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


def make_norm(kind, channels, *, eps, train, stats_axes, dtype, name):
    """As `layers.norm`, but "layer" is over the width of each token alone.

    eps: is added to the variance by "layer"; the others have their own.
    """
    if kind == "layer":
        return nn.LayerNorm(epsilon=eps, dtype=dtype, name=name)
    return layers.norm(
        kind, channels, train=train, stats_axes=stats_axes, dtype=dtype, name=name
    )


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


def dense(module, added, x, features, name, dtype, parts=(), bias=True):
    """A dense layer `name` of a module, with what is added to it.

    Of rows, since for products over two axes the compiler for CPUs copies its operands.
    """
    rows = x.reshape(-1, x.shape[-1])
    settings: dict[str, Any] = dict(kernel_init=dense_init, use_bias=bias)
    y = nn.Dense(features, dtype=dtype, **settings, name=name)(rows)
    y = y.reshape(*x.shape[:-1], features)
    y = add(added, (*module.path, name), x, y, dtype=dtype, parts=parts)
    return checkpoint_name(y, PRODUCT)


class Attention(nn.Module):
    """Multi-head self-attention; the columns of qkv are laid out (3, heads, D / heads).

    attention: how it is computed, in `attention.CHOICES`; auto is ours. bias: whether
      queries, keys and values have one.
    """

    heads: int
    attention: str
    dtype: Any
    added: tuple[Added, ...] = ()
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        batch, tokens, width = x.shape
        make = functools.partial(dense, self, self.added, dtype=self.dtype)
        qkv = make(x, 3 * width, "qkv", parts=("q", "k", "v"), bias=self.bias)
        shape = (batch, tokens, self.heads, width // self.heads)
        parts = (part.reshape(shape) for part in jnp.split(qkv, 3, axis=2))
        name = "ours" if self.attention == "auto" else self.attention
        x = attentions.IMPLEMENTATIONS[name](*parts)
        return make(x.reshape(batch, tokens, width), width, "proj")


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, a row of `layers.GELUS`."""

    hidden: int
    dtype: Any
    added: tuple[Added, ...] = ()
    gelu: str = "erf"

    @nn.compact
    def __call__(self, x):
        make = functools.partial(dense, self, self.added, dtype=self.dtype)
        hidden = layers.GELUS[self.gelu](make(x, self.hidden, "fc1"))
        return make(hidden, x.shape[-1], "fc2")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    make_norm: (name=) -> a norm module. index: numbers [B] of the examples, from which
    drop path draws; None for no drop path. gate: None, or (keep [B], numbers [B]) of the
    gradients that flow back through each of the two branches, see `layers.drop_gradient`.
    qkv_bias, gelu, layer_scale: as of `ViT`.
    """

    size: Size
    attention: str
    dtype: Any
    make_norm: Callable
    added: tuple[Added, ...] = ()
    film: Film | None = None
    qkv_bias: bool = True
    gelu: str = "erf"
    layer_scale: float = 0.0

    @nn.compact
    def __call__(self, x, drop_rate, index, gate=None, condition=None):
        drop = functools.partial(self.drop, rate=drop_rate, index=index, gate=gate)
        common: dict[str, Any] = dict(dtype=self.dtype, added=self.added)
        heads, bias = self.size.heads, self.qkv_bias
        attention = Attention(heads, self.attention, bias=bias, **common, name="attn")
        norm = functools.partial(self.norm, condition=condition)
        x = x + drop(self.scaled(attention(norm(x, "norm1")), "layer_scale1"))
        mlp = Mlp(self.size.mlp, gelu=self.gelu, **common, name="mlp")
        return x + drop(self.scaled(mlp(norm(x, "norm2")), "layer_scale2")), None

    def scaled(self, branch, name):
        """A branch through its LayerScale, if there is any."""
        first = self.layer_scale
        return layers.LayerScale(first, name=name)(branch) if first else branch

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

    pool: in POOLS, what the head reads. With "tokens" and "normed_tokens" the class token
      only conditions the network.
    class_token: whether there is one. class_position: whether it has a learned position.
    positions: "learned" [1, N + 1, D] including the class token's, or fixed "sincos".
    attention: how it is computed, in `attention.CHOICES`. Configs replace auto by what
      `attention.choose_for_training` knows to be best; here it is ours.
    drop_path: rate of the last block, growing linearly from 0 at the first; in
      training it needs the random stream "drop_path".
    added: modules beside the dense layers, see `added`. prompts: learnt tokens that every
      image gets (Jia et al. 2022), after the class token and without a position: the
      registers of Darcet et al. 2024 too.
    pre_norm: whether tokens are normalised before the blocks, as in CLIP.
    norm_eps: what LayerNorm adds to the variance. gelu: in `layers.GELUS`.
    layer_scale: first value of the factors of each branch's channels (see
      `layers.LayerScale`), 0 for none. qkv_bias, patch_bias: whether queries, keys and
      values, and patches, have biases.
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
    pool: Annotated[
        str, schema.OneOf(POOLS), "what the head reads: mean of the patches, ..."
    ] = "tokens"
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
    class_token: Annotated[bool, schema.Between(), "whether there is one"] = True
    class_position: Annotated[
        bool, schema.Between(), "whether the class token has a learned position"
    ] = True
    pre_norm: Annotated[bool, schema.Between(), "tokens normalised before blocks"] = False
    norm_eps: Annotated[
        float, schema.Between(above=0.0, high=1.0), "of LayerNorm, added to variances"
    ] = 1e-6
    gelu: Annotated[str, schema.OneOf(layers.GELUS), "erf, tanh or quick"] = "erf"
    layer_scale: Annotated[
        float, schema.Between(0.0, 1.0), "first factors of branches; 0: they have none"
    ] = 0.0
    qkv_bias: Annotated[bool, schema.Between(), "of queries, keys and values"] = True
    patch_bias: Annotated[bool, schema.Between(), "of the patch embedding"] = True
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
            eps=self.norm_eps,
            train=train,
            stats_axes=self.stats_axes,
        )
        drops, gates = train and self.drop_path > 0, gradient_keep is not None
        gate = (gradient_keep, layers.numbered(index, images)) if gates else None
        index = layers.numbered(index, images) if drops else None
        condition = condition_of(self.film, lam, images.shape[0])
        norms = functools.partial(norm, dtype=self.dtype)
        x = norms(name="norm_pre")(x) if self.pre_norm else x
        x = self.blocks(x, index, gate, condition, norms)
        x = self.read(x, norm(dtype=jnp.float32, name="norm"))  # [B, D] or [B, 2 D]
        head_init = nn.initializers.normal(self.head_std)
        logits = nn.Dense(self.classes, kernel_init=head_init, name="head")(x)
        return add(self.added, ("head",), x, logits, dtype=jnp.float32)

    def read(self, x, norm):
        """What the head reads of the tokens [B, N, D]; norm: the last one."""
        first = self.class_token + self.prompts
        if self.pool == "tokens":
            return norm(jnp.mean(x[:, first:].astype(jnp.float32), axis=1))
        if self.pool == "normed_tokens":
            return jnp.mean(norm(x[:, first:]), axis=1)
        if not self.class_token:
            raise UsageError(f"config.model.pool={self.pool!r} needs class_token=True")
        if self.pool == "class":
            return norm(x[:, 0])  # the one token that is read
        x = norm(x)
        return jnp.concatenate([x[:, 0], jnp.mean(x[:, first:], axis=1)], axis=-1)

    def embed(self, images):
        """Class token and prompt tokens, if any, and patch tokens with positions added."""
        width, first = self.size.width, int(self.class_token)
        grid = (images.shape[1] // self.patch, images.shape[2] // self.patch)
        make = functools.partial(dense, self, self.added, dtype=self.dtype)
        patches = patchify(images, self.patch)
        x = make(patches, width, "patch_embed", bias=self.patch_bias)  # [B, N, D]
        if first:
            x = jnp.concatenate([self.token("class_token", 1, x), x], axis=1)
        if self.positions == "learned":
            lacking = 0 if self.class_position else first
            rows = (1, x.shape[1] - lacking, width)
            positions = self.param("pos_embed", token_init, rows)
            if lacking:
                positions = jnp.pad(positions, ((0, 0), (1, 0), (0, 0)))
        else:
            positions = jnp.pad(layers.sincos(grid, width), ((first, 0), (0, 0)))
        x = x + positions.astype(self.dtype)
        if not self.prompts:
            return x
        prompt = self.token("prompt", self.prompts, x)
        return jnp.concatenate([x[:, :first], prompt, x[:, first:]], axis=1)

    def token(self, name, count, x):
        """Learnt tokens [B, count, D], the same for every image of x [B, N, D]."""
        token = self.param(name, token_init, (1, count, x.shape[-1]))
        return jnp.broadcast_to(token, (x.shape[0], *token.shape[1:])).astype(self.dtype)

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
            qkv_bias=self.qkv_bias,
            gelu=self.gelu,
            layer_scale=self.layer_scale,
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
