"""The training loop, once: it knows steps, and nothing of methods or models."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.profiler import StepTraceAnnotation, TraceAnnotation
from jax.sharding import Mesh

from advadapters import hosts, meshes

State = Any  # what `step_fn` takes and returns; the loop does not look into it
Metrics = Mapping[str, Any]  # {name: number, or array [] of a device}


class Diverged(RuntimeError):
    """Updates were not finite too many times in a row."""


class Every(NamedTuple):
    """Steps between log lines, validations and checkpoints; 0 is never."""

    log: int
    validate: int
    checkpoint: int

    def due(self, what: str, step: int, last: int) -> bool:
        """Whether the field `what` says that something is due after `step` of `last` steps.

        >>> loop.Every(log=10, validate=0, checkpoint=4).due("checkpoint", 8, 9)
        True
        """
        interval = getattr(self, what)
        return bool(interval) and (step % interval == 0 or step == last)


class Plan(NamedTuple):
    """Which steps are taken, and what is done between them.

    Attributes:
      start: the number of steps that the state has already done.
      stop: the number of steps after which training ends.
      every: how often metrics are logged, and states validated and saved.
      limit: the number of updates in a row that may not be finite; with so many, the loop
        raises `Diverged`.
    """

    start: int
    stop: int
    every: Every
    limit: int


class Hooks(NamedTuple):
    """What the loop calls between two steps, in this order.

    Attributes:
      log: (step, metrics). The metrics are means over the steps since the last call,
        with "seconds_per_step" and "waiting", the share of that time which `Feed` waited.
      leave: step -> the signal because of which training must end here, before its last
        step, or 0.
      validate: (state, step) -> a score, or None for none.
      save: (step, state, score). It may return before the checkpoint is written.
    """

    log: Callable[[int, dict[str, float]], Any]
    leave: Callable[[int], int]
    validate: Callable[[State, int], float | None]
    save: Callable[[int, State, float | None], Any]


class Feed:
    """Batches on the devices of a mesh, each brought there while a step before it runs.

    A thread of its own takes them from the iterator, `count` in all and one ahead, and
    puts each there whole. It is a context manager, which must be left before the iterator
    is closed.

    Attributes:
      waited: the seconds so far for which the devices stood idle for want of input. Then
        all steps that they were given were finished, the loop asked for the next batch,
        and it was not there.
    """

    def __init__(self, mesh: Mesh, batches: Iterable[Any], count: int) -> None:
        self.mesh, self.batches, self.remaining = mesh, iter(batches), count
        self.waited = 0.0
        self.loader = futures.ThreadPoolExecutor(1, "batches")
        self.coming = self._order()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: Any) -> None:
        self.loader.shutdown()

    def _order(self) -> futures.Future | None:
        """Has the thread bring the next batch, if there is one."""
        self.remaining -= 1
        return self.loader.submit(self._bring) if self.remaining >= 0 else None

    def _bring(self) -> Any:
        """Brings the next batch to the devices and waits until it is there; the thread."""
        with TraceAnnotation("input"):
            return jax.block_until_ready(meshes.global_batch(self.mesh, next(self.batches)))

    def take(self, running: Any) -> Any:
        """Returns the next batch, and orders the one after it.

        Args:
          running: arrays that the last step returned, which are ready when it ends.
        """
        if self.coming is None:
            raise StopIteration("there are no more batches")
        if not self.coming.done():
            jax.block_until_ready(running)
        start = time.monotonic()
        batch = self.coming.result()
        self.waited += time.monotonic() - start
        self.coming = self._order()
        return batch


def run(
    state: State,
    step_fn: Callable[[State, Any], tuple[State, Metrics]],
    batches: Iterable[Any],
    *,
    mesh: Mesh,
    plan: Plan,
    hooks: Hooks,
) -> State:
    """Trains from step `plan.start` to `plan.stop` and returns the state.

    While a step runs, the next one is given to the devices already, and the batch after it
    is brought. Nothing is fetched from the devices except to be logged, validated or
    saved. Every state that is validated is also saved, so that the best one can be
    restored.

    Args:
      state: the state after `plan.start` steps. Its buffers may be donated.
      step_fn: (state, batch on the devices) -> (state, metrics), with "nonfinite" among
        the metrics: how many updates in a row were not finite.
      batches: this process's rows of each batch, from step `plan.start` on.
      mesh: the devices that batches are brought to.
      plan: which steps are taken.
      hooks: what is called between them.

    Raises:
      Diverged: `plan.limit` updates in a row were not finite.
      hosts.Preempted: `hooks.leave` said so before the last step. The state is saved.
    """
    every, stop = plan.every, plan.stop
    pending, before, metrics = [], None, None
    started, counted = time.monotonic(), plan.start
    with Feed(mesh, batches, stop - plan.start) as feed:
        for step in range(plan.start + 1, stop + 1):
            batch = feed.take(metrics)
            # Two steps at once are enough to be ahead, and each keeps its batch.
            jax.block_until_ready(before)
            if before and int(before["nonfinite"]) >= plan.limit:
                raise _diverged(int(before["nonfinite"]), step - 2)
            before = metrics
            with StepTraceAnnotation("train", step_num=step):
                state, metrics = step_fn(state, batch)
            pending.append(metrics)
            if every.due("log", step, stop):
                means, bad = summarize(pending)
                seconds, pending = time.monotonic() - started, []
                means |= {"waiting": feed.waited / seconds}
                hooks.log(step, means | {"seconds_per_step": seconds / (step - counted)})
                if bad >= plan.limit:
                    raise _diverged(bad, step)
                started, counted, feed.waited = time.monotonic(), step, 0.0
            number = hooks.leave(step)
            leaving = bool(number) and step < stop
            validated = every.due("validate", step, stop)
            if validated or leaving or every.due("checkpoint", step, stop):
                jax.block_until_ready(metrics)  # steps are no part of the pause
                paused = time.monotonic()
                score = hooks.validate(state, step) if validated else None
                with TraceAnnotation("checkpoint"):
                    hooks.save(step, state, score)
                started += time.monotonic() - paused
            if leaving:
                raise hosts.Preempted(f"stopped: saved after step {step}", number)
    return state


def _diverged(bad: int, step: int) -> Diverged:
    """What is raised when so many updates in a row were not finite."""
    return Diverged(f"{bad} updates in a row were not finite at step {step}")


def summarize(metrics: Sequence[Metrics]) -> tuple[dict[str, float], int]:
    """Returns the mean of each metric over the steps, and the bad updates in a row.

    Args:
      metrics: those of each step. Of "nonfinite", the largest value is taken in place of
        the mean.

    >>> steps = [{"loss": 3.0, "nonfinite": 0}, {"loss": 2.0, "nonfinite": 1}]
    >>> loop.summarize(steps)
    ({'loss': 2.5, 'nonfinite': 1}, 1)
    """
    host = jax.device_get(metrics)
    bad = max(int(row["nonfinite"]) for row in host)
    names = host[0].keys() - {"nonfinite"}
    means = {name: float(np.mean([row[name] for row in host])) for name in sorted(names)}
    return means | {"nonfinite": bad}, bad
