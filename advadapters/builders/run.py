"""A whole config -> a Run, and what a Run makes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from advadapters import adapters, plugins
from advadapters import mesh as meshes
from advadapters.builders import methods
from advadapters.builders.data import Data, need_divisible, read_data
from advadapters.builders.model import check_patterns, read_exact, read_model
from advadapters.builders.optimizer import read_drops, read_optimizer
from advadapters.builders.views import need_trained, read_attacks, read_growing
from advadapters.configs import Section
from advadapters.data import pipeline
from advadapters.errors import UsageError, pick
from advadapters.evaluation import suites
from advadapters.networks import ENSEMBLE, Network, ensemble
from advadapters.training import state, step
from advadapters.training.loop import Every
from advadapters.training.method import Facts, Method

STATISTICS = ("pooled", "separate")


class Evaluation(NamedTuple):
    """What the final table shows; cases: [networks.Case], suites: {name: Attack}.

    precision: of its products, see `in_precision`; exact: whether they are real float32.
    batch_size: images at once, at_once: networks, both at most, see `evaluation.fitting`.
    """

    batch_size: int
    precision: str
    exact: bool
    cases: list
    at_once: int
    suites: dict


class Start(NamedTuple):
    """Where the first parameters come from: a mixture of another run's checkpoint, or an
    .npz of torch's weights.

    fresh: patterns of parameters that are initialised all the same (another head);
    dropped: of those there that are left behind. changed: keys of config.model, `model`,
    that are others there on purpose.
    """

    workdir: str
    step: str
    mixture: dict
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    changed: tuple[str, ...]
    weights: str
    model: dict


class Run(NamedTuple):
    """Everything that a config says."""

    seed: int
    steps: int
    batch_size: int
    accumulate: int
    sharding: str  # in mesh.SHARDINGS, of the training state
    domains: tuple[str, ...]
    patterns: tuple[str, ...]
    trained: tuple[str, ...]
    separate: bool  # batch statistics of each view and domain, not pooled
    start: Start | None
    ema_decay: float
    keep: int
    max_nonfinite: int
    every: Every
    network: Network
    networks: dict  # {width: Network}, the one above at 1, and ENSEMBLE of several modes
    film: Any  # how the network is conditioned on lambda, or None
    data: Data
    method: Method
    schedule: Callable
    tx: Any
    evaluation: Evaluation


def build(config, mesh, source=None):
    """A Run from a config (a nested dict of plain values) for a mesh.

    Opens the data, unless a Source is given to be taken instead; allocates nothing on the
    devices, writes nothing. Raises UsageError for anything that cannot work.
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
        evaluated = c.section("evaluation")
        with model:
            exact = read_exact(evaluated)
            widths = read_model(model, data, classes, exact, meshes.platform(mesh))
        epochs = c.take("epochs", float, above=0)
        epoch = len(data.train) / batch_size
        steps = max(1, round(epochs * epoch))
        with c.section("optimizer") as section:
            max_nonfinite = section.take("max_nonfinite", int, low=1)
            drops = read_drops(section, epochs, epoch)
            schedule, tx, chosen = read_optimizer(section, batch_size, epoch, steps, drops)
        network = widths.make()
        parameters = read_parameters(c, network, chosen, config["model"])
        facts = Facts(
            rows=batch_size // (mesh.size * accumulate),
            statistics=has_statistics(network),
            scanned=config["model"].get("scan", False),
            **{key: parameters[key] for key in ("separate", "patterns", "start")},
        )
        method = read_method(c, widths, network, facts, epochs, epoch)
        domains = method.domains()
        with evaluated:
            evaluation = read_evaluation(evaluated, method, mesh, exact, widths.shape)
        run = Run(
            seed=c.take("seed", int, low=0, high=2**32 - 1),
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            sharding=c.choice("sharding", meshes.SHARDINGS),
            domains=domains,
            **parameters,
            ema_decay=c.take("ema_decay", float, low=0.0, high=1.0),
            keep=c.take("keep_checkpoints", int, low=1),
            max_nonfinite=max_nonfinite,
            every=Every(
                log=c.take("log_every", int, low=1),
                validate=c.take("validate_every", int, low=0),
                checkpoint=c.take("checkpoint_every", int, low=1),
            ),
            network=network,
            networks=make_networks(widths, network, method),
            film=widths.film,
            data=data,
            method=method,
            schedule=schedule,
            tx=tx,
            evaluation=evaluation,
        )
    check_run(run)
    return run


def read_parameters(c, network, chosen, model):
    """The keys about which parameters are what, as fields of Run.

    chosen: further {key: patterns} to check against the network. model: config.model.
    """
    patterns = adapters.patterns(c.take("adapters", tuple, of=str))
    trained = c.take("trained", tuple, of=str)
    start = read_start(c.section("start"), model)
    fresh = start.fresh if start else ()
    where = {
        "config.adapters": patterns,
        "config.trained": trained,
        "config.start.fresh": fresh,
    }
    check_patterns(network, chosen | where)
    if not patterns and not trained:
        raise UsageError(
            "config.trained=() and config.adapters=() freeze every parameter: name "
            "patterns of those to train, like '.*_lora/.*' and 'head/.*'"
        )
    separate = read_statistics(c, network)
    return dict(patterns=patterns, trained=trained, start=start, separate=separate)


def check_run(run):
    """Raises UsageError for parts that do not go together."""
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


def read_method(c, widths, network, facts, epochs, epoch):
    """config.loss and what belongs to it -> a training method that goes with the `Facts`.

    epochs: of the training; epoch: steps in one.
    """
    kind = c.choice("loss", methods.METHODS)
    domains = c.take("domains", tuple, of=str)
    grow = functools.partial(read_growing, epochs=epochs, epoch=epoch)
    attacks = read_attacks(c.sections("attacks"), widths.shape, grow)
    perturbation = c.take("weight_perturbation", float, low=0.0, high=1.0)
    views = c.section("views")
    parts = methods.Parts(
        attacks, domains, network, widths.film, facts.separate, perturbation, epoch
    )
    section = views if kind == "views" else c.section(kind)
    method = methods.read(kind, section, parts, views=views.left)
    need_trained(attacks, method.attacks())
    method.need(facts)
    return method


def has_statistics(network):
    """Whether a network has batch norm, whose statistics run."""
    return bool(jax.eval_shape(network.init, jax.random.key(0))["batch_stats"])


def make_networks(widths, network, method):
    """{width: Network} for all widths of the method, and the ensemble of its modes.

    network: the one of the full width.
    """
    made = {width: widths.make(width) for width in method.widths[:-1]} | {1.0: network}
    several = len(method.domains()) > 1 and len(made) == 1
    return made | ({ENSEMBLE: ensemble(made[1.0])} if several else {})


def read_statistics(c, network):
    """config.statistics -> whether they are separate."""
    separate = c.choice("statistics", STATISTICS) == "separate"
    if separate and not has_statistics(network):
        raise UsageError(
            "config.statistics='separate' is about batch norm, and this model has none: "
            "set config.statistics='pooled', or a model with norm='batch'"
        )
    return separate


def read_start(c, model):
    """config.start -> Start, or None to start afresh; model: config.model."""
    with c:
        workdir, step = c.take("workdir", str), c.take("step", str)
        weights_file = c.take("weights", str)
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
    start = Start(workdir, step, mixture, weights=weights_file, model=model, **named)
    return start if workdir or weights_file else None


def read_evaluation(c, method, mesh, exact, shape):
    """What is left of config.evaluation -> Evaluation.

    exact: what `read_exact` took of it. shape: [H, W, C] of an image.
    """
    batch_size = c.take("batch_size", int, low=1)
    need_divisible("config.evaluation.batch_size", batch_size, 1, mesh)
    weights = c.take("soup_weights", tuple, of=float)
    if not weights:
        raise UsageError(f"{c.name}.soup_weights is empty: give weights like (1.0, 0.0)")
    try:
        cases = method.cases(weights)
    except ValueError as error:  # beyond what floats can subtract from 1
        raise UsageError(f"{c.name}.soup_weights={weights}: {error}") from None
    at_once = c.take("soups_at_once", int, low=1)
    sections = c.sections("suites")
    try:
        suites.check_names(sections)
    except ValueError as error:
        raise UsageError(f"{c.name}.suites: {error}") from None
    return Evaluation(
        batch_size=batch_size,
        precision=exact["precision"],
        exact=exact["precision"] == "highest" and exact["exact"] == jnp.float32,
        cases=cases,
        at_once=at_once,
        suites=read_attacks(sections, shape),
    )


def initial_state(run, plain=None, seed=None):
    """The state before the first step (call it under jit to place it).

    plain: {"params", "batch_stats"} to start from; drawn from the seed if None. seed: the
    run's if None; an argument so that what is compiled for one serves all.
    """
    if plain is None:
        seed = run.seed if seed is None else seed
        plain = run.network.init(jax.random.fold_in(jax.random.key(seed), 0))
    variables = state.branches(
        plain,
        run.patterns,
        len(run.domains),
        run.separate,
        run.method.running_errors(),
        run.trained,
    )
    return state.create(variables, run.tx)


def abstract_state(run, mesh):
    """Shapes, types and places of the training state."""
    shapes = jax.eval_shape(functools.partial(initial_state, run))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        meshes.places(mesh, shapes, run.sharding),
    )


def abstract_variables(run, mesh):
    """The same of the variables that are evaluated, whole on every device."""
    shapes = jax.eval_shape(lambda: state.averaged(initial_state(run)))
    place = meshes.replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes
    )


def abstract_images(run, count):
    """Shape and type of images as the network sees them."""
    side = run.data.image_size
    return jax.ShapeDtypeStruct((count, side, side, run.data.channels), jnp.float32)


def abstract_batch(run, mesh):
    """Shapes, types and places of a global batch of `train_batches`."""
    images, rows = abstract_images(run, run.batch_size), meshes.batched(mesh)
    number = jax.ShapeDtypeStruct((run.batch_size,), jnp.int32, sharding=rows)
    images = jax.ShapeDtypeStruct(images.shape, jnp.uint8, sharding=rows)
    return {"images": images, "labels": number, "index": number}


def train_step(run, mesh):
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


def train_batches(run, start):
    """Batches from step `start` to the end, this process's rows."""
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


def eval_batches(run, split, whole=False):
    """Batches of one pass over a split, this process's rows; all rows if `whole`."""
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
