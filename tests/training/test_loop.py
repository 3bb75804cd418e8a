"""The training loop: what is ahead of what, and what it says of waiting."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advadapters import hosts, meshes
from advadapters.training import loop

STEPS = 6


@jax.jit
def count(state, batch):
    """A step that adds its batch up."""
    total = jnp.sum(batch["images"], dtype=jnp.float32)
    return state + total, {"loss": total, "nonfinite": jnp.zeros((), jnp.int32)}


@jax.jit
def work(state, batch):
    """The same after tens of milliseconds."""
    square = jnp.full((64, 64), 1 / 64)
    done = jax.lax.fori_loop(0, 2000, lambda _, x: x @ square, square)
    found, metrics = count(state, batch)
    return found, metrics | {"done": done[0, 0]}


def batches(seconds=0.0, taken=None):
    """An endless iterator of batches; taken: a list of those that were asked for."""
    number = 0
    while True:
        number += 1
        if taken is not None:
            taken.append(number)
        time.sleep(seconds)
        yield {"images": np.full((8, 2), number, np.uint8)}


EVERY = loop.Every(log=3, validate=0, checkpoint=2)


def train(step_fn, source, mesh, every=EVERY, **changes):
    """(state, {step: metrics logged}, [(step saved, state)]) of STEPS steps.

    changes: other hooks than those that record this.
    """
    logged, saved = {}, []
    hooks = loop.Hooks(
        log=lambda step, metrics: logged.update({step: metrics}),
        leave=lambda step: 0,
        validate=lambda state, step: None,
        save=lambda step, state, score: saved.append((step, float(state))),
    )._replace(**changes)
    plan = loop.Plan(0, STEPS, every, limit=10)
    state = loop.run(jnp.zeros(()), step_fn, source, mesh=mesh, plan=plan, hooks=hooks)
    return state, logged, saved


def test_every_batch_once_in_order_and_none_too_many(mesh):
    taken = []
    state, logged, saved = train(count, batches(taken=taken), mesh)
    assert float(state) == 16 * sum(range(1, STEPS + 1))
    assert taken == list(range(1, STEPS + 1))
    assert [logged[step]["loss"] for step in (3, 6)] == [16 * 2, 16 * 5]
    assert saved == [(2, 16 * 3), (4, 16 * 10), (6, 16 * 21)]
    assert all(0 <= row["waiting"] <= 1 for row in logged.values())


def test_the_next_batch_is_taken_while_a_step_runs(mesh):
    """Each step ends only when the batch after its own has been asked for."""
    asked = [threading.Event() for _ in range(STEPS + 1)]

    def source():
        for event, batch in zip(asked, batches(), strict=False):
            event.set()
            yield batch

    def step_fn(state, batch):
        number = int(batch["images"][0, 0])
        assert number == STEPS or asked[number].wait(20)
        return count(state, batch)

    train(step_fn, source(), mesh)
    assert not asked[STEPS].is_set()


def test_no_more_than_two_steps_are_under_way(one_device):
    given = []

    def step_fn(state, batch):
        assert all(metrics["loss"].is_ready() for metrics in given[:-1])
        state, metrics = work(state, batch)
        given.append(metrics)
        return state, metrics

    every = loop.Every(log=STEPS, validate=0, checkpoint=0)
    train(step_fn, batches(), one_device, every=every)
    assert len(given) == STEPS


def test_waiting_is_for_input_alone(one_device):
    count(jnp.zeros(()), meshes.global_batch(one_device, next(batches())))  # compiled
    slow, fast = {}, {}
    for found, step_fn, source in (
        (slow, count, batches(0.05)), (fast, work, batches()),
    ):  # fmt: skip
        every = loop.Every(log=STEPS, validate=0, checkpoint=2)
        # Time spent saving is nobody's, although batches come during it.
        save = lambda *_: time.sleep(0.1)  # noqa: E731
        found |= train(step_fn, source, one_device, every=every, save=save)[1][STEPS]
    assert slow["waiting"] > 0.6 and fast["waiting"] < 0.3
    assert slow["seconds_per_step"] < 0.1


def test_what_came_before_a_broken_batch_is_saved(one_device):
    def source():
        for number, batch in enumerate(batches(), 1):
            if number == 4:
                raise OSError("batch 4")
            yield batch

    saved = []
    keep = lambda step, state, score: saved.append(step)  # noqa: E731
    every = loop.Every(log=1, validate=0, checkpoint=1)
    with pytest.raises(OSError, match="batch 4"):
        train(count, source(), one_device, every=every, save=keep)
    assert saved == [1, 2, 3]


def test_sigterm_ends_after_a_step_that_is_saved(one_device):
    saved = []
    keep = lambda step, state, score: saved.append((step, float(state)))  # noqa: E731
    with pytest.raises(hosts.Preempted, match="saved after step 3"):
        train(count, batches(), one_device, leave=lambda step: 15 * (step == 3), save=keep)
    assert saved[-1] == (3, 16 * 6)


def test_bad_updates_are_counted_at_every_step(one_device):
    """Not only when something is logged; one further step is on its way by then."""
    taken = []

    def bad(state, batch):
        return state, {"loss": jnp.float32(0), "nonfinite": jnp.int32(len(taken))}

    every = loop.Every(log=1000, validate=0, checkpoint=0)
    hooks = loop.Hooks(
        log=lambda step, metrics: None,
        leave=lambda step: 0,
        validate=lambda state, step: None,
        save=lambda step, state, score: None,
    )
    plan = loop.Plan(0, 100, every, limit=3)
    with pytest.raises(loop.Diverged, match="updates in a row were not finite"):
        loop.run(0.0, bad, batches(taken=taken), mesh=one_device, plan=plan, hooks=hooks)
    assert len(taken) <= 3 + 4
