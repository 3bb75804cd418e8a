"""What a compiled training step costs: operations, memory, messages, time at best.

Nothing here runs the step. Counts come from the traced program (the count on paper) and
from the compiler; times are what the chip's figures allow, so no run can be faster.
"""

import math
import re
from typing import NamedTuple

import jax
from jax.extend import core

from advadapters.errors import UsageError


class Chip(NamedTuple):
    """One accelerator as its maker describes it.

    memory: bytes. flops: bfloat16 products and sums per second. bandwidth: bytes per
    second of that memory. link: bytes per second that it can send to others, half of what
    is told for both directions. exact: float32 products and sums per second.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    exact: float

    @property
    def tpu(self):
        """Whether it is a TPU; else it is a GPU."""
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


def topology(text):
    """(devices, Chip or None) that a name stands for; a TPU need not be there.

    Raises UsageError for a name that means nothing, or for devices that are not here.
    """
    kind, _, shape = text.partition(":")
    if kind == "cpu" and shape.isdecimal() and int(shape):
        return local("cpu", int(shape), text), None
    if text == "gpu":
        devices = local("gpu", 1, text)
        name = devices[0].device_kind
        return jax.devices("gpu"), next((c for k, c in CHIPS.items() if k in name), None)
    if kind not in TPUS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UsageError(f"unknown topology {text!r}; there are: {KNOWN}")
    return tpus(kind, text), CHIPS[kind]


def local(platform, count, text):
    """The first `count` devices of a platform; raises UsageError if there are fewer."""
    try:
        devices = jax.devices(platform)
    except RuntimeError:
        devices = []
    if len(devices) < count:
        raise UsageError(f"topology {text!r}: only {len(devices)} {platform} devices here")
    return devices[:count]


def tpus(kind, text):
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


def products(jaxpr, devices=1, once=False) -> float:
    """FLOPs of the matrix products and convolutions of a traced program, all devices.

    Loops are multiplied out, or with `once` counted as XLA's cost analysis counts them: the
    body once. Of branches the dearest counts. Loops of unknown length count once.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inner: list[float] = [products(body, devices, once) for body in bodies(params)]
        if name in ("dot_general", "conv_general_dilated"):
            total += product(equation)
        elif name == "cond":
            total += max(inner)
        elif name == "scan":
            total += sum(inner) * (1 if once else params["length"])
        elif name == "shard_map":
            total += sum(inner) * devices
        else:
            total += sum(inner)
    return total


def bodies(params):
    """The programs inside an equation."""
    for value in jax.tree.leaves(params, is_leaf=lambda v: isinstance(v, core.Jaxpr)):
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def product(equation):
    """FLOPs of one matrix product or convolution: a product and a sum for each pair."""
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    out = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * out * math.prod(left[axis] for axis in contracted)
    kernel = equation.params["dimension_numbers"].rhs_spec
    zeros = math.prod(equation.params["lhs_dilation"])  # between the pixels of gradients
    return 2 * out * math.prod(right[axis] for axis in kernel[1:]) / zeros


def compiled(traced):
    """(compiled program, `memory` of it) of a traced one.

    (None, {"peak": bytes, or None if it does not say}) where the compiler finds that a
    device has too little memory.
    """
    try:
        program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, {"peak": needed(str(error))}
    return program, memory(program)


def needed(text):
    """Bytes that a compiler says it would have needed, or None."""
    match = re.search(r"Used ([\d.]+)([KMG])", text)
    return float(match[1]) * 1024 ** (" KMG".index(match[2])) if match else None


def memory(compiled):
    """Bytes on one device: {"arguments", "outputs", "temporaries", "program", "peak"}.

    Outputs that take the place of donated arguments are not counted again.
    """
    stats = compiled.memory_analysis()
    found = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    return found | {"peak": sum(found.values())}


def seconds(chip, devices, flops, traffic, sent):
    """Seconds of a step at the chip's best: {"compute", "memory", "links", "step"}.

    flops: of all devices. traffic: bytes between memory and cores on one device. sent:
    rows of `hlo.collectives`. A ring sends every byte of a reduction out and back, of the
    others once. The step takes what the slowest of the three takes, if the others hide
    behind it.
    """
    passes = {"all-reduce": 2}
    ring = sum(row["bytes"] * passes.get(row["kind"], 1) for row in sent)
    found = {
        "compute": flops / devices / chip.flops,
        "memory": traffic / chip.bandwidth,
        "links": ring * (devices - 1) / devices / chip.link,
    }
    return found | {"step": max(found.values())}
