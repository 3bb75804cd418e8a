"""Attention's implementations against numpy, and which one is taken where."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from advadapters.errors import UsageError
from advadapters.models import attention
from advadapters.models.layers import DTYPES


def by_hand(parts, slope, moves):
    """[the mixed values, the gradients of three parts, the derivative along moves].

    In numpy (float64), of [B, N, H, d] each.
    """
    (q, k, v), (q_move, k_move, v_move) = parts, moves
    dot = functools.partial(np.einsum, "bqhd,bkhd->bhqk")
    mix = functools.partial(np.einsum, "bhqk,bkhd->bqhd")
    spread = functools.partial(np.einsum, "bhqk,bqhd->bkhd")
    root = np.sqrt(q.shape[-1])
    weights = np.exp(dot(q, k) / root)
    weights /= weights.sum(-1, keepdims=True)

    def softened(change):
        return weights * (change - (weights * change).sum(-1, keepdims=True))

    back = softened(dot(slope, v)) / root
    along = softened(dot(q_move, k) + dot(q, k_move)) / root
    return [
        mix(weights, v),
        mix(back, k),
        spread(back, q),
        spread(weights, slope),
        mix(along, v) + mix(weights, v_move),
    ]


@pytest.mark.parametrize("dtype, within", [("float32", 1e-5), ("bfloat16", 0.012)])
@pytest.mark.parametrize("name", ["ours", "xla"])
def test_attention_and_its_derivatives_against_numpy(name, dtype, within):
    draws = np.random.default_rng(0).normal(size=(7, 2, 5, 3, 20))
    rounded = [np.asarray(jnp.asarray(x, dtype), np.float64) for x in draws]
    parts, slope, moves = [2 * x for x in rounded[:3]], rounded[3], rounded[4:]
    given = [[jnp.asarray(x, dtype) for x in some] for some in (parts, [slope], moves)]

    @jax.jit
    def everything(parts, slope, moves):
        mixed, pull = jax.vjp(attention.IMPLEMENTATIONS[name], *parts)
        moved = jax.jvp(attention.IMPLEMENTATIONS[name], parts, moves)[1]
        return [mixed, *pull(slope[0]), moved]

    found = everything(*given)
    expected = by_hand(parts, slope, moves)
    # The last, forward mode, is the difference of two numbers that were rounded.
    for one, other, much in zip(found, expected, (1, 1, 1, 1, 3), strict=True):
        assert one.dtype == dtype
        atol = much * within * np.abs(other).max()
        np.testing.assert_allclose(one.astype("float32"), other, atol=atol)


def slopes(name, **fields):
    """(images, two views of the parameters) -> gradients in both, each view by itself."""
    apply = tiny.network(attention=name, **fields).apply

    def total(images, views):
        one = jax.vmap(lambda plain, images: apply({"params": plain}, images))
        return jnp.sum(one(views, images) ** 2)

    return jax.grad(total, argnums=(0, 1))


def views():
    """Images [2, B, 8, 8, 1], and parameters of two networks."""
    images = jnp.stack([tiny.batch(8, 0)["images"], tiny.batch(8, 1)["images"]])
    return images, tiny.relatives(tiny.network(), 2)["params"]


def test_gradients_of_views_are_the_same():
    expected = jax.jit(slopes("ours"))(*views())
    found = jax.jit(slopes("xla"))(*views())
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(
            one, other, atol=1e-5 * np.abs(other).max()
        ),
        found,
        expected,
    )


@pytest.mark.parametrize("prompts, mask", [(1, "NO_MASK"), (0, "PADDING")])
def test_cudnn_is_what_is_compiled_for_gpus(mesh, monkeypatch, prompts, mask):
    """The gradients of views on several devices, of 6 and 5 tokens; nothing is run."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    # Tracing, jax asks for the version of the cuDNN that is there.
    version = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused, "cuda_versions", version)
    rows = P(None, "data")
    step = jax.shard_map(
        slopes("cudnn", dtype=jnp.bfloat16, remat="dots", prompts=prompts),
        mesh=mesh, in_specs=(rows, P()), out_specs=(rows, P()), check_vma=False,
    )  # fmt: skip
    net = tiny.network(prompts=prompts)
    traced = jax.jit(step).trace(views()[0], tiny.relatives(net, 2)["params"])
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text
    assert set(re.findall(r"mask_type[^A-Z]*([A-Z_]+)", text)) == {mask}


def test_which_is_taken():
    trained = functools.partial(attention.choose_for_training, head=64)
    evaluated, half = attention.choose_for_evaluation, jnp.bfloat16
    assert trained("auto", "cuda", half) == trained("cudnn", "cuda", half) == "cudnn"
    assert attention.choose_for_training("auto", "cuda", half, head=20) == "ours"
    for platform in ("cpu", "tpu", "rocm", "old cuda", "none of them"):
        assert trained("auto", platform, half) == "ours"
        assert evaluated("auto", platform, half) == "ours"
    for choice in ("auto", "cudnn"):
        assert evaluated(choice, "cuda", half) == "ours"
        assert evaluated(choice, "cuda", jnp.float32) == "ours"
    assert trained("auto", "cuda", jnp.float32) == "ours"
    assert trained("xla", "tpu", half) == evaluated("xla", "tpu", half) == "xla"
    assert {dtype for _, dtype in attention.AUTO} == DTYPES.keys()
    assert attention.IMPLEMENTATIONS.keys() >= set(attention.AUTO.values())


@pytest.mark.parametrize(
    "platform, dtype, head, message",
    [
        ("cpu", jnp.bfloat16, 64, "8.0 or later, and this is cpu: use 'auto', 'ours'"),
        ("old cuda", jnp.bfloat16, 64, "and this is old cuda"),
        ("cuda", jnp.float32, 64, "dtype='bfloat16', which is 'float32'"),
        ("cuda", jnp.bfloat16, 12, "8 divides and that is at most 128, and it is 12"),
        ("cuda", jnp.bfloat16, 160, "and it is 160"),
    ],
)
def test_cudnn_where_it_cannot_work(platform, dtype, head, message):
    with pytest.raises(UsageError, match="config.model.attention='cudnn' needs") as error:
        attention.choose_for_training("cudnn", platform, dtype, head)
    assert message in str(error.value)
