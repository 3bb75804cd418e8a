"""What of a config its networks need: to be used, not to be trained."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from advadapters import adapters, meshes, plugins
from advadapters.builders import methods
from advadapters.builders.data import Data, need_divisible, read_data
from advadapters.builders.model import check_patterns, read_exact, read_model
from advadapters.builders.views import need_trained, read_attacks, read_growing
from advadapters.configs import Section
from advadapters.data import identity
from advadapters.errors import UsageError
from advadapters.evaluation import suites
from advadapters.networks import ENSEMBLE, Network, ensemble
from advadapters.training import states
from advadapters.training.method import Method

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


class Networks(NamedTuple):
    """The networks of a config, what is evaluated of them, and how their images are made.

    A `Run` has these fields too, with the same meanings, so that whatever evaluates takes
    either.
    """

    seed: int
    domains: tuple[str, ...]
    patterns: tuple[str, ...]
    trained: tuple[str, ...]
    separate: bool  # batch statistics of each view and domain, not pooled
    network: Network
    networks: dict  # {width: Network}, the one above at 1, and ENSEMBLE of several modes
    film: Any  # how the network is conditioned on lambda, or None
    data: Data
    method: Method
    evaluation: Evaluation


def build_network(config, mesh, source=None):
    """The Networks of a config that a run was trained with, for a mesh.

    Opens no data (source: what is known of them, see `identity.absent`), makes no
    optimizer, and leaves keys that are about training alone unread. Raises UsageError for
    what no network can be made of.
    """
    # How many images are looked at once changes no result, so here it fits any devices.
    evaluated = config.get("evaluation")
    if isinstance(evaluated, dict) and isinstance(evaluated.get("batch_size"), int):
        size = -(-evaluated["batch_size"] // mesh.size) * mesh.size
        config = config | {"evaluation": evaluated | {"batch_size": size}}
    c = Section("config", config)
    plugins.load(c.take("plugins", tuple, of=str))
    model = c.section("model")
    classes = model.take("classes", int, low=2)
    data = read_data(c.section("data"), classes, mesh, source or identity.absent())
    # Radii grow in training alone, so how many steps an epoch has is not asked.
    epochs = c.take("epochs", float, above=0)
    return read_networks(c, model, classes, data, mesh, epochs, epoch=1.0)


def read_networks(c, model, classes, data, mesh, epochs, epoch):
    """The Networks of a config; model: its section, of which `classes` are taken already.

    epochs: of the training; epoch: steps in one.
    """
    evaluated = c.section("evaluation")
    with model:
        exact = read_exact(evaluated)
        widths = read_model(model, data, classes, exact, meshes.platform(mesh))
    network = widths.make()
    patterns, trained = read_patterns(c, network)
    separate = read_statistics(c, network)
    method = read_method(c, widths, network, separate, epochs, epoch)
    with evaluated:
        evaluation = read_evaluation(evaluated, method, mesh, exact, widths.shape)
    return Networks(
        seed=c.take("seed", int, low=0, high=2**32 - 1),
        domains=method.domains(),
        patterns=patterns,
        trained=trained,
        separate=separate,
        network=network,
        networks=make_networks(widths, network, method),
        film=widths.film,
        data=data,
        method=method,
        evaluation=evaluation,
    )


def read_patterns(c, network):
    """(config.adapters, config.trained), patterns of the network's parameters."""
    patterns = adapters.patterns(c.take("adapters", tuple, of=str))
    trained = c.take("trained", tuple, of=str)
    check_patterns(network, {"config.adapters": patterns, "config.trained": trained})
    if not patterns and not trained:
        raise UsageError(
            "config.trained=() and config.adapters=() freeze every parameter: name "
            "patterns of those to train, like '.*_lora/.*' and 'head/.*'"
        )
    return patterns, trained


def read_method(c, widths, network, separate, epochs, epoch):
    """config.loss and what belongs to it -> a training method.

    separate: whether batch statistics are. epochs: of the training; epoch: steps in one.
    """
    kind = c.choice("loss", methods.METHODS)
    domains = c.take("domains", tuple, of=str)
    grow = functools.partial(read_growing, epochs=epochs, epoch=epoch)
    attacks = read_attacks(c.sections("attacks"), widths.shape, grow)
    perturbation = c.take("weight_perturbation", float, low=0.0, high=1.0)
    views = c.section("views")
    parts = methods.Parts(
        attacks, domains, network, widths.film, separate, perturbation, epoch
    )
    section = views if kind == "views" else c.section(kind)
    method = methods.read(kind, section, parts, views=views.left)
    need_trained(attacks, method.attacks())
    return method


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


def has_statistics(network):
    """Whether a network has batch norm, whose statistics run."""
    return bool(jax.eval_shape(network.init, jax.random.key(0))["batch_stats"])


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


def initial_variables(run, plain=None, seed=None):
    """The variables before the first step, of a Run or Networks, see `states.branches`.

    plain: {"params", "batch_stats"} to start from; drawn from the seed if None. seed: the
    run's if None; an argument so that what is compiled for one serves all.
    """
    if plain is None:
        seed = run.seed if seed is None else seed
        plain = run.network.init(jax.random.fold_in(jax.random.key(seed), 0))
    return states.branches(
        plain,
        run.patterns,
        len(run.domains),
        run.separate,
        run.method.running_errors(),
        run.trained,
    )


def abstract_variables(run, mesh):
    """Shapes, types and places of the variables of a Run or Networks that are evaluated,
    whole on every device.
    """
    shapes = jax.eval_shape(functools.partial(initial_variables, run))
    place = meshes.replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes
    )
