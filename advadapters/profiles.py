"""What a profile of `jax.profiler` says: how long devices worked, on what, for which part.

A trace has a plane for each accelerator, with lines of events one after the other or inside
one another. CPUs have their instructions among the threads of the host's plane.
"""

import collections
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from advadapters.errors import UsageError

# Patterns of the names of kernels (GPUs) and of instructions (others). Where these say
# nothing, they are matched with what made the instruction in the program. The first that
# matches counts. TPUs call matrix products convolutions, and give all fusions one name.
KINDS = {
    "collectives": r"nccl|all-?reduce|all-?gather|reduce-?scatter|all-?to-?all|collective",
    "attention, softmax": r"fmha|flash|sdpa|softmax|attention",
    "convolutions": r"conv(?!ert)|wgrad|dgrad|fprop|winograd",
    "matrix products": r"dot|gemm|gemv|matmul|cutlass|cublas|nvjet|xmma|wgmma",
    "copies": r"copy|memcpy|memset|transpose|slice|concatenate|infeed|outfeed",
    "sums": r"reduc",
}
OTHER = "other"
# Parts of a training step by their scopes, see `jax.named_scope`; in this order too.
PARTS = {
    "attack": r"\battack\b",
    "augmentation": r"\baugment\b",
    "update": r"\bupdate\b",
    "loss, backward": r"\bloss\b.*transpose\(",
    "loss, forward": r"\bloss\b",
}


class Event(NamedTuple):
    """One operation on one device, or by one thread of a CPU.

    Attributes:
      name: of the kernel or the instruction, with its category on TPUs.
      instruction: its name in the program.
      scope: where the trace says it comes from, "" if it says nothing.
      start: when it began, in seconds.
      seconds: how long it went on.
      exclusive: the same without the events inside it.
      line: the device and the queue.
    """

    name: str
    instruction: str
    scope: str
    start: float
    seconds: float
    exclusive: float
    line: str


class Trace(NamedTuple):
    """What happened on all devices.

    Attributes:
      events: all of them.
      span: seconds from the first start to the last end.
      busy: seconds of it in which a device worked (for CPUs: any thread), mean over the
        devices.
    """

    events: list[Event]
    span: float
    busy: float


def read(folder: str | os.PathLike[str]) -> Trace:
    """Reads the newest trace under a folder, where `jax.profiler.start_trace` wrote it.

    Raises:
      UsageError: there is no trace, or it has no device's work.
    """
    from jax.profiler import ProfileData

    files = sorted(pathlib.Path(folder).glob("**/*.xplane.pb"))
    if not files:
        raise UsageError(f"no profile (*.xplane.pb) under {folder}")
    return of(ProfileData.from_file(str(files[-1])))


def of(data: Any) -> Trace:
    """The Trace of a `jax.profiler.ProfileData`; raises UsageError as `read` does."""
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    if events := [e for p in devices for line in p.lines if _has_operations(p, line)
                  for e in _line_events(p, line)]:  # fmt: skip
        return _trace(events)
    hosts = [plane for plane in planes if plane.name.startswith("/host:CPU")]
    events = [e for p in hosts for line in p.lines for e in _line_events(p, line, True)]
    if not events:
        names = ", ".join(plane.name for plane in planes)
        raise UsageError(f"the profile has no operations of a device; it has {names}")
    return _trace(events)


def _has_operations(plane: Any, line: Any) -> bool:
    """Whether a line has the operations themselves; other lines repeat them."""
    if "GPU" in plane.name:
        return line.name.startswith("Stream")
    return line.name == "XLA Ops"


def _line_events(plane: Any, line: Any, host: bool = False) -> list[Event]:
    """The events of a line; host: only instructions, not what else the threads do."""
    events = []
    for event in line.events:
        stats = dict(event.stats)
        # TPUs give the instruction's whole text.
        name = event.name.partition(" = ")[0].removeprefix("%")
        instruction = str(stats.get("hlo_op", "" if host else name))
        if instruction:
            name = f"{name} {stats.get('hlo_category', '')}".strip()
            scope, where = str(stats.get("tf_op", "")), f"{plane.name} {line.name}"
            start, seconds = event.start_ns / 1e9, event.duration_ns / 1e9
            events.append(Event(name, instruction, scope, start, seconds, seconds, where))
    return _with_exclusive(events)


def _with_exclusive(events: Iterable[Event]) -> list[Event]:
    """Events of one line with the seconds of each that belong to no event inside it."""
    events = sorted(events, key=lambda event: (event.start, -event.seconds))
    ends = [event.start + event.seconds for event in events]
    exclusive, around = [event.seconds for event in events], []
    for number, event in enumerate(events):
        # What follows at once may seem to overlap by the clock's rounding.
        while around and ends[number] > ends[around[-1]] + 1e-9:
            around.pop()
        if around:
            exclusive[around[-1]] -= event.seconds
        around.append(number)
    return [
        event._replace(exclusive=max(seconds, 0.0))
        for event, seconds in zip(events, exclusive, strict=True)
    ]


def _trace(events: list[Event]) -> Trace:
    """The Trace of its events."""
    first = min(event.start for event in events)
    last = max(event.start + event.seconds for event in events)
    devices = collections.defaultdict(list)
    for event in events:
        devices[event.line.partition(" ")[0]].append(event)
    busy = sum(map(_covered, devices.values())) / len(devices)
    return Trace(events, last - first, busy)


def _covered(events: Iterable[Event]) -> float:
    """Seconds in which at least one of the events goes on."""
    total, end = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event.start):
        stop = event.start + event.seconds
        total += max(0.0, stop - max(event.start, end))
        end = max(end, stop)
    return total


def scope_of(event: Event, scopes: Mapping[str, str]) -> str:
    """Where an event comes from; scopes: {instruction: scope}, see `hlo.scopes`."""
    return scopes.get(event.instruction) or event.scope


def kind_of(event: Event, scopes: Mapping[str, str]) -> str:
    """The kind of an event: a key of KINDS, or OTHER. scopes: as for `scope_of`."""
    maker = scope_of(event, scopes).rpartition("/")[2]
    for text in (f"{event.name} {event.instruction}".lower(), maker):
        for kind, rule in KINDS.items():
            if re.search(rule, text):
                return kind
    return OTHER


def by_kind(trace: Trace, scopes: Mapping[str, str]) -> dict[str, float]:
    """The seconds of each kind of event, summed over devices and threads.

    Args:
      trace: the events.
      scopes: {instruction: scope} of the program (`hlo.scopes`), in addition to what the
        trace says itself; {} if there are no others.

    Returns:
      {kind: seconds}, the longest first.
    """
    return _sum_by_name((kind_of(event, scopes), event.exclusive) for event in trace.events)


def by_scope(
    trace: Trace, scopes: Mapping[str, str], labels: Mapping[str, str] = PARTS
) -> dict[str, float]:
    """The seconds of each part of the program, summed over devices and threads.

    Args:
      trace: the events.
      scopes: as for `by_kind`.
      labels: {label: pattern of scopes}. The first that matches counts; what none
        matches is OTHER.

    Returns:
      {label: seconds}, the longest first.
    """

    def label(event: Event) -> str:
        scope = scope_of(event, scopes)
        return next(
            (name for name, rule in labels.items() if re.search(rule, scope)), OTHER
        )

    return _sum_by_name((label(event), event.exclusive) for event in trace.events)


def _sum_by_name(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """{name: sum} of (name, number), the largest first."""
    total: dict[str, float] = collections.defaultdict(float)
    for name, seconds in pairs:
        total[name] += seconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))
