"""A whole config -> a Run, and what a Run makes."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from advadapters import meshes, plugins
from advadapters.builders.data import Data, need_divisible, read_data
from advadapters.builders.model import check_patterns
from advadapters.builders.optimizer import read_drops, read_optimizer
from advadapters.builders.use import (
    Evaluation,
    Networks,
    Seed,
    has_statistics,
    initial_variables,
    read_networks,
)
from advadapters.data import pipeline, splits
from advadapters.errors import UsageError, pick
from advadapters.models.film import Film
from advadapters.networks import Network
from advadapters.sections import Section
from advadapters.training import states, step
from advadapters.training.loop import Every
from advadapters.training.method import Facts, Method
from advadapters.weights import resample


class Start(NamedTuple):
    """Where the first parameters come from: a mixture of another run's checkpoint, or a
    file of weights.

    fresh: patterns of parameters that are initialised all the same (another head);
    dropped: of those there that are left behind. changed: keys of config.model, `model`,
    that are others there on purpose; data: config.data. resample: how positions and patches
    of another size are resized.
    """

    workdir: str
    step: str
    mixture: dict
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    changed: tuple[str, ...]
    weights: str
    model: dict
    data: dict
    resample: str


class Run(NamedTuple):
    """Everything that a config says: the fields of `Networks`, and how they are trained."""

    seed: int
    domains: tuple[str, ...]
    patterns: tuple[str, ...]
    trained: tuple[str, ...]
    separate: bool
    network: Network
    networks: dict
    film: Film | None
    data: Data
    method: Method
    evaluation: Evaluation
    steps: int
    batch_size: int
    accumulate: int
    sharding: str  # in meshes.SHARDINGS, of the training state
    start: Start | None
    ema_decay: float
    keep: int
    max_nonfinite: int
    every: Every
    schedule: Callable
    tx: optax.GradientTransformation


def build(config: dict[str, Any], mesh: Mesh, source: splits.Source | None = None) -> Run:
    """The Run of a config.

    It opens the data, but allocates nothing on the devices and writes nothing.

    Args:
      config: a nested dict of plain values.
      mesh: the devices.
      source: taken instead of the data that the config names, which are not opened then.

    Raises:
      UsageError: something in the config cannot work.
    """
    with Section("config", config) as c:
        plugins.load(c.take("plugins", tuple, of=str))
        batch_size = c.take("batch_size", int, low=1)
        accumulate = c.take("accumulate", int, low=1)
        need_divisible("config.batch_size", batch_size, accumulate, mesh)
        model = c.section("model")
        classes = model.take("classes", int, low=2)
        with c.section("data") as section:
            data = read_data(section, classes, mesh, source)
        epochs = c.take("epochs", float, above=0)
        epoch = len(data.train) / batch_size
        steps = max(1, round(epochs * epoch))
        networks = read_networks(c, model, classes, data, mesh, epochs, epoch)
        with c.section("optimizer") as section:
            max_nonfinite = section.take("max_nonfinite", int, low=1)
            drops = read_drops(section, epochs, epoch)
            schedule, tx, patterns = read_optimizer(
                section, batch_size, epoch, steps, drops
            )
        run = Run(
            **networks._asdict(),
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            sharding=c.choice("sharding", meshes.SHARDINGS),
            start=_read_start(c.section("start"), config["model"], config["data"]),
            ema_decay=c.take("ema_decay", float, low=0.0, high=1.0),
            keep=c.take("keep_checkpoints", int, low=1),
            max_nonfinite=max_nonfinite,
            every=Every(
                log=c.take("log_every", int, low=1),
                validate=c.take("validate_every", int, low=0),
                checkpoint=c.take("checkpoint_every", int, low=1),
            ),
            schedule=schedule,
            tx=tx,
        )
    fresh = {"config.start.fresh": run.start.fresh if run.start else ()}
    check_patterns(run.network, patterns | fresh)
    rows = batch_size // (mesh.size * accumulate)
    _check_run(run, rows, scanned=config["model"].get("scan", False))
    return run


def _check_run(run: Run, rows: int, scanned: bool) -> None:
    """Raises UsageError for parts that do not go together; rows, scanned: see `Facts`."""
    run.method.need(
        Facts(
            rows=rows,
            statistics=has_statistics(run.network),
            separate=run.separate,
            scanned=scanned,
            patterns=run.patterns,
            start=run.start,
        )
    )
    if not len(run.data.test):
        raise UsageError(
            "config.data.judged_on='validation' needs held-out images: set "
            "config.data.validation to the fraction of the training images to hold out"
        )
    if run.every.validate and not len(run.data.validation):
        raise UsageError(
            "config.validate_every needs held-out images: set config.data.validation "
            "to the fraction of the training images to hold out, or validate_every=0"
        )
    watched = [check.name for check in run.method.checks() if check.alarm]
    if watched and not run.every.validate:
        raise UsageError(
            f"config.views.{watched[0]}.alarm looks at held-out images: set "
            "config.validate_every and config.data.validation, or alarm=''"
        )


def _read_start(c: Section, model: dict[str, Any], data: dict[str, Any]) -> Start | None:
    """Reads config.start; None where training starts afresh.

    model, data: the sections of these names.
    """
    with c:
        workdir, step = c.take("workdir", str), c.take("step", str)
        weights_file = c.take("weights", str)
        way = c.choice("resample", resample.WAYS)
        mixture = c.take("mixture", dict)
        weights = Section(c.name + ".mixture", mixture)
        mixture = {domain: weights.take(domain, float) for domain in mixture}
        named = {k: c.take(k, tuple, of=str) for k in ("fresh", "dropped", "changed")}
    for key in named["changed"]:
        pick(model, key, f"{c.name}.changed, a key of config.model,")
    if weights_file and (workdir or mixture):
        raise UsageError(
            f"config.start.weights={weights_file!r} takes the place of a run: leave "
            "config.start.workdir at '' and config.start.mixture at {}"
        )
    start = Start(
        workdir,
        step,
        mixture,
        weights=weights_file,
        model=model,
        data=data,
        resample=way,
        **named,
    )
    return start if workdir or weights_file else None


def initial_state(
    run: Run, plain: Mapping[str, Any] | None = None, seed: Seed | None = None
) -> states.State:
    """The state before the first step (call it under jit to place it).

    plain, seed: see `initial_variables`.
    """
    return states.create(initial_variables(run, plain, seed), run.tx)


def abstract_state(run: Run, mesh: Mesh) -> states.State:
    """Shapes, types and places of the training state."""
    shapes = jax.eval_shape(functools.partial(initial_state, run))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        meshes.places(mesh, shapes, run.sharding),
    )


def abstract_images(run: Run | Networks, count: int) -> jax.ShapeDtypeStruct:
    """Shape and type of this many images as the network sees them."""
    side = run.data.image_size
    return jax.ShapeDtypeStruct((count, side, side, run.data.channels), jnp.float32)


def abstract_batch(run: Run, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and places of a global batch of `train_batches`."""
    images, rows = abstract_images(run, run.batch_size), meshes.batched(mesh)
    number = jax.ShapeDtypeStruct((run.batch_size,), jnp.int32, sharding=rows)
    images = jax.ShapeDtypeStruct(images.shape, jnp.uint8, sharding=rows)
    return {"images": images, "labels": number, "index": number}


def train_step(run: Run, mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted training step of a run, whatever its seed; see `step.make_step`."""
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run, mesh))
    return step.make_step(
        run.method.loss(run.networks, "data"),
        run.data.augment,
        run.tx,
        ema_decay=run.ema_decay,
        accumulate=run.accumulate,
        mesh=mesh,
        places=places,
    )


def train_batches(run: Run, start: int) -> Iterator[pipeline.Batch]:
    """This process's rows of the batches from step `start` to the last one."""
    return pipeline.train_batches(
        run.data.train,
        size=run.data.image_size,
        crop=run.data.crop,
        interpolation=run.data.interpolation,
        batch_size=run.batch_size,
        seed=run.seed,
        start=start,
        stop=run.steps,
        process=(jax.process_index(), jax.process_count()),
        threads=run.data.threads,
        workers=run.data.workers,
    )


def eval_batches(
    run: Run | Networks, split: splits.Split, whole: bool = False
) -> Iterator[pipeline.Batch]:
    """Batches of one pass over a split: this process's rows, or all rows if `whole`."""
    return pipeline.eval_batches(
        split,
        size=run.data.image_size,
        crop_ratio=run.data.crop_ratio,
        interpolation=run.data.interpolation,
        batch_size=run.evaluation.batch_size,
        seed=run.seed,
        process=(0, 1) if whole else (jax.process_index(), jax.process_count()),
        threads=run.data.threads,
        workers=run.data.workers,
    )
