"""A run in a workdir: what the verbs share, put together from the parts."""

import contextlib
import functools
import io
import os
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from advadapters import builders, checkpoints, configs, defaults, hosts, meshes, trees
from advadapters.adapters import files
from advadapters.commands import changes, evaluating, profiling, starting, workdir
from advadapters.data import identity
from advadapters.defaults import TRAINING_ONLY
from advadapters.errors import UsageError
from advadapters.evaluation import tables
from advadapters.training import loop, states


class OpenRun(NamedTuple):
    """A run with its mesh and its folder."""

    run: builders.Run | builders.Networks
    mesh: Any
    folder: Any
    made: dict  # what was compiled or counted once, see `evaluating`
    config: dict


def open_run(config, path, said=()):
    """The run of a config, to be trained or evaluated in a workdir, new or not.

    Builds everything first, so that bad input leaves no trace, then the folder. said: the
    keys that were given on the command line, see `changes`.
    """
    mesh, config = meshes.make(), defaults.complete(config)
    run = builders.build(config, mesh)
    tell(run)
    data = None
    if workdir.holds_run(path):
        changes.settle(path, config, run, said)
    else:
        if run.start:
            starting.need_same_classes(run)
            starting.read(run)
        data = changes.first_record(config, run)
    return OpenRun(run, mesh, workdir.open_workdir(path, config, data), {}, config)


def open_trained(path, overrides=(), images=True):
    """The run in a workdir, whose config is that there but for --config.KEY=VALUE.

    images: whether any will be read; if not, the run is its `builders.Networks`, and the
    data need not be there. Changes nothing. Raises UsageError for an override that changes
    what was trained, or for classes that are not those it was trained on.
    """
    old, there = workdir.read_config(path), workdir.read_data(path)
    config = configs.override(old, overrides)
    changed = changes.find(path, old, config)
    mesh = meshes.make()
    if images:
        run = builders.build(config, mesh)
    else:
        run = builders.build_network(config, mesh, there and identity.absent(there))
    if changed:
        print(changes.told(changed, "changed for this call"))
    if images:
        tell(run)
        for line in changes.compare(path, there, run, changed, training=False):
            print(line)
    folder = epath.Path(os.path.abspath(os.path.expanduser(path)))
    return OpenRun(run, mesh, folder, {}, config)


def tell(run):
    """Says what was noticed when the data were opened."""
    for line in run.data.source.notes:
        print(line)


def write_run(config, path, make, data=None):
    """A new run that holds a finished state which nothing trained; returns it opened.

    make: abstract variables of the config -> variables. data: what the run remembers of
    images, which need not be there then. All that can fail comes before the folder is
    made. Raises UsageError if there is a run at the path already.
    """
    if workdir.holds_run(path):
        raise UsageError(f"{path} holds a run already: name a new folder")
    mesh, config = meshes.make(), defaults.complete(config)
    run = builders.build(config, mesh, data and identity.absent(data))
    variables = make(jax.eval_shape(functools.partial(builders.initial_variables, run)))
    state = jax.jit(functools.partial(states.create, tx=run.tx))(variables)
    data = data or changes.record_of(run, config["model"]["classes"])
    new = OpenRun(run, mesh, workdir.open_workdir(path, config, data), {}, config)
    state = state.replace(step=state.step + run.steps)
    with open_checkpoints(new) as saved:
        saved.save(run.steps, meshes.put(state, meshes.replicated(mesh)))
    return new


def open_checkpoints(opened):
    """The checkpoints of a run, to save to."""
    run, folder = opened.run, opened.folder / "checkpoints"
    return checkpoints.Checkpoints(folder, keep=run.keep, best=bool(run.every.validate))


def abstract_state(opened):
    """Shapes, types and places of the training state."""
    return builders.abstract_state(opened.run, opened.mesh)


def first_state(opened):
    """The state before the first step, from config.start if it names a run or a file."""
    run = opened.run
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(opened))
    first = starting.read(run) if run.start else starting.First(None, "")
    if first.told:
        print(first.told)
    make = functools.partial(builders.initial_state, run)
    jitted = jax.jit(make, out_shardings=places, compiler_options=starting.run_once())
    return jitted(first.plain, np.uint32(run.seed))


def averaged(opened, state):
    """The averaged variables, whole on every device, as evaluation takes them."""
    return meshes.put(states.averaged(state), meshes.replicated(opened.mesh))


def train(opened, clock=(), profile=None, late=lambda: False):
    """Trains (or resumes), evaluates, writes the results; returns the exit code.

    clock: see `say_when_started`. profile: steps to trace, None for none. late: whether to
    stop after a step, as if SIGTERM came; of one process only.
    """
    run, folder = opened.run, opened.folder
    abstract = abstract_state(opened)
    with open_checkpoints(opened) as saved:
        start = saved.latest() or 0
        if profile:
            profiling.need_steps(profile, run.steps - start, folder)
        finished = workdir.read_results(folder) if start == run.steps else None
        if finished:
            print(f"{folder}: finished already, {run.steps} steps; nothing to do")
            print(tables.markdown(finished))
            return 0
        print_head(opened, abstract, start)
        state = saved.restore(abstract, start) if start else first_state(opened)
        if start < run.steps:
            state = train_steps(opened, saved, state, start, clock, profile, late)
    variables = averaged(opened, state)
    del state  # whose moments leave their room to evaluation
    cases, suites = run.evaluation.cases, run.evaluation.suites
    evaluating.settle_statistics(opened, variables, cases)  # warns of soups of them
    found = evaluating.evaluate(opened, variables, run.data.test, cases, suites)
    compared = evaluating.signs(opened, variables, run.data.test, cases)
    rows = evaluating.rows(opened, variables, cases, found, run.steps, compared)
    # A few frozen numbers, like an encoding, are no backbone.
    backbone = trees.count(variables["frozen"]) > trees.count(states.trained(variables))
    told = write_adapters(opened, variables) if backbone else ""
    settings = evaluating.settings_of(opened, found)
    workdir.write_tables(folder / "results.npz", cases, found, settings=settings)
    workdir.write_results(folder, rows)
    print(tables.markdown(rows))
    print(f"written to {folder}: results.json, results.md, tradeoff.png{told}")
    return 0


def write_adapters(opened, variables):
    """Writes adapters.npz, what is trained of the variables; tells its size."""
    save = functools.partial(files.save, settings=adapter_settings(opened))
    raw = io.BytesIO()
    save(raw, jax.tree.map(meshes.gather, variables))
    workdir.write_whole(
        opened.folder / "adapters.npz", lambda file: file.write(raw.getvalue())
    )
    size, whole = raw.tell(), 4 * trees.count(variables)
    return f", adapters.npz ({size / 1e3:,.0f} kB; the network has {whole / 1e3:,.0f} kB)"


def adapter_settings(opened):
    """What a file of adapters must share with a run besides the backbone's values.

    The domains and the model, without what is of training alone.
    """
    model = opened.config["model"]
    kept = {f"model.{k}": v for k, v in model.items() if k not in TRAINING_ONLY}
    return {"domains": opened.run.domains} | kept


def train_steps(opened, saved, state, start, clock, profile, late):
    """The training loop with its log, validation and checkpoints."""
    run, mesh = opened.run, opened.mesh
    log = workdir.Log(opened.folder, start)
    first = time.monotonic()
    step_fn = builders.train_step(run, mesh)
    if profile:
        step_fn = profiling.Profiled(step_fn, profile, opened.folder / "profile")
    step_fn = say_when_started(step_fn, clock)

    def write(step, metrics):
        metrics = describe_speed(run, step, metrics)
        log.write(step, metrics)
        print(progress_line(run, step, metrics), flush=True)

    def validate(state, step):
        score, metrics = evaluating.validation(opened, averaged(opened, state))
        log.write(step, metrics)
        print(f"step {step} validation  " + numbers(metrics), flush=True)
        return score

    with contextlib.closing(log), hosts.sigterm() as leave:
        state = loop.run(
            state,
            lambda state, batch: step_fn(state, batch, np.uint32(run.seed)),
            builders.train_batches(run, start),
            start=start,
            stop=run.steps,
            mesh=mesh,
            every=run.every,
            log=write,
            validate=validate,
            save=saved.save,
            leave=lambda step: leave(step) or late(),
            limit=run.max_nonfinite,
        )
    print(f"trained {run.steps - start} steps in {time.monotonic() - first:.0f} s")
    return state


def say_when_started(step_fn, clock):
    """The step function; after its first call it prints what the time went to until then.

    clock: times at the beginning, after imports, and after reading config and data; ()
    for none.
    """
    left = list(clock)

    def step(*arguments):
        found = step_fn(*arguments)
        if left:
            jax.block_until_ready(found)
            begun, imported, opened = left
            now = time.monotonic()
            left.clear()
            print(
                f"first step after {now - begun:.1f} s: import {imported - begun:.1f}, "
                f"data {opened - imported:.1f}, state and compilation {now - opened:.1f}",
                flush=True,
            )
        return found

    return step


def describe_speed(run, step, metrics):
    """Adds the learning rate, images/s and the seconds left."""
    seconds = metrics.pop("seconds_per_step")
    return metrics | {
        "learning_rate": float(run.schedule(step - 1)),
        "images_per_second": run.batch_size / seconds,
        "seconds_left": (run.steps - step) * seconds,
    }


def progress_line(run, step, metrics):
    """step 50/660  loss/clean 0.51  loss/linf 1.32  512 images/s  ETA 1:40"""
    shown = {k: v for k, v in metrics.items() if k.startswith(("loss/", "accuracy/"))}
    minutes, seconds = divmod(round(metrics["seconds_left"]), 60)
    skipped = metrics["nonfinite"]
    return (
        f"step {step}/{run.steps}  {numbers(shown)}  "
        f"{metrics['images_per_second']:.0f} images/s  ETA {minutes}:{seconds:02d}"
        + (f"  {skipped:.0f} updates in a row not finite, skipped" if skipped else "")
    )


def numbers(metrics):
    """{"loss/clean": 0.51234} -> "loss/clean 0.512"."""
    return "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def print_head(opened, abstract, start):
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
        print("\n".join(identity.told(workdir.read_data(opened.folder))))
    print(
        f"{'resuming at' if start else 'starting at'} step {start} of {run.steps}, "
        f"batch {run.batch_size}, {len(run.data.train)} training images",
        flush=True,
    )


def parameter_table(variables, patterns, domains):
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


def restore_variables(opened, step, adapters=""):
    """(averaged variables, step) of a checkpoint: "latest", "best" or a number.

    adapters: a file whose adapters replace those of the checkpoint. Whole on every device;
    nothing that only training needs is read.
    """
    abstract = builders.abstract_variables(opened.run, opened.mesh)
    if adapters and not jax.tree.leaves(abstract["frozen"]):
        raise UsageError(
            f"--adapters={adapters}: nothing is frozen in {opened.folder}, so it has no "
            "backbone for them; name the workdir of a run whose config.trained leaves "
            "something out"
        )
    best = bool(opened.config.get("validate_every"))
    folder = opened.folder / "checkpoints"
    with checkpoints.Checkpoints(folder, best=best, read_only=True) as saved:
        found = saved.find(step, opened.folder)
        variables = states.joined(saved.restore_part(states.parts(abstract), found))
    if adapters:
        variables = files.load(adapters, variables, adapter_settings(opened))
        variables = meshes.put(variables, meshes.replicated(opened.mesh))
    return variables, found
