"""How many networks and images a device takes at once: read from the compiler's plan.

A program for as many as the config allows is compiled; where its plan is more than a
device has room for, one for fewer networks is, and then for fewer images.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from advadapters import costs, hosts, meshes
from advadapters.errors import UsageError

# Networks in one call at most. On CPUs a mapped axis of networks makes a ViT's passes a
# third slower, and gains a convolutional network nothing: CPU time of a soup in PGD-5,
# mapped and in calls of its own, 503 and 375 ms for digits' ViT, 368 and 374 for the other
# (tests/benchmarks/soups_at_once.py). One program is compiled for any number of soups.
MOST = {"cpu": 1}
# Of a device's memory, for one program: another batch arrives while it runs, and what is
# free is not in one piece.
SHARE = 0.9
# jax leaves a quarter of a GPU to others, unless XLA_PYTHON_CLIENT_MEM_FRACTION tells it.
TAKEN = 0.75
# Bytes for the temporaries of a process on a CPU, whose memory is everybody's. More images
# at once gain nothing there.
HOST = 4 * 2**30


class Program(NamedTuple):
    """A compiled program, and what a call of it takes.

    call: what was compiled, None where the compiler finds that it does not fit. soups:
    networks, rows: images on each device, in one call. flops: of a call on all devices, on
    paper; once: with loops once. memory: see `costs.compiled`.
    """

    call: Any
    soups: int
    rows: int
    flops: float
    once: float
    memory: dict[str, Any]


def most(mesh: Mesh, asked: int) -> int:
    """How many networks one call takes at most on these devices, of so many asked."""
    return min(asked, MOST.get(mesh.devices.flat[0].platform) or asked)


def room(mesh: Mesh, variables: Any) -> int:
    """Bytes of one device that a program may plan, those of the variables included.

    The same for all processes, as process 0 finds it.
    """
    device = mesh.local_devices[0]

    @hosts.once
    def free() -> int:
        stats = device.memory_stats() or {}
        if device.platform == "cpu" or "bytes_limit" not in stats:
            return HOST // len(mesh.local_devices)
        return stats["bytes_limit"] - stats["bytes_in_use"]

    return int(SHARE * free()) + size_of(variables)


def room_of(chip: costs.Chip) -> int:
    """The same of a `costs.Chip` that need not be there and holds nothing else."""
    return int(SHARE * chip.memory * (1.0 if chip.tpu else TAKEN))


def size_of(tree: Any) -> int:
    """Bytes of arrays, or of what they will be, on a device that holds all of each."""
    return sum(
        math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree)
    )


def fit(
    make: Callable[[int, int], Program], count: int, soups: int, rows: int, room: int
) -> Program:
    """The Program for `count` networks that takes most of them at once and still fits.

    make: (soups, rows) -> Program. soups, rows: at most. room: bytes of a device that it
    may plan. Networks become fewer first, in even groups; images then, by whole parts. One
    network on one image of each device is returned in any case: nobody can make it smaller.
    """
    soups, whole = even(count, soups), rows
    while True:
        program = make(soups, rows)
        need = program.memory["peak"]
        if (program.call and need <= room) or soups == rows == 1:
            return program
        # In proportion, where the plan tells; what stays the same is small beside it.
        units = soups * rows * min(0.5 if need is None else room / need, 1.0)
        if units >= rows and soups > 1:
            soups = even(count, min(int(units / rows), soups - 1))
        else:
            rows = part(whole, min(int(units), rows - (soups == 1)))
            soups = 1


def even(total: int, most: int) -> int:
    """The size of the groups that are most alike, of at most `most` each."""
    return math.ceil(total / math.ceil(total / max(1, min(most, total))))


def part(rows: int, most: int) -> int:
    """The largest part of at most `most` that so many rows are whole parts of."""
    return next(n for n in range(max(1, min(most, rows)), 0, -1) if rows % n == 0)


class Wanted(NamedTuple):
    """A jitted function (variables, knobs [S, ...], batch) of which a Program is wanted.

    knobs: [`networks.Knob`] of all networks. soups: how many of them a call takes at most.
    batch: arrays with the shapes and types of a batch, but for the number of rows.
    """

    function: Any
    knobs: list
    soups: int
    batch: Any


def programs(
    wanted: Sequence[Wanted],
    variables: Any,
    *,
    mesh: Mesh,
    rows: int,
    room: int,
    cache: dict[Any, Any],
) -> list[Program]:
    """[Program] for all [Wanted], of the same number of rows: that which fits for all.

    variables: arrays, or their shapes and places. rows: on each device, at most. room: see
    `room`. cache: keeps what was compiled.
    """

    def maker(asked: Wanted) -> Callable[[int, int], Program]:
        def make(soups: int, rows: int) -> Program:
            batch = shapes(mesh, asked.batch, rows)
            arguments = variables, stack(asked.knobs[:1] * soups), batch
            leaves, structure = jax.tree.flatten(arguments)
            types = tuple((x.shape, np.dtype(x.dtype)) for x in leaves)
            key = asked.function, structure, types
            if key not in cache:
                cache[key] = compiled(asked.function, soups, rows, mesh, arguments)
            return cache[key]

        return make

    while True:
        fitted = [fit(maker(w), len(w.knobs), w.soups, rows, room) for w in wanted]
        least = min(program.rows for program in fitted)
        if least == rows:
            return fitted
        rows = least


def need_room(programs: Sequence[Program]) -> None:
    """Raises UsageError where one network on one image of each device is too much."""
    if any(program.call is None for program in programs):
        raise UsageError(
            "one network on one image of each device does not fit: take devices with more "
            "memory, or set --config.evaluation.dtype=bfloat16"
        )


def compiled(
    function: Any, soups: int, rows: int, mesh: Mesh, arguments: tuple[Any, ...]
) -> Program:
    """The Program of a jitted function for these arguments."""
    traced = function.trace(*arguments)
    call, memory = costs.compiled(traced)
    paper, once = (costs.products(traced.jaxpr.jaxpr, mesh.size, o) for o in (False, True))
    return Program(call, soups, rows, paper, once, memory)


def stack(knobs: Sequence[Any]) -> Any:
    """[Knob] -> Knob of [S, ...], numpy."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *knobs)


def shapes(mesh: Mesh, batch: Any, rows: int) -> Any:
    """Shapes, types and places of a batch with so many rows on each device."""

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        size = (rows * mesh.size, *x.shape[1:])
        return jax.ShapeDtypeStruct(size, x.dtype, sharding=meshes.batched(mesh))

    return jax.tree.map(shape, batch)
