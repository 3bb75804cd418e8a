"""What a compiled program moves: messages and memory traffic, read from XLA's text."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
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

    def calls(self) -> dict[str, list[str]]:
        """{attribute: names of the computations that it refers to}."""
        references = CALLED.findall(self.rest)
        return {key: re.findall(r"[\w.-]+", names) for key, names in references}


Program = dict[str, list[Instruction]]  # the instructions of each computation


def computations(text: str) -> Program:
    """The computations of a compiled program, read from XLA's text of it.

    Returns:
      {name: [Instruction, ...]}, where the name "ENTRY" is where the program begins.
    """
    program, inside = {}, ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            inside = "ENTRY" if line.startswith("ENTRY") else head[1]
            program[inside] = []
        elif match := LINE.match(line):
            program[inside].append(Instruction(*match.groups()))
    return program


def scopes(text: str) -> dict[str, str]:
    """Where the instructions of a compiled program come from, see `jax.named_scope`.

    Returns:
      {name of the instruction: its scope}.
    """
    line = r'^\s+(?:ROOT )?%?([\w.-]+) = .*metadata={.*?op_name="((?:[^"\\]|\\.)*)"'
    return dict(re.findall(line, text, re.MULTILINE))


def _reachable(
    names: Iterable[str],
    program: Program,
    keys: Callable[[Instruction], Sequence[str]],
) -> set[str]:
    """These computations and those that they refer to, directly or not.

    keys: instruction -> the attributes that are followed.
    """
    visited, left = set(), list(names)
    while left:
        name = left.pop()
        if name not in visited and name in program:
            visited.add(name)
            for line in program[name]:
                calls = line.calls()
                left += [callee for key in keys(line) for callee in calls.get(key, ())]
    return visited


ALL_CALLS = ("calls", "to_apply", "body", "condition", "branch_computations",
             "true_computation", "false_computation")  # fmt: skip


def collectives(program: Program, devices: int) -> list[dict]:
    """What devices send each other in a program. Both sides of a branch are counted.

    Returns:
      A row {"kind", "count", "bytes", "in_loops"} for each kind of collective. The bytes
      are those of the whole value, before it is scattered or after it is gathered.
      "in_loops" is how many of the collectives are repeated by a loop.
    """
    lines = [line for block in program.values() for line in block]
    loops = [name for line in lines for name in line.calls().get("body", ())]
    in_loops = _reachable(loops, program, lambda line: ALL_CALLS)
    rows = {}
    for name, block in program.items():
        for line in block:
            kind = line.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                row = rows.setdefault(kind, {"count": 0, "bytes": 0, "in_loops": 0})
                row["count"] += 1
                row["bytes"] += _whole_bytes(line, kind, devices)
                row["in_loops"] += name in in_loops
    return [{"kind": kind} | rows[kind] for kind in COLLECTIVES if kind in rows]


def convolutions_in_loops(program: Program) -> tuple[list[str], list[str]]:
    """The convolutions that a loop of the program repeats.

    Returns:
      The names of those that XLA's kernels for CPUs take, and of those that they do not
      take, which CPUs compute by nested scalar loops.
    """
    lines = [line for block in program.values() for line in block]
    loops = [name for line in lines for name in line.calls().get("body", ())]
    fast, slow = [], []
    for name in _reachable(loops, program, lambda line: ALL_CALLS):
        for line in program[name]:
            if line.kind == "convolution":
                known = DIM_LABELS.search(line.rest) and "rhs_reversal" not in line.rest
                (fast if known else slow).append(line.name)
    return fast, slow


def traffic(program: Program) -> int:
    """Bytes that a program moves between memory and cores.

    Loops are counted once and all branches are counted. The bytes are those of the
    operands and results of every instruction that runs, except what stays on the chip;
    for instructions that only start something, they are those that it brings. This is too
    much where an operand is read in part. (XLA's own "bytes accessed" counts what stays
    on the chip, and was once 70 times as much.)
    """

    def runs(line: Instruction) -> tuple[str, ...]:
        keys = ("body", "condition", *ALL_CALLS[4:])
        return (*keys, "to_apply") if line.kind == "call" else keys

    total = 0
    for name in _reachable(["ENTRY"], program, runs):
        shapes = {line.name: line.shapes for line in program[name]}
        for line in program[name]:
            if line.kind in FREE or line.kind.endswith("-done"):
                continue
            if line.kind.endswith("-start"):
                total += min((n for n in _sizes(line.shapes) if n > 8), default=0)
                continue
            operands = re.findall(r"%([\w.-]+)", line.rest.partition("), ")[0])
            for text in (line.shapes, *(shapes.get(name, "") for name in operands)):
                total += sum(_sizes(text, but=ON_CHIP))
    return total


def _sizes(text: str, but: str | None = None) -> list[int]:
    """Bytes of each array in a text of shapes, without those whose layout has `but`."""
    return [
        WIDTHS.get(dtype, 4) * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", text)
        if not (but and but in layout)
    ]


def _whole_bytes(line: Instruction, kind: str, devices: int) -> int:
    """Bytes of the value that a collective is about, from the shapes of its result.

    An instruction that only starts has its operands and buffers among its results.
    """
    total, start = sum(_sizes(line.shapes)), line.kind.endswith("-start")
    if start and kind == "all-gather":
        return total * devices // (devices + 1)
    if start and kind == "collective-permute":
        return total // 2
    return total * devices if kind == "reduce-scatter" else total
