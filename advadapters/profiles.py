"""What a profile of `jax.profiler` says: how long devices worked, on what, for which part.

A trace has a plane for each accelerator, with lines of events one after the other or inside
one another. CPUs have their instructions among the threads of the host's plane.
"""

import collections
import pathlib
import re
from typing import NamedTuple

from advadapters.errors import UsageError

# By names of kernels (GPUs) and of instructions (others), and where these tell nothing, by
# what made them in the program; the first that is found counts. TPUs call matrix products
# convolutions, and what is fused goes by one name for all.
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

    name: of the kernel or the instruction, with its category on TPUs. instruction: its
    name in the program. scope: where that says it comes from, "" if the trace does not
    tell. start, seconds: when and how long; own: without what runs inside it. line: which
    device and queue.
    """

    name: str
    instruction: str
    scope: str
    start: float
    seconds: float
    own: float
    line: str


class Trace(NamedTuple):
    """Events of all devices. span: seconds from the first start to the last end.

    busy: seconds of it in which a device (CPUs: any thread) worked, mean over the devices.
    """

    events: list
    span: float
    busy: float


def read(folder):
    """The newest Trace under a folder, as `jax.profiler.start_trace` writes it there.

    Raises UsageError if there is none, or none of any device's work.
    """
    from jax.profiler import ProfileData

    files = sorted(pathlib.Path(folder).glob("**/*.xplane.pb"))
    if not files:
        raise UsageError(f"no profile (*.xplane.pb) under {folder}")
    return of(ProfileData.from_file(str(files[-1])))


def of(data):
    """The Trace of a `jax.profiler.ProfileData`; raises UsageError as `read` does."""
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    if events := [e for p in devices for line in p.lines if wanted(p, line)
                  for e in line_events(p, line)]:  # fmt: skip
        return trace(events)
    hosts = [plane for plane in planes if plane.name.startswith("/host:CPU")]
    events = [e for p in hosts for line in p.lines for e in line_events(p, line, True)]
    if not events:
        names = ", ".join(plane.name for plane in planes)
        raise UsageError(f"the profile has no operations of a device; it has {names}")
    return trace(events)


def wanted(plane, line):
    """Whether a line has the operations themselves: others tell of them again."""
    if "GPU" in plane.name:
        return line.name.startswith("Stream")
    return line.name == "XLA Ops"


def line_events(plane, line, host=False):
    """[Event] of a line; host: only of instructions, beside what else its threads do."""
    found = []
    for event in line.events:
        stats = dict(event.stats)
        # TPUs give the instruction's whole text.
        name = event.name.partition(" = ")[0].removeprefix("%")
        instruction = str(stats.get("hlo_op", "" if host else name))
        if instruction:
            name = f"{name} {stats.get('hlo_category', '')}".strip()
            scope, where = str(stats.get("tf_op", "")), f"{plane.name} {line.name}"
            start, seconds = event.start_ns / 1e9, event.duration_ns / 1e9
            found.append(Event(name, instruction, scope, start, seconds, seconds, where))
    return nested(found)


def nested(events):
    """Events of one line, each with its own seconds, without those of what is inside it."""
    events = sorted(events, key=lambda one: (one.start, -one.seconds))
    ends = [event.start + event.seconds for event in events]
    own, around = [event.seconds for event in events], []
    for number, event in enumerate(events):
        # What follows at once may seem to overlap by the clock's rounding.
        while around and ends[number] > ends[around[-1]] + 1e-9:
            around.pop()
        if around:
            own[around[-1]] -= event.seconds
        around.append(number)
    return [
        e._replace(own=max(seconds, 0.0)) for e, seconds in zip(events, own, strict=True)
    ]


def trace(events):
    """The Trace of its events."""
    first = min(event.start for event in events)
    last = max(event.start + event.seconds for event in events)
    devices = collections.defaultdict(list)
    for event in events:
        devices[event.line.partition(" ")[0]].append(event)
    busy = sum(map(covered, devices.values())) / len(devices)
    return Trace(events, last - first, busy)


def covered(events):
    """Seconds in which at least one of the events goes on."""
    total, end = 0.0, float("-inf")
    for event in sorted(events, key=lambda one: one.start):
        stop = event.start + event.seconds
        total += max(0.0, stop - max(event.start, end))
        end = max(end, stop)
    return total


def scope_of(event, scopes):
    """Where an event comes from; scopes: {instruction: scope}, see `hlo.scopes`."""
    return scopes.get(event.instruction) or event.scope


def kind_of(event, scopes):
    """A key of KINDS, or OTHER."""
    maker = scope_of(event, scopes).rpartition("/")[2]
    for text in (f"{event.name} {event.instruction}".lower(), maker):
        for kind, rule in KINDS.items():
            if re.search(rule, text):
                return kind
    return OTHER


def by_kind(found, scopes):
    """{kind: seconds} of a Trace, the longest first; sums over devices and threads.

    scopes: {instruction: scope} of the program (`hlo.scopes`), beside what the trace tells
    itself; {} if there is no more.
    """
    return summed((kind_of(event, scopes), event.own) for event in found.events)


def by_scope(found, scopes, labels=PARTS):
    """{label: seconds} of a Trace, likewise.

    labels: {label: pattern of scopes}; the first that is found counts, else OTHER.
    """

    def label(event):
        scope = scope_of(event, scopes)
        return next(
            (name for name, rule in labels.items() if re.search(rule, scope)), OTHER
        )

    return summed((label(event), event.own) for event in found.events)


def summed(pairs):
    """{name: sum} of (name, number), the largest first."""
    total = collections.Counter()
    for name, seconds in pairs:
        total[name] += seconds
    return dict(total.most_common())
