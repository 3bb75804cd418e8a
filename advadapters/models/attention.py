"""Attention, softmax(query key / sqrt(d)) value: ways to compute it, and which one where.

All take and return [B, N, H, d] (images, tokens, heads, size of a head) in one type; the
softmax is in float32.
"""

import functools

import jax
import jax.numpy as jnp

from advadapters.errors import UsageError


def ours(query, key, value):
    """Heads before tokens, and FlashAttention's derivative; forward and reverse mode."""
    heads = (jnp.swapaxes(part, 1, 2) for part in (query, key, value))
    return jnp.swapaxes(attend(*heads), 1, 2)


def attend(query, key, value):
    """softmax(query key / sqrt(d)) value, of [B, H, N, d] each; softmax in float32."""
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
    return weigh(scores, value, precision)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def weigh(scores, value, precision):
    """softmax(scores) value, of [B, H, N, N] in float32 and [B, H, N, d].

    precision: of the products, see `jax.default_matmul_precision`.
    """
    return average(jax.nn.softmax(scores).astype(value.dtype), value, precision)


def average(weights, value, precision):
    """weights [B, H, N, N] times value [B, H, N, d]."""
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value, precision=precision)


@weigh.defjvp
def weigh_jvp(precision, primals, tangents):
    """The softmax's sum over keys comes after the product with the values, not before.

    Transposed, that is FlashAttention's gradient (Dao et al. 2022): a sum over d in place
    of N.
    """
    (scores, value), (scores_move, value_move) = primals, tangents
    weights = jax.nn.softmax(scores).astype(value.dtype)
    mixed = average(weights, value, precision)
    move = weights * scores_move
    along = average(move.astype(value.dtype), value, precision)
    shift = jnp.sum(move, axis=-1, keepdims=True) * mixed.astype(scores.dtype)
    along = (along.astype(scores.dtype) - shift).astype(value.dtype)
    return mixed, along + average(weights, value_move, precision)


xla = functools.partial(jax.nn.dot_product_attention, implementation="xla")


def cudnn(query, key, value):
    """cuDNN's flash attention, which never writes scores; see `lacks` for what it needs.

    In reverse mode jax 0.10 has it for even N only (it asks of all what cuDNN asks where
    there is a bias), so an odd one gets a token more, that is masked.
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


def trained(choice, platform, dtype, head):
    """The name in IMPLEMENTATIONS of one in CHOICES, for training.

    platform: of `meshes.platform`. dtype: of query, key, value. head: its size d. Raises
    UsageError for a choice that cannot work.
    """
    lack = lacks(platform, dtype, head)
    if choice == "cudnn" and lack:
        raise UsageError(
            f"config.model.attention='cudnn' needs {lack}: use 'auto', 'ours' or 'xla'"
        )
    return auto(platform, dtype, not lack) if choice == "auto" else choice


def evaluated(choice, platform, dtype):
    """The same for evaluation, where "cudnn" is "auto", which is never cuDNN's there.

    Networks are differentiated in forward mode too (learnt soups), and are in float32
    unless told otherwise: cuDNN's has neither.
    """
    return auto(platform, dtype, False) if choice in ("auto", "cudnn") else choice


def auto(platform, dtype, fused):
    """What AUTO has; fused: whether cuDNN's may be it."""
    found = AUTO.get((platform, jnp.dtype(dtype).name), "ours")
    return found if fused or found != "cudnn" else "ours"


def lacks(platform, dtype, head):
    """What cuDNN's attention would need, in words; "" where it works.

    As jax 0.10 checks it, and NVIDIA's documentation of cuDNN tells the capability. From
    capability 9.0 on jax takes heads up to 256, which no size here has.
    """
    if platform != "cuda":
        return f"a CUDA GPU of compute capability 8.0 or later, and this is {platform}"
    if dtype != jnp.bfloat16:
        return f"config.model.dtype='bfloat16', which is {jnp.dtype(dtype).name!r}"
    if head % 8 or head > 128:
        return f"heads of a size that 8 divides and that is at most 128, and it is {head}"
    return ""
