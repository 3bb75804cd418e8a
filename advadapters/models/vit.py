"""Vision transformers (Dosovitskiy et al. 2021) with norms before the branches.

The modules know nothing of domains or attacks: adapters are leaves of their parameters,
which are chosen by path. The paths are class_token, pos_embed, patch_embed/{kernel,bias},
blocks_0/{norm1,attn/qkv,attn/proj,norm2,mlp/fc1,mlp/fc2}/..., norm/... and head/... With
`scan` there is one blocks/... whose leaves have a leading axis [depth]. Where settings ask
for them there are also prompt, norm_pre/... and blocks_0/{layer_scale1,layer_scale2}/gamma.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from advadapters import schema
from advadapters.errors import UsageError
from advadapters.models import attention as attentions
from advadapters.models import layers
from advadapters.models.added import Added, add
from advadapters.models.film import Condition, Film, condition_of
from advadapters.models.transformer import PRODUCT, Block, Gate, Numbers, Tokens, dense
from advadapters.shapes import AnyArray, Float, Images, Logits, Num

Pooled = Float[AnyArray, "B P"]  # what the head reads of an image: D or 2 D numbers


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

# What the head reads. "tokens" is the mean of the patch tokens, which is then normalised,
# as in fine-tuned MAEs. "class" is the class token after the norm. "normed_tokens" is the
# mean of the normalised patch tokens, big_vision's "gap". "class_and_tokens" is the class
# token and that mean, one after the other, as in DINOv2's linear head.
POOLS = ("tokens", "class", "normed_tokens", "class_and_tokens")
POSITIONS = ("learned", "sincos")
# What the backward pass need not compute again of a block: everything, the results of
# products with weights (but not of queries with keys), or nothing. Those results have a
# name, since under `vmap` over views the products with an adapter are batched just as those
# of attention are.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}

token_init = nn.initializers.normal(0.02)


def read_size(text: str) -> Size:
    """Reads "B", or "64x4x256x4", which is width, depth, width of the MLP and heads.

    Raises UsageError for other texts.

    >>> models.vit.read_size("64x4x256x4")
    Size(width=64, depth=4, mlp=256, heads=4)
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


def make_norm(
    kind: str,
    channels: int,
    *,
    eps: float,
    train: bool,
    stats_axes: Sequence[str],
    dtype: Any,
    name: str | None,
) -> nn.LayerNorm | nn.BatchNorm | nn.GroupNorm:
    """A norm as of `layers.norm`, but "layer" is over the width of each token alone.

    eps: what "layer" adds to the variance. The other kinds have a value of their own.
    """
    if kind == "layer":
        return nn.LayerNorm(epsilon=eps, dtype=dtype, name=name)
    return layers.norm(
        kind, channels, train=train, stats_axes=stats_axes, dtype=dtype, name=name
    )


def patchify(images: Num[AnyArray, "B H W C"], patch: int) -> Num[AnyArray, "B N _"]:
    """The patches of images, row by row, each with its patch * patch * C numbers.

    It is a reshape, so that embedding patches is a plain matrix product. Under `vmap` over
    domains a convolution would merge the axes [K, B] and shard badly.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    tiles = images.reshape(batch, rows, patch, columns, patch, channels)
    tiles = tiles.transpose(0, 1, 3, 2, 4, 5)  # [B, h, w, p, p, C]
    return tiles.reshape(batch, rows * columns, patch * patch * channels)


class ViT(nn.Module):
    """A network from images [B, H, W, C] in [0, 1] to logits [B, L], both float32.

    Attributes:
      size: its width, depth, width of the MLPs and heads.
      classes: the number L of classes.
      mean, std: those of the channels of images.
      patch: the side of a patch in pixels.
      pool: what the head reads, in POOLS. With "tokens" and "normed_tokens" the class token
        is read by the other tokens only.
      class_token: whether there is one.
      class_position: whether the class token has a learned position.
      positions: "learned" ones, [1, N + 1, D] with that of the class token, or fixed
        "sincos".
      attention: how it is computed, in `attention.CHOICES`. Configs replace auto by what
        `attention.choose_for_training` knows to be best; here it means ours.
      drop_path: its rate in the last block. From the first block on it grows linearly from
        0. In training it needs the random stream "drop_path".
      added: the modules beside the dense layers, see `added`.
      prompts: the number of learnt tokens that every image gets (Jia et al. 2022), after
        the class token and without a position. The registers of Darcet et al. 2024 are such
        tokens too.
      pre_norm: whether tokens are normalised before the blocks, as in CLIP.
      norm: in `layers.NORMS`, see `make_norm`.
      norm_eps: what LayerNorm adds to the variance.
      stats_axes: the names of the mapped axes over which batch statistics are averaged.
      gelu: in `layers.GELUS`.
      layer_scale: the first value of the factors of each branch's channels, see
        `layers.LayerScale`; 0 for no factors.
      qkv_bias, patch_bias: whether queries, keys and values, and patches, have biases.
      head_std: the deviation of the head's first weights.
      resize: the side in pixels that images get inside, see `layers.resize`; 0 for none.
      remat: what the backward pass computes again of each block, in REMAT.
      scan: whether one compiled block serves for all, which is faster to compile and takes
        far more memory without remat.
      film: how the network is conditioned on lambda, after the norms of the blocks.
      dtype: the type of the products.

    A call takes `train`, whether batch norms use the statistics of the batch and drop path
    drops; `index`, the numbers of the images, from which what is dropped is drawn (0, 1,
    ... by default); `gradient_keep`, with what probability gradients flow back through each
    residual branch, drawn from the random stream "gradient_drop" (None for always); and
    `lam`, lambda [] or [B] if there is a film.
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
    def __call__(
        self,
        images: Images,
        train: bool = False,
        index: Numbers | None = None,
        gradient_keep: Float[AnyArray, " B"] | None = None,
        lam: float | Num[AnyArray, "..."] | None = None,
    ) -> Logits:
        x = layers.standardize(images, self.mean, self.std, self.resize)
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(f"patch {self.patch} does not divide images of {x.shape[1:3]}")
        x = self._embed(x.astype(self.dtype))
        norm = functools.partial(
            make_norm,
            self.norm,
            self.size.width,
            eps=self.norm_eps,
            train=train,
            stats_axes=self.stats_axes,
        )
        gate = None
        if gradient_keep is not None:
            gate = gradient_keep, layers.numbered(index, images)
        drops = train and self.drop_path > 0
        index = layers.numbered(index, images) if drops else None
        condition = condition_of(self.film, lam, images.shape[0])
        norms = functools.partial(norm, dtype=self.dtype)
        x = norms(name="norm_pre")(x) if self.pre_norm else x
        x = self._blocks(x, index, gate, condition, norms)
        x = self._pool(x, norm(dtype=jnp.float32, name="norm"))
        head_init = nn.initializers.normal(self.head_std)
        logits = nn.Dense(self.classes, kernel_init=head_init, name="head")(x)
        return add(self.added, ("head",), x, logits, dtype=jnp.float32)

    def _pool(self, x: Tokens, norm: nn.Module) -> Pooled:
        """What the head reads of the tokens; norm: the last one."""
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

    def _embed(self, images: Float[AnyArray, "B H W C"]) -> Tokens:
        """The class token and prompts, if any, and the patches, with their positions."""
        width, first = self.size.width, int(self.class_token)
        grid = (images.shape[1] // self.patch, images.shape[2] // self.patch)
        make = functools.partial(dense, self, self.added, dtype=self.dtype)
        patches = patchify(images, self.patch)
        x = make(patches, width, "patch_embed", bias=self.patch_bias)
        if first:
            x = jnp.concatenate([self._token("class_token", 1, x), x], axis=1)
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
        prompt = self._token("prompt", self.prompts, x)
        return jnp.concatenate([x[:, :first], prompt, x[:, first:]], axis=1)

    def _token(self, name: str, count: int, x: Tokens) -> Float[AnyArray, "B {count} D"]:
        """Learnt tokens, the same for every image of x."""
        token = self.param(name, token_init, (1, count, x.shape[-1]))
        return jnp.broadcast_to(token, (x.shape[0], *token.shape[1:])).astype(self.dtype)

    def _blocks(
        self,
        x: Tokens,
        index: Numbers | None,
        gate: Gate | None,
        condition: Condition | None,
        norm: Callable[..., nn.Module],
    ) -> Tokens:
        """The tokens after the transformer blocks, unrolled or scanned."""
        depth = self.size.depth
        rates = jnp.linspace(0, self.drop_path, depth)
        block: Any = Block
        policy = REMAT[self.remat]
        if policy:
            block = nn.remat(Block, prevent_cse=not self.scan, policy=policy)
        arguments: dict[str, Any] = dict(
            heads=self.size.heads,
            hidden=self.size.mlp,
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
