"""The training loop, once: it knows steps, and nothing of methods or models."""

import time
from typing import NamedTuple

import jax
import numpy as np

from advadapters import hosts
from advadapters import mesh as meshes


class Diverged(RuntimeError):
    """Updates were not finite too many times in a row."""


class Every(NamedTuple):
    """Steps between log lines, validations and checkpoints; 0 is never."""

    log: int
    validate: int
    checkpoint: int

    def due(self, what, step, last):
        """Whether `what` is due after `step` steps of `last`."""
        interval = getattr(self, what)
        return bool(interval) and (step % interval == 0 or step == last)


def run(
    state, step_fn, batches, *, start, stop, mesh, every, log, validate, save, leave, limit
):
    """Trains from step `start` to `stop`; returns the state.

    Every validated state is saved, so that the best one is there to be found.

    log(step, metrics) gets means over the steps since the last line; validate(state,
    step) returns a score or None; save(step, state, score) starts a checkpoint. In
    this order after each step: log, validate, save. Raises Diverged when `limit`
    updates in a row were not finite, and hosts.Preempted when `leave(step)` says so
    before the last step, which is then saved.
    """
    pending = []
    started, counted = time.monotonic(), start
    for step, batch in zip(range(start + 1, stop + 1), batches, strict=True):
        state, metrics = step_fn(state, meshes.global_batch(mesh, batch))
        pending.append(metrics)
        if every.due("log", step, stop):
            means, bad = summarize(pending)
            seconds, pending = time.monotonic() - started, []
            log(step, means | {"seconds_per_step": seconds / (step - counted)})
            if bad >= limit:
                raise Diverged(f"{bad} updates in a row were not finite at step {step}")
            started, counted = time.monotonic(), step
        paused = time.monotonic()
        validated = every.due("validate", step, stop)
        score = validate(state, step) if validated else None
        leaving = leave(step) and step < stop
        if validated or leaving or every.due("checkpoint", step, stop):
            save(step, state, score)
        if leaving:
            raise hosts.Preempted(f"SIGTERM: saved after step {step}")
        started += time.monotonic() - paused
    return state


def summarize(metrics):
    """[metrics of each step] -> ({name: mean}, bad updates in a row)."""
    host = jax.device_get(metrics)
    bad = max(int(row["nonfinite"]) for row in host)
    names = host[0].keys() - {"nonfinite"}
    means = {name: float(np.mean([row[name] for row in host])) for name in sorted(names)}
    return means | {"nonfinite": bad}, bad
