"""What a compiled program moves: XLA's text of it, read for messages and memory traffic."""

import math
import re
from typing import NamedTuple

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4,
          "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute",
               "all-to-all", "collective-broadcast")  # fmt: skip
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
CALLED = re.compile(r"(\w+)=(\{%[^}]*\}|%[\w.-]+)")
DIM_LABELS = re.compile(r"dim_labels=(b[0-9]*f)_([0-9]*io)->\1")  # NHWC, HWIO, NHWC
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


def scopes(text):
    """{instruction: where it comes from, see `jax.named_scope`} of a compiled program."""
    named = r'^\s+(?:ROOT )?%?([\w.-]+) = .*metadata={.*?op_name="((?:[^"\\]|\\.)*)"'
    return dict(re.findall(named, text, re.MULTILINE))


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


def convolutions_in_loops(program):
    """(names of those that XLA's kernels for CPUs take, names of those that they do not).

    What they do not take is computed there by nested scalar loops.
    """
    lines = [line for block in program.values() for line in block]
    loops = [name for line in lines for name in line.calls().get("body", ())]
    fast, slow = [], []
    for name in reached(loops, program, lambda line: ALL_CALLS):
        for line in program[name]:
            if line.kind == "convolution":
                known = DIM_LABELS.search(line.rest) and "rhs_reversal" not in line.rest
                (fast if known else slow).append(line.name)
    return fast, slow


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
