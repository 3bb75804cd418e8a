"""Profiles: what is inside what, which lines count, kinds and parts."""

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from advadapters import hlo, profiles
from advadapters.errors import UsageError


def line(name, events):
    """A line of a plane; events: (number of its name, start, length) in microseconds."""
    told = "".join(
        f"events {{ metadata_id: {number} offset_ps: {start * 10**6} "
        f"duration_ps: {length * 10**6} stats {{ metadata_id: 1 str_value: 'op.{number}' }}"
        " }\n"
        for number, start, length in events
    )
    return f"lines {{ name: '{name}' timestamp_ns: 1000 {told} }}\n"


def plane(name, *lines, names):
    """A plane; names: of the events, from 1 on."""
    known = "".join(
        f"event_metadata {{ key: {n} value {{ id: {n} name: '{text}' }} }}\n"
        for n, text in enumerate(names, 1)
    )
    stat = "stat_metadata { key: 1 value { id: 1 name: 'hlo_op' } }\n"
    return f"planes {{ name: '{name}' {known} {stat} {''.join(lines)} }}\n"


def trace(*planes):
    return profiles.of(ProfileData.from_text_proto("".join(planes)))


def microseconds(found):
    """Seconds, about."""
    return {name: pytest.approx(1e-6 * length) for name, length in found.items()}


NAMES = (
    "nvjet_tst_128x256_64x4_bz_coopA_NTT",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16",
    "ncclDevKernel_AllReduce_Sum_f32_RING_LL",
    "loop_convert_fusion",
    "MemcpyD2D",
    "input_reduce_fusion",
    "sm80_xmma_dgrad_implicit_gemm_indexed_bf16bf16",
    "RngBitGenerator",
)


def test_kernels_of_a_gpu_by_kind():
    """On two streams of one of two devices; other lines tell of the same again."""
    streams = (
        line("Stream #13(Compute)", [(n + 1, 10 * n, 10) for n in range(8)]),
        line("Stream #14(Compute)", [(3, 75, 20)]),
        line("XLA Ops", [(1, 0, 95)]),
    )
    second = line("Stream #13(Compute)", [(1, 0, 45)])
    host = plane("/host:CPU", line("python", [(1, 0, 999)]), names=["train"])
    found = trace(
        plane("/device:GPU:0", *streams, names=NAMES),
        plane("/device:GPU:1", second, names=NAMES),
        host,
    )
    expected = {
        "matrix products": 55, "collectives": 30, "attention, softmax": 10, "copies": 10,
        "sums": 10, "convolutions": 10, "other": 20,
    }  # fmt: skip
    assert profiles.by_kind(found, {}) == microseconds(expected)
    assert list(profiles.by_kind(found, {}))[:3] == [*expected][:2] + ["other"]
    told = profiles.by_kind(found, {"op.4": "jit(step)/loss/dot_general"})
    assert told["matrix products"] == pytest.approx(65e-6)
    assert found.span == pytest.approx(95e-6)
    assert found.busy == pytest.approx((95e-6 + 45e-6) / 2)


def test_what_is_inside_counts_once():
    """A loop of a TPU around its body, twice."""
    events = [(1, 0, 50), (2, 5, 20), (2, 30, 20), (3, 60, 5)]
    names = ("while.1", "%convolution.2 = f32[8] fusion(%all-gather.3)", "all-gather.3")
    found = trace(plane("/device:TPU:0", line("XLA Ops", events), names=names))
    expected = {"convolutions": 40, "other": 10, "collectives": 5}
    assert profiles.by_kind(found, {}) == microseconds(expected)
    scopes = {"op.2": "jit(step)/loss/jvp(attack)/dot_general", "op.3": "jit(step)/update"}
    expected = {"attack": 40, "other": 10, "update": 5}
    assert profiles.by_scope(found, scopes) == microseconds(expected)


def test_a_real_trace_of_this_processor(tmp_path):
    @jax.jit
    def step(x):
        with jax.named_scope("attack"):
            x = jax.lax.fori_loop(0, 3, lambda _, x: x @ x, x)
        with jax.named_scope("update"):
            return jnp.sort(x)

    x = jnp.full((128, 128), 1 / 128)
    program = step.lower(x).compile()
    program(x).block_until_ready()
    with pytest.raises(UsageError, match="no profile"):
        profiles.read(tmp_path)
    with jax.profiler.trace(tmp_path):
        program(x).block_until_ready()
    found = profiles.read(tmp_path)
    text = program.as_text()
    kinds = profiles.by_kind(found, hlo.scopes(text))
    parts = profiles.by_scope(found, hlo.scopes(text))
    whole = sum(event.exclusive for event in found.events)
    assert kinds["matrix products"] > 0 and sum(kinds.values()) == pytest.approx(whole)
    assert parts["attack"] > 0 and parts["update"] > 0
    assert 0 < found.busy <= found.span
