"""Attention, softmax(query key / sqrt(d)) value: ways to compute it, and which one where.

All take and return [B, N, H, d] (images, tokens, heads, size of a head) in one type. The
softmax is computed in float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from advadapters.errors import UsageError
from advadapters.shapes import AnyArray, Float

Tokens = Float[AnyArray, "B N H d"]
Heads = Float[AnyArray, "B H N d"]
Scores = Float[AnyArray, "B H N N"]


def ours(query: Tokens, key: Tokens, value: Tokens) -> Tokens:
    """Attention with heads before tokens, and with FlashAttention's derivative.

    It can be differentiated in forward and in reverse mode.
    """
    heads = (jnp.swapaxes(part, 1, 2) for part in (query, key, value))
    return jnp.swapaxes(_attend(*heads), 1, 2)


def _attend(query: Heads, key: Heads, value: Heads) -> Heads:
    """softmax(query key / sqrt(d)) value, with heads before tokens."""
    scale = query.shape[-1] ** -0.5
    if query.dtype == jnp.bfloat16:
        # Scaled, the query would be rounded once more. The preset keeps the transposed
        # products from being of float32.
        scores = jnp.einsum(
            "bhqd,bhkd->bhqk",
            query,
            key,
            precision=jax.lax.DotAlgorithmPreset.BF16_BF16_F32,
            preferred_element_type=jnp.float32,
        )
        scores = scores * scale
    else:
        scores = jnp.einsum("bhqd,bhkd->bhqk", query * scale, key)
    # The derivative may be traced elsewhere, so it is told the precision that holds here.
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return _weigh(scores, value, precision)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _weigh(scores: Scores, value: Heads, precision: str | None) -> Heads:
    """softmax(scores) value, the scores in float32.

    precision: that of the products, see `jax.default_matmul_precision`.
    """
    return _average(jax.nn.softmax(scores).astype(value.dtype), value, precision)


def _average(weights: Scores, value: Heads, precision: str | None) -> Heads:
    """The weighted sums of the values."""
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value, precision=precision)


@_weigh.defjvp
def _weigh_jvp(
    precision: str | None, primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[Heads, Heads]:
    """The softmax's sum over keys comes after the product with the values, not before.

    Transposed, that is FlashAttention's gradient (Dao et al. 2022): a sum over d in place
    of N.
    """
    (scores, value), (scores_move, value_move) = primals, tangents
    weights = jax.nn.softmax(scores).astype(value.dtype)
    mixed = _average(weights, value, precision)
    move = weights * scores_move
    along = _average(move.astype(value.dtype), value, precision)
    shift = jnp.sum(move, axis=-1, keepdims=True) * mixed.astype(scores.dtype)
    along = (along.astype(scores.dtype) - shift).astype(value.dtype)
    return mixed, along + _average(weights, value_move, precision)


xla = functools.partial(jax.nn.dot_product_attention, implementation="xla")


def cudnn(query: Tokens, key: Tokens, value: Tokens) -> Tokens:
    """cuDNN's flash attention, which never writes scores; see `lacks` for what it needs.

    In reverse mode, jax 0.10 has it for even N only: it always asks for what cuDNN asks for
    where there is a bias. So an odd N gets one token more, which is masked.
    """
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    tokens = query.shape[1]
    if tokens % 2 == 0:
        return attend(query, key, value)
    padded = [jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value)]
    # The same number for every image, but mapped over where the query is: jax's rule for
    # `vmap` takes all arguments to be.
    nothing = 0 * jnp.isnan(query[:, 0, 0, 0]).astype(jnp.int32)
    lengths = dict.fromkeys(
        ("query_seq_lengths", "key_value_seq_lengths"), tokens + nothing
    )
    return attend(*padded, **lengths)[:, :tokens]


IMPLEMENTATIONS = {"ours": ours, "xla": xla, "cudnn": cudnn}
CHOICES = ("auto", *IMPLEMENTATIONS)

# What "auto" is on a platform (see `meshes.platform`) for a type, and why. Where cuDNN's
# cannot run, and in evaluation, "ours" takes its place.
AUTO = {
    # Measured: forward and backward 40% of the time of jax's (ViT-Ti/16, 16 images, one
    # core with AVX-512, jax 0.10.2; BUILD.md, "its own attention").
    ("cpu", "float32"): "ours",
    ("cpu", "bfloat16"): "ours",
    # Counted in the compiled program of a v5e, not timed: a block's image gradient moves
    # 2,086 MB and its forward pass 509, with splash attention 1,887 and 609. The tables
    # of dry runs in docs/costs.md are of this choice.
    ("tpu", "float32"): "ours",
    ("tpu", "bfloat16"): "ours",
    # Not measured. cuDNN's takes 16 bits only, and against XLA's ours saves a sum over
    # [B, H, N, N] going back.
    ("cuda", "float32"): "ours",
    # Not measured. jax documents it as cuDNN's flash attention; the other two write the
    # scores in float32 and read them again, in every pass of every attack's step. Its sums
    # going back are in no fixed order, so a run that is repeated differs in last bits.
    ("cuda", "bfloat16"): "cudnn",
    # Not measured: jax has nothing else for these but XLA's.
    ("rocm", "float32"): "ours",
    ("rocm", "bfloat16"): "ours",
}


def choose_for_training(choice: str, platform: str, dtype: Any, head: int) -> str:
    """The name in IMPLEMENTATIONS that a choice stands for in training.

    Args:
      choice: in CHOICES.
      platform: see `meshes.platform`.
      dtype: the type of query, key and value.
      head: the size d of a head.

    Raises:
      UsageError: the choice cannot work.
    """
    lack = lacks(platform, dtype, head)
    if choice == "cudnn" and lack:
        raise UsageError(
            f"config.model.attention='cudnn' needs {lack}: use 'auto', 'ours' or 'xla'"
        )
    return _auto(platform, dtype, not lack) if choice == "auto" else choice


def choose_for_evaluation(choice: str, platform: str, dtype: Any) -> str:
    """The name in IMPLEMENTATIONS that a choice stands for in evaluation.

    It is never cuDNN's there, and "cudnn" stands for the same as "auto". For evaluation
    differentiates networks in forward mode too (learnt soups), and computes in float32 by
    default; cuDNN's has neither.
    """
    return _auto(platform, dtype, False) if choice in ("auto", "cudnn") else choice


def _auto(platform: str, dtype: Any, fused: bool) -> str:
    """The name that AUTO has; fused: whether cuDNN's may be it."""
    name = AUTO.get((platform, jnp.dtype(dtype).name), "ours")
    return name if fused or name != "cudnn" else "ours"


def lacks(platform: str, dtype: Any, head: int) -> str:
    """Says what cuDNN's attention would need; "" where it works.

    The conditions are those that jax 0.10 checks. The capability is that of NVIDIA's
    documentation of cuDNN. From capability 9.0 on, jax takes heads of up to 256, which no
    size here has.
    """
    if platform != "cuda":
        return f"a CUDA GPU of compute capability 8.0 or later, and this is {platform}"
    if dtype != jnp.bfloat16:
        return f"config.model.dtype='bfloat16', which is {jnp.dtype(dtype).name!r}"
    if head % 8 or head > 128:
        return f"heads of a size that 8 divides and that is at most 128, and it is {head}"
    return ""
