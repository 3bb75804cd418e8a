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
    is told for both directions.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float


# TPUs: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (read 2026-11-21; the gigabytes are
# 2^30); v4's link: 2,400 Gbps in the older table of all versions. GPUs (SXM): NVIDIA's
# data sheets, dense bfloat16.
CHIPS = {
    "v4": Chip("TPU v4", 32 * 2**30, 275e12, 1200e9, 150e9),
    "v5e": Chip("TPU v5e", 16 * 2**30, 197e12, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 95 * 2**30, 459e12, 2765e9, 600e9),
    "v6e": Chip("TPU v6e", 32 * 2**30, 918e12, 1638e9, 400e9),
    "H100": Chip("H100", 80e9, 989e12, 3350e9, 450e9),
    "H200": Chip("H200", 141e9, 989e12, 4800e9, 450e9),
}
TPUS = tuple(name for name in CHIPS if name.startswith("v"))
KNOWN = (
    "TPUs as VERSION:SHAPE, like v5e:16x16, v4:4x4x4, v5p:4x4x4 or v6e:16x16 (versions: "
    f"{', '.join(TPUS)}), cpu:COUNT, and gpu for the GPUs that are here"
)
# Products run on a chip of theirs; v4's and v5p's two cores work as one device.
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


def products(jaxpr, devices=1, once=False):
    """FLOPs of the matrix products and convolutions of a traced program, all devices.

    Loops are multiplied out, or with `once` counted as XLA's cost analysis counts them: the
    body once. Of branches the dearest counts. Loops of unknown length count once.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inner = [products(body, devices, once) for body in bodies(params)]
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


WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4,
          "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute",
               "all-to-all", "collective-broadcast")  # fmt: skip
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
CALLED = re.compile(r"(\w+)=(\{%[^}]*\}|%[\w.-]+)")
ON_CHIP = "S(1)"  # in the layout of what a TPU keeps beside its cores
FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while",
        "conditional", "call", "async-start"}  # fmt: skip


class Instruction(NamedTuple):
    """A line of a program: its name, the shapes of its result, what it does with what."""

    name: str
    shapes: str
    kind: str
    rest: str

    def calls(self):
        """{attribute: names of computations} that it refers to."""
        found = CALLED.findall(self.rest)
        return {key: re.findall(r"[\w.-]+", names) for key, names in found}


def computations(text):
    """{name: [Instruction, ...]} of a compiled program (XLA's text)."""
    found, inside = {}, ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            inside = "ENTRY" if line.startswith("ENTRY") else head[1]
            found[inside] = []
        elif match := LINE.match(line):
            found[inside].append(Instruction(*match.groups()))
    return found


def reached(names, program, keys):
    """The computations that those named refer to, directly or not, and they themselves.

    keys: instruction -> the attributes that are followed.
    """
    seen, left = set(), list(names)
    while left:
        name = left.pop()
        if name not in seen and name in program:
            seen.add(name)
            for line in program[name]:
                calls = line.calls()
                left += [one for key in keys(line) for one in calls.get(key, ())]
    return seen


ALL_CALLS = ("calls", "to_apply", "body", "condition", "branch_computations",
             "true_computation", "false_computation")  # fmt: skip


def collectives(program, devices):
    """What devices send each other in a program, a row for each kind.

    [{"kind", "count", "bytes", "in_loops"}]: bytes are those of the whole value, before it
    is scattered or after it is gathered; in_loops is how many of them a loop repeats. Both
    sides of a branch are counted.
    """
    lines = [line for block in program.values() for line in block]
    loops = [name for line in lines for name in line.calls().get("body", ())]
    repeated = reached(loops, program, lambda line: ALL_CALLS)
    rows = {}
    for place, block in program.items():
        for line in block:
            kind = line.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                row = rows.setdefault(kind, {"count": 0, "bytes": 0, "in_loops": 0})
                row["count"] += 1
                row["bytes"] += whole_bytes(line, kind, devices)
                row["in_loops"] += place in repeated
    return [{"kind": kind} | rows[kind] for kind in COLLECTIVES if kind in rows]


def traffic(program):
    """Bytes that a program moves between memory and cores, loops once, branches all.

    Operands and results of all that runs, but for what stays on the chip; of what only
    starts, what it brings. More than is moved where an operand is read in part. (XLA's
    own "bytes accessed" counts what stays on the chip, and was 70 times this once.)
    """

    def runs(line):
        keys = ("body", "condition", *ALL_CALLS[4:])
        return (*keys, "to_apply") if line.kind == "call" else keys

    total = 0
    for name in reached(["ENTRY"], program, runs):
        shapes = {line.name: line.shapes for line in program[name]}
        for line in program[name]:
            if line.kind in FREE or line.kind.endswith("-done"):
                continue
            if line.kind.endswith("-start"):
                total += min((n for n in sizes(line.shapes) if n > 8), default=0)
                continue
            operands = re.findall(r"%([\w.-]+)", line.rest.partition("), ")[0])
            for text in (line.shapes, *(shapes.get(one, "") for one in operands)):
                total += sum(sizes(text, but=ON_CHIP))
    return total


def sizes(text, but=None):
    """Bytes of each array in a text of shapes, without those whose layout has `but`."""
    return [
        WIDTHS.get(dtype, 4) * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", text)
        if not (but and but in layout)
    ]


def whole_bytes(line, kind, devices):
    """Bytes of the value that a collective is about, from the shapes of its result.

    What only starts has its operands and buffers among its results.
    """
    total, start = sum(sizes(line.shapes)), line.kind.endswith("-start")
    if start and kind == "all-gather":
        return total * devices // (devices + 1)
    if start and kind == "collective-permute":
        return total // 2
    return total * devices if kind == "reduce-scatter" else total


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
    rows of `collectives`. A ring sends every byte of a reduction out and back, of the
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
