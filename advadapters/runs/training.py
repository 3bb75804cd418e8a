"""Training of a run in its folder, and the evaluation at its end."""

import contextlib
import functools
import io
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from advadapters import builders, hosts, meshes, trees
from advadapters.adapters import files
from advadapters.checkpoints import Checkpoints, NotFinite
from advadapters.data import identity
from advadapters.evaluation import tables
from advadapters.runs import (
    evaluating,
    opening,
    predictions,
    profiling,
    starting,
    workdir,
)
from advadapters.runs.context import OpenRun
from advadapters.training import loop, states


def train(
    opened: OpenRun,
    clock: Sequence[float] = (),
    profile: int | None = None,
    late: Callable[[], bool] = lambda: False,
) -> int:
    """Trains (or resumes), evaluates, writes the results; returns the exit code.

    clock: see `say_when_started`. profile: steps to trace, None for none. late: whether to
    stop after a step, as if SIGTERM came; of one process only.
    """
    with workdir.alone(opened.folder):
        return _train(opened, clock, profile, late)


def _train(
    opened: OpenRun, clock: Sequence[float], profile: int | None, late: Callable[[], bool]
) -> int:
    """What `train` does in a folder that is locked."""
    run, folder = opened.run, opened.folder
    abstract = opening.abstract_state(opened)
    with opening.open_checkpoints(opened) as saved:
        start = saved.latest() or 0
        if profile:
            profiling.need_steps(profile, run.steps - start, folder)
        finished = workdir.read_results(folder) if start == run.steps else None
        if finished:
            print(f"{folder}: finished already, {run.steps} steps; nothing to do")
            print(tables.results_table(finished))
            return 0
        if start:
            state, start = saved.newest(lambda step: saved.restore(abstract, step), folder)
            print_head(opened, abstract, start)
        else:
            print_head(opened, abstract, start)
            state = first_state(opened)
        if start < run.steps:
            state = train_steps(opened, saved, state, start, clock, profile, late)
    variables = opening.averaged(opened, state)
    del state  # whose moments leave their room to evaluation
    cases, suites = run.evaluation.cases, run.evaluation.suites
    evaluating.settle_statistics(opened, variables, cases)  # warns of soups of them
    results = evaluating.evaluate(opened, variables, run.data.test, cases, suites)
    compared = evaluating.signs(opened, variables, run.data.test, cases)
    rows = evaluating.rows(opened, variables, cases, results, run.steps, compared)
    # A few frozen numbers, like an encoding, are no backbone.
    backbone = trees.count(variables["frozen"]) > trees.count(states.trained(variables))
    adapters = write_adapters(opened, variables) if backbone else ""
    settings = evaluating.settings_of(opened, results)
    predictions.write(folder / "results.npz", cases, results, settings)
    workdir.write_results(folder, rows)
    print(tables.results_table(rows))
    print(f"written to {folder}: results.json, results.md, tradeoff.png{adapters}")
    return 0


def first_state(opened: OpenRun) -> Any:
    """The state before the first step, from config.start if it names a run or a file."""
    run = opened.run
    places = jax.tree.map(lambda leaf: leaf.sharding, opening.abstract_state(opened))
    first = starting.read(run) if run.start else starting.First(None, "")
    if first.report:
        print(first.report)
    make = functools.partial(builders.initial_state, run)
    jitted = jax.jit(make, out_shardings=places, compiler_options=starting.run_once())
    return jitted(first.plain, np.uint32(run.seed))


def write_adapters(opened: OpenRun, variables: Any) -> str:
    """Writes adapters.npz, what is trained of the variables; tells its size."""
    save = functools.partial(files.save, settings=opening.adapter_settings(opened))
    raw = io.BytesIO()
    save(raw, jax.tree.map(meshes.gather, variables))
    workdir.write_whole(
        opened.folder / "adapters.npz", lambda file: file.write(raw.getvalue())
    )
    size, whole = raw.tell(), 4 * trees.count(variables)
    return f", adapters.npz ({size / 1e3:,.0f} kB; the network has {whole / 1e3:,.0f} kB)"


def train_steps(
    opened: OpenRun,
    saved: Checkpoints,
    state: Any,
    start: int,
    clock: Sequence[float],
    profile: int | None,
    late: Callable[[], bool],
) -> Any:
    """The training loop with its log, validation and checkpoints."""
    run, mesh = opened.run, opened.mesh
    log = workdir.Log(opened.folder, start)
    first = time.monotonic()
    step_fn = builders.train_step(run, mesh)
    if profile:
        step_fn = profiling.Profiled(step_fn, profile, opened.folder / "profile")
    step_fn = say_when_started(step_fn, clock)

    def write(step: int, metrics: dict[str, Any]) -> None:
        metrics = describe_speed(run, step, metrics)
        log.write(step, metrics)
        print(progress_line(run, step, metrics), flush=True)

    def validate(state: Any, step: int) -> float:
        score, metrics = evaluating.validation(opened, opening.averaged(opened, state))
        log.write(step, metrics)
        print(f"step {step} validation  " + numbers(metrics), flush=True)
        return score

    def save(step: int, state: Any, score: float | None) -> None:
        try:
            saved.save(step, state, score)
        except NotFinite as error:
            raise loop.Diverged(str(error)) from None

    with contextlib.closing(log), hosts.signals() as leave:
        state = loop.run(
            state,
            lambda state, batch: step_fn(state, batch, np.uint32(run.seed)),
            builders.train_batches(run, start),
            mesh=mesh,
            plan=loop.Plan(start, run.steps, run.every, run.max_nonfinite),
            hooks=loop.Hooks(
                log=write,
                leave=lambda step: leave(step) or (signal.SIGTERM if late() else 0),
                validate=validate,
                save=save,
            ),
        )
    print(
        f"trained {run.steps - start} steps in {time.monotonic() - first:.0f} s, of which "
        f"{saved.seconds:.1f} s went to checking what was saved"
    )
    return state


def say_when_started(
    step_fn: Callable[..., Any], clock: Sequence[float]
) -> Callable[..., Any]:
    """The step function; after its first call it prints what the time went to until then.

    clock: times at the beginning, after imports, and after reading config and data; ()
    for none.
    """
    left = list(clock)

    def step(*arguments: Any) -> Any:
        results = step_fn(*arguments)
        if left:
            jax.block_until_ready(results)
            begun, imported, opened = left
            now = time.monotonic()
            left.clear()
            print(
                f"first step after {now - begun:.1f} s: import {imported - begun:.1f}, "
                f"data {opened - imported:.1f}, state and compilation {now - opened:.1f}",
                flush=True,
            )
        return results

    return step


def describe_speed(run: Any, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
    """Adds the learning rate, images/s and the seconds left."""
    seconds = metrics.pop("seconds_per_step")
    return metrics | {
        "learning_rate": float(run.schedule(step - 1)),
        "images_per_second": run.batch_size / seconds,
        "seconds_left": (run.steps - step) * seconds,
    }


def progress_line(run: Any, step: int, metrics: Mapping[str, Any]) -> str:
    """step 50/660  loss/clean 0.51  loss/linf 1.32  512 images/s  ETA 1:40"""
    shown = {k: v for k, v in metrics.items() if k.startswith(("loss/", "accuracy/"))}
    minutes, seconds = divmod(round(metrics["seconds_left"]), 60)
    skipped = metrics["nonfinite"]
    return (
        f"step {step}/{run.steps}  {numbers(shown)}  "
        f"{metrics['images_per_second']:.0f} images/s  ETA {minutes}:{seconds:02d}"
        + (f"  {skipped:.0f} updates in a row not finite, skipped" if skipped else "")
    )


def numbers(metrics: Mapping[str, Any]) -> str:
    """{"loss/clean": 0.51234} -> "loss/clean 0.512"."""
    return "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def print_head(opened: OpenRun, abstract: Any, start: int) -> None:
    """What is trained: devices, parameters per branch, what each view attacks."""
    from clu import parameter_overview

    run = opened.run
    variables = abstract.variables
    table = parameter_overview.get_parameter_overview(variables, include_stats=False)
    workdir.write_text(opened.folder / "parameters.txt", table + "\n")
    devices = jax.devices()
    print(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    print(parameter_table(variables, run.patterns, run.domains))
    stats = variables["stats"]
    if jax.tree.leaves([stats["shared"], stats["adapters"]]):
        kind = "of each view and domain" if run.separate else "pooled over the views"
        print(f"batch statistics: {kind}")
    print("\n".join(run.method.describe()))
    if not start:
        print("\n".join(identity.lines_about(workdir.read_data(opened.folder))))
    print(
        f"{'resuming at' if start else 'starting at'} step {start} of {run.steps}, "
        f"batch {run.batch_size}, {len(run.data.train)} training images",
        flush=True,
    )


def parameter_table(variables: Any, patterns: Sequence[str], domains: Sequence[str]) -> str:
    """Counts per branch: shared, each adapter pattern per domain, all in all."""
    count = len(domains)
    shared = trees.count(variables["shared"])
    adapters = trees.count(variables["adapters"])
    frozen = trees.count(variables["frozen"])
    lines = [f"parameters: {shared:>12,} shared"]
    if frozen:
        share = 100 * (shared + adapters) / (shared + adapters + frozen)
        lines.append(f"            {frozen:>12,} frozen; {share:.2f}% are trained")
    flat = trees.flatten(variables["adapters"])
    for pattern in patterns:
        leaves = [flat[path] for path in trees.select(flat, [pattern])]
        size = sum(trees.count(leaf) for leaf in leaves) // count
        lines.append(f"            {size:>12,} per domain: {pattern}")
    lines.append(
        f"            {adapters:>12,} in the adapters of {count} domains "
        f"({', '.join(domains)})"
    )
    deployed = shared + frozen + adapters // max(count, 1)
    lines.append(f"            {deployed:>12,} in one deployed network")
    return "\n".join(lines)
