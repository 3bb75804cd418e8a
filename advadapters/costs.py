"""What a compiled training step costs: operations, memory, messages, time at best.

Nothing here runs the step. Counts come from the traced program (the count on paper) and
from the compiler; times are what the chip's figures allow, so no run can be faster.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from advadapters.errors import UsageError


class Chip(NamedTuple):
    """One accelerator as its maker describes it.

    Attributes:
      name: as jax calls the kind of device.
      memory: bytes.
      flops: bfloat16 products and sums per second.
      bandwidth: bytes per second of that memory.
      link: bytes per second that it can send to others, which is half of what makers say
        for both directions.
      exact: float32 products and sums per second.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    exact: float

    @property
    def tpu(self) -> bool:
        """Whether it is a TPU; otherwise it is a GPU."""
        return self.name.startswith("TPU")


# TPUs: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (read 2026-11-21; the gigabytes are
# 2^30); v4's link: 2,400 Gbps in the older table of all versions. GPUs (SXM): NVIDIA's
# data sheets, dense bfloat16, and float32 of the ordinary cores. A TPU makes a float32
# product of six in bfloat16.
CHIPS = {
    "v4": Chip("TPU v4", 32 * 2**30, 275e12, 1200e9, 150e9, 275e12 / 6),
    "v5e": Chip("TPU v5e", 16 * 2**30, 197e12, 819e9, 200e9, 197e12 / 6),
    "v5p": Chip("TPU v5p", 95 * 2**30, 459e12, 2765e9, 600e9, 459e12 / 6),
    "v6e": Chip("TPU v6e", 32 * 2**30, 918e12, 1638e9, 400e9, 918e12 / 6),
    "H100": Chip("H100", 80e9, 989e12, 3350e9, 450e9, 67e12),
    "H200": Chip("H200", 141e9, 989e12, 4800e9, 450e9, 67e12),
}
TPUS = tuple(name for name in CHIPS if name.startswith("v"))
KNOWN = (
    "TPUs as VERSION:SHAPE, like v5e:16x16, v4:4x4x4, v5p:4x4x4 or v6e:16x16 (versions: "
    f"{', '.join(TPUS)}), cpu:COUNT, and gpu for the GPUs that are here"
)
# The two cores of a v4 or v5p work as one device.
CORES = {"v4": {"chip_config_name": "megacore"}, "v5p": {"chip_config_name": "megacore"}}


def topology(text: str) -> tuple[Sequence[Any], Chip | None]:
    """The devices that a name stands for. TPUs need not be there.

    Args:
      text: like "v5e:16x16", "cpu:8" or "gpu".

    Returns:
      The devices, and the Chip that they are, if it is a known one.

    Raises:
      UsageError: the name means nothing, or the devices are not here.
    """
    kind, _, shape = text.partition(":")
    if kind == "cpu" and shape.isdecimal() and int(shape):
        return _local("cpu", int(shape), text), None
    if text == "gpu":
        devices = _local("gpu", 1, text)
        name = devices[0].device_kind
        return jax.devices("gpu"), next(
            (chip for kind, chip in CHIPS.items() if kind in name), None
        )
    if kind not in TPUS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UsageError(f"unknown topology {text!r}; there are: {KNOWN}")
    return _tpus(kind, text), CHIPS[kind]


def _local(platform: str, count: int, text: str) -> list[Any]:
    """The first `count` devices of a platform; raises UsageError if there are fewer."""
    try:
        devices = jax.devices(platform)
    except RuntimeError:
        devices = []
    if len(devices) < count:
        raise UsageError(f"topology {text!r}: only {len(devices)} {platform} devices here")
    return devices[:count]


def _tpus(kind: str, text: str) -> Sequence[Any]:
    """The devices of a TPU topology as its compiler describes them."""
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(text, "tpu", **CORES.get(kind, {})).devices
    except Exception as error:  # whatever the compiler says of a shape is bad input
        line = str(error).strip().splitlines()[0]
        if isinstance(error, jax.errors.JaxRuntimeError):
            raise UsageError(f"topology {text!r}: {line}") from None
        raise UsageError(
            f"topology {text!r} needs the compiler for TPUs: install `.[tpu]` ({line})"
        ) from None


def products(jaxpr: core.Jaxpr, devices: int = 1, once: bool = False) -> float:
    """FLOPs of the matrix products and convolutions of a traced program, on all devices.

    The dearest branch counts. Loops of unknown length count once.

    Args:
      jaxpr: the traced program.
      devices: how many run what is inside a `jax.shard_map`.
      once: whether every loop counts once, as in XLA's cost analysis.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inner: list[float] = [products(body, devices, once) for body in _bodies(params)]
        if name in ("dot_general", "conv_general_dilated"):
            total += _product(equation)
        elif name == "cond":
            total += max(inner)
        elif name == "scan":
            total += sum(inner) * (1 if once else params["length"])
        elif name == "shard_map":
            total += sum(inner) * devices
        else:
            total += sum(inner)
    return total


def _bodies(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    """The programs inside an equation."""
    for value in jax.tree.leaves(params, is_leaf=lambda v: isinstance(v, core.Jaxpr)):
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def _product(equation: Any) -> float:
    """FLOPs of one matrix product or convolution: a product and a sum for each pair."""
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    out = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * out * math.prod(left[axis] for axis in contracted)
    kernel = equation.params["dimension_numbers"].rhs_spec
    zeros = math.prod(equation.params["lhs_dilation"])  # between the pixels of gradients
    return 2 * out * math.prod(right[axis] for axis in kernel[1:]) / zeros


def compiled(traced: Any) -> tuple[Any, dict]:
    """Compiles a traced program, see `jax.jit(...).trace`.

    Returns:
      The compiled program and its `memory`. Where the compiler finds that a device has
      too little memory, these are None and {"peak": bytes, None if it does not say}.
    """
    try:
        program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, {"peak": needed(str(error))}
    return program, memory(program)


def needed(text: str) -> float | None:
    """The bytes that a compiler's error message says it would have needed, or None."""
    match = re.search(r"Used ([\d.]+)([KMG])", text)
    return float(match[1]) * 1024 ** (" KMG".index(match[2])) if match else None


def memory(compiled: Any) -> dict[str, int]:
    """The bytes that a compiled program needs on one device.

    Outputs that take the place of donated arguments are not counted again.

    Returns:
      {"arguments", "outputs", "temporaries", "program", "peak"}.
    """
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    return parts | {"peak": sum(parts.values())}


def seconds(
    chip: Chip, devices: int, flops: float, traffic: float, collectives: Sequence[Mapping]
) -> dict[str, float]:
    """The seconds that a step takes at the chip's best.

    In a ring every byte of a reduction is sent out and back, and every byte of other
    collectives once. The step takes as long as the slowest of its three parts, if the
    others hide behind it.

    Args:
      chip: the accelerator.
      devices: how many there are.
      flops: products and sums of all devices together.
      traffic: bytes between memory and cores on one device.
      collectives: rows of `hlo.collectives`.

    Returns:
      {"compute", "memory", "links", "step"}.
    """
    passes = {"all-reduce": 2}
    ring = sum(row["bytes"] * passes.get(row["kind"], 1) for row in collectives)
    parts = {
        "compute": flops / devices / chip.flops,
        "memory": traffic / chip.bandwidth,
        "links": ring * (devices - 1) / devices / chip.link,
    }
    return parts | {"step": max(parts.values())}
