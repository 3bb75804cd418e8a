"""A run in its folder: begun, opened again, and written where nothing trained it."""

import functools
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from etils import epath

from advadapters import builders, checkpoints, configs, defaults, meshes
from advadapters.adapters import files
from advadapters.data import identity
from advadapters.defaults import TRAINING_ONLY
from advadapters.errors import UsageError
from advadapters.runs import changes, starting, workdir
from advadapters.runs.context import OpenRun
from advadapters.training import states


def open_run(
    config: dict[str, Any], path: str | os.PathLike, said: Collection[str] = ()
) -> OpenRun:
    """The run of a config, to be trained or evaluated in a workdir, new or not.

    Builds everything first, so that bad input leaves no trace, then the folder. said: the
    keys that were given on the command line, see `changes`.
    """
    mesh, config = meshes.make(), defaults.complete(config)
    run = builders.build(config, mesh)
    tell(run)
    data = None
    if workdir.holds_run(path):
        with workdir.alone(path):
            changes.settle(path, config, run, said)
    else:
        if run.start:
            starting.need_same_classes(run)
            starting.read(run)
        data = changes.first_record(config, run)
    return OpenRun(run, mesh, workdir.open_workdir(path, config, data), {}, config)


def open_trained(
    path: str | os.PathLike, overrides: Sequence[str] = (), images: bool = True
) -> OpenRun:
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
        print(changes.describe(changed, "changed for this call"))
    if images:
        tell(run)
        for line in changes.compare(path, there, run, changed, training=False):
            print(line)
    folder = epath.Path(os.path.abspath(os.path.expanduser(path)))
    return OpenRun(run, mesh, folder, {}, config)


def tell(run: Any) -> None:
    """Says what was noticed when the data were opened."""
    for line in run.data.source.notes:
        print(line)


def write_run(
    config: dict[str, Any],
    path: str | os.PathLike,
    make: Callable[[Any], Any],
    data: Any = None,
) -> OpenRun:
    """A new run that holds a finished state which nothing trained; returns it opened.

    make: abstract variables of the config -> variables. data: what the run remembers of
    images, which need not be there then. All that can fail comes before the folder is
    made. What a call that was killed has left there is completed. Raises UsageError if
    there is a run at the path already.
    """
    if workdir.holds_run(path) and not workdir.is_begun(path):
        raise UsageError(f"{path} holds a run already: name a new folder")
    mesh, config = meshes.make(), defaults.complete(config)
    run = builders.build(config, mesh, data and identity.absent(data))
    variables = make(jax.eval_shape(functools.partial(builders.initial_variables, run)))
    state = jax.jit(functools.partial(states.create, tx=run.tx))(variables)
    data = data or changes.record_of(run, config["model"]["classes"])
    new = OpenRun(run, mesh, workdir.open_workdir(path, config, data), {}, config)
    state = state.replace(step=state.step + run.steps)
    with open_checkpoints(new) as saved:
        try:
            if saved.latest() != run.steps:
                saved.save(run.steps, meshes.put(state, meshes.replicated(mesh)))
        except checkpoints.NotFinite as error:
            raise UsageError(f"{path} would hold no usable network: {error}") from None
    return new


def open_checkpoints(opened: OpenRun) -> checkpoints.Checkpoints:
    """The checkpoints of a run, to save to."""
    run, folder = opened.run, opened.folder / "checkpoints"
    return checkpoints.Checkpoints(folder, keep=run.keep, best=bool(run.every.validate))


def abstract_state(opened: OpenRun) -> Any:
    """Shapes, types and places of the training state."""
    return builders.abstract_state(opened.run, opened.mesh)


def averaged(opened: OpenRun, state: Any) -> Any:
    """The averaged variables, whole on every device, as evaluation takes them."""
    return meshes.put(states.averaged(state), meshes.replicated(opened.mesh))


def adapter_settings(opened: OpenRun) -> dict[str, Any]:
    """What a file of adapters must share with a run besides the backbone's values.

    The domains and the model, without what is of training alone.
    """
    model = opened.config["model"]
    kept = {f"model.{k}": v for k, v in model.items() if k not in TRAINING_ONLY}
    return {"domains": opened.run.domains} | kept


def restore_variables(opened: OpenRun, step: str, adapters: str = "") -> tuple[Any, int]:
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
        parts, number = saved.read(
            step,
            lambda number: saved.restore_part(states.parts(abstract), number),
            opened.folder,
        )
    variables = states.joined(parts)
    if adapters:
        variables = files.load(adapters, variables, adapter_settings(opened))
        variables = meshes.put(variables, meshes.replicated(opened.mesh))
    return variables, number
