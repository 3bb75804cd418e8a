"""`train --profile`: a trace of a few training steps, and the table that it gives."""

import os
import time
from collections.abc import Mapping
from typing import Any

import jax

from advadapters import hlo, hosts, profiles
from advadapters.errors import UsageError
from advadapters.markdown import markdown_table

# Steps before the first that is traced: one compiles, two fill the devices' queues.
BEFORE = 3


def need_steps(steps: int, left: int, folder: str | os.PathLike) -> None:
    """Raises UsageError where so many steps cannot be traced."""
    if left < BEFORE + steps:
        raise UsageError(
            f"--profile={steps} traces {steps} steps after the first {BEFORE}, and this "
            f"run has {left} left: name fewer, or train for longer (--config.epochs=...)"
        )
    if "://" in os.fspath(folder):
        raise UsageError(f"--profile writes to a folder of this machine, not to {folder}")


class Profiled:
    """The training step (a jitted function), of which process 0 traces so many calls.

    After the last of them the trace is in the folder and its table is printed.
    """

    def __init__(self, step_fn: Any, steps: int, folder: str | os.PathLike) -> None:
        self.step_fn, self.steps, self.folder = step_fn, steps, os.fspath(folder)
        self.calls, self.started = 0, 0.0
        self.program: Any = None

    def __call__(self, state: Any, *others: Any) -> Any:
        if self.program is None:  # compiled here, since its text tells what is what
            self.program = self.step_fn.lower(state, *others).compile()
        self.calls += 1
        if self.calls == BEFORE + 1 and hosts.first():
            self.start(state)
        results = self.program(state, *others)
        if self.calls == BEFORE + self.steps and hosts.first():
            self.stop(results)
        return results

    def start(self, state: Any) -> None:
        """Begins the trace, when what came before is done."""
        jax.block_until_ready(state)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # all of Python's calls are too many
        jax.profiler.start_trace(self.folder, profiler_options=options)
        self.started = time.monotonic()

    def stop(self, results: Any) -> None:
        """Ends the trace when the steps are done, and prints what it says."""
        jax.block_until_ready(results)
        seconds = (time.monotonic() - self.started) / self.steps
        jax.profiler.stop_trace()
        scopes = hlo.scopes(self.program.as_text())
        profile = profiles.read(self.folder)
        print(describe(profile, scopes, self.steps, seconds), flush=True)
        print(f"profile: {self.folder} (open it with TensorBoard's profile plugin, xprof)")


def describe(profile: Any, scopes: Mapping[str, Any], steps: int, seconds: float) -> str:
    """What the devices did in so many steps, of so many seconds each on the clock."""
    lines = [
        f"profile of {steps} steps, {1e3 * seconds:,.1f} ms each; devices worked "
        f"{profile.busy / (steps * seconds):.1%} of the time"
    ]
    whole = sum(event.exclusive for event in profile.events)
    for title, parts in (
        ("part", profiles.by_scope(profile, scopes)),
        ("kind of operation", profiles.by_kind(profile, scopes)),
    ):
        rows = [
            (name, f"{1e3 * spent / steps:,.2f}", f"{spent / whole:.1%}")
            for name, spent in parts.items()
        ]
        lines.append(
            markdown_table((title, "ms a step, devices and threads added", "share"), rows)
        )
    return "\n".join(lines)
