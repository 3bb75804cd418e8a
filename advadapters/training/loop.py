"""The training loop, once: it knows steps, and nothing of methods or models."""

import time
from concurrent import futures
from typing import NamedTuple

import jax
import numpy as np
from jax.profiler import StepTraceAnnotation, TraceAnnotation

from advadapters import hosts, meshes


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


class Feed:
    """Batches on the devices of a mesh, each brought there while a step before it runs.

    A thread of its own takes them from the iterator, `count` in all and one ahead, and
    puts each there whole. To be left (`with`) before the iterator is done with.

    waited: seconds so far for which the devices stood idle for want of input, that is, all
    steps that they were given were finished, the loop asked for the next batch, and it
    was not there.
    """

    def __init__(self, mesh, batches, count):
        self.mesh, self.batches, self.left = mesh, iter(batches), count
        self.waited = 0.0
        self.loader = futures.ThreadPoolExecutor(1, "batches")
        self.coming = self.order()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loader.shutdown()

    def order(self):
        """Has the thread bring the next batch, if there is one."""
        self.left -= 1
        return self.loader.submit(self.bring) if self.left >= 0 else None

    def bring(self):
        """The next batch, when it is there; by the thread."""
        with TraceAnnotation("input"):
            return jax.block_until_ready(meshes.global_batch(self.mesh, next(self.batches)))

    def take(self, running):
        """The next batch. running: of what the last step returned, ready when it ends."""
        if self.coming is None:
            raise StopIteration("there are no more batches")
        if not self.coming.done():
            jax.block_until_ready(running)
        asked = time.monotonic()
        batch = self.coming.result()
        self.waited += time.monotonic() - asked
        self.coming = self.order()
        return batch


def run(
    state, step_fn, batches, *, start, stop, mesh, every, log, validate, save, leave, limit
):
    """Trains from step `start` to `stop`; returns the state.

    Every validated state is saved, so that the best one is there to be found. While a step
    runs the next one is given to the devices already, and the batch after it is brought;
    nothing is fetched from them but to be logged, validated or saved.

    log(step, metrics) gets means over the steps since the last line, seconds_per_step, and
    waiting, the share of that time which `Feed` waited; validate(state, step) returns a
    score or None; save(step, state, score) starts a checkpoint. In this order after each
    step: log, validate, save. Raises Diverged when `limit` updates in a row were not
    finite, and hosts.Preempted when `leave(step)` says so before the last step, which is
    then saved.
    """
    pending, before, metrics = [], None, None
    started, counted = time.monotonic(), start
    with Feed(mesh, batches, stop - start) as feed:
        for step in range(start + 1, stop + 1):
            batch = feed.take(metrics)
            # Two steps at once are enough to be ahead, and each keeps its batch.
            jax.block_until_ready(before)
            before = metrics
            with StepTraceAnnotation("train", step_num=step):
                state, metrics = step_fn(state, batch)
            pending.append(metrics)
            if every.due("log", step, stop):
                means, bad = summarize(pending)
                seconds, pending = time.monotonic() - started, []
                means |= {"waiting": feed.waited / seconds}
                log(step, means | {"seconds_per_step": seconds / (step - counted)})
                if bad >= limit:
                    raise Diverged(f"{bad} updates in a row were not finite at step {step}")
                started, counted, feed.waited = time.monotonic(), step, 0.0
            leaving = leave(step) and step < stop
            validated = every.due("validate", step, stop)
            if validated or leaving or every.due("checkpoint", step, stop):
                jax.block_until_ready(metrics)  # steps are no part of the pause
                paused = time.monotonic()
                score = validate(state, step) if validated else None
                with TraceAnnotation("checkpoint"):
                    save(step, state, score)
                started += time.monotonic() - paused
            if leaving:
                raise hosts.Preempted(f"stopped: saved after step {step}")
    return state


def summarize(metrics):
    """[metrics of each step] -> ({name: mean}, bad updates in a row)."""
    host = jax.device_get(metrics)
    bad = max(int(row["nonfinite"]) for row in host)
    names = host[0].keys() - {"nonfinite"}
    means = {name: float(np.mean([row[name] for row in host])) for name in sorted(names)}
    return means | {"nonfinite": bad}, bad
