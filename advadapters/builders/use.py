"""What of a config its networks need: to be used, not to be trained."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from advadapters import adapters, meshes, plugins
from advadapters.builders import methods
from advadapters.builders.data import Data, need_divisible, read_data
from advadapters.builders.model import Widths, check_patterns, read_exact, read_model
from advadapters.builders.views import need_trained, read_attacks, read_fixed, read_growing
from advadapters.data import identity, splits
from advadapters.errors import UsageError
from advadapters.evaluation import suites
from advadapters.models.film import Film
from advadapters.networks import ENSEMBLE, Network, ensemble
from advadapters.sections import Section
from advadapters.shapes import Array, Integer
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
    film: Film | None  # how the network is conditioned on lambda
    data: Data
    method: Method
    evaluation: Evaluation


def build_network(
    config: dict[str, Any], mesh: Mesh, source: splits.Source | None = None
) -> Networks:
    """The Networks of a config that a run was trained with.

    It opens no data, makes no optimizer, and does not read the keys that are about training
    alone.

    Args:
      config: a nested dict of plain values.
      mesh: the devices.
      source: what is known of the data, see `identity.absent`.

    Raises:
      UsageError: no network can be made of the config.
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


def read_networks(
    c: Section,
    model: Section,
    classes: int,
    data: Data,
    mesh: Mesh,
    epochs: float,
    epoch: float,
) -> Networks:
    """Reads the Networks of a config.

    Args:
      c: the config, from which the sections below were taken.
      model: config.model, without the key `classes`.
      classes: what that key holds.
      data: of the section config.data.
      mesh: the devices.
      epochs: of the training.
      epoch: the steps of one epoch.
    """
    evaluated = c.section("evaluation")
    with model:
        exact = read_exact(evaluated)
        widths = read_model(model, data, classes, exact, meshes.platform(mesh))
    network = widths.make()
    patterns, trained = _read_patterns(c, network)
    separate = _read_statistics(c, network)
    method = _read_method(c, widths, network, separate, epochs, epoch)
    with evaluated:
        evaluation = _read_evaluation(evaluated, method, mesh, exact, widths.shape)
    return Networks(
        seed=c.take("seed", int, low=0, high=2**32 - 1),
        domains=method.domains(),
        patterns=patterns,
        trained=trained,
        separate=separate,
        network=network,
        networks=_make_networks(widths, network, method),
        film=widths.film,
        data=data,
        method=method,
        evaluation=evaluation,
    )


def _read_patterns(c: Section, network: Network) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reads config.adapters and config.trained, patterns of the network's parameters."""
    patterns = adapters.patterns(c.take("adapters", tuple, of=str))
    trained = c.take("trained", tuple, of=str)
    check_patterns(network, {"config.adapters": patterns, "config.trained": trained})
    if not patterns and not trained:
        raise UsageError(
            "config.trained=() and config.adapters=() freeze every parameter: name "
            "patterns of those to train, like '.*_lora/.*' and 'head/.*'"
        )
    return patterns, trained


def _read_method(
    c: Section,
    widths: Widths,
    network: Network,
    separate: bool,
    epochs: float,
    epoch: float,
) -> Method:
    """Reads config.loss and the sections that belong to it.

    separate: whether batch statistics are kept for each view and domain. epochs: of the
    training. epoch: the steps of one epoch.
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


def _make_networks(
    widths: Widths, network: Network, method: Method
) -> dict[float | str, Network]:
    """{width: Network} for all widths of the method, and the ensemble of its modes.

    network: the one of the full width.
    """
    networks: dict[float | str, Network] = {
        width: widths.make(width) for width in method.widths[:-1]
    }
    networks[1.0] = network
    if len(method.domains()) > 1 and len(networks) == 1:
        networks[ENSEMBLE] = ensemble(network)
    return networks


def _read_statistics(c: Section, network: Network) -> bool:
    """Reads config.statistics: whether they are kept for each view and domain."""
    separate = c.choice("statistics", STATISTICS) == "separate"
    if separate and not has_statistics(network):
        raise UsageError(
            "config.statistics='separate' is about batch norm, and this model has none: "
            "set config.statistics='pooled', or a model with norm='batch'"
        )
    return separate


def has_statistics(network: Network) -> bool:
    """Whether a network has batch norm, which keeps running statistics."""
    return bool(jax.eval_shape(network.init, jax.random.key(0))["batch_stats"])


def _read_evaluation(
    c: Section, method: Method, mesh: Mesh, exact: dict[str, Any], shape: tuple[int, ...]
) -> Evaluation:
    """Reads what `read_exact` left of config.evaluation.

    exact: what it took. shape: [H, W, C] of an image.
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
        suites=read_fixed(sections, shape),
    )


Seed = int | np.integer | Integer[Array, ""]


def initial_variables(
    run: Any, plain: Mapping[str, Any] | None = None, seed: Seed | None = None
) -> dict[str, Any]:
    """The variables before the first step, see `states.branches`.

    Args:
      run: a Run or Networks.
      plain: {"params", "batch_stats"} to start from; drawn from the seed if None.
      seed: the run's if None. It is an argument so that a program that is compiled for one
        seed serves all.
    """
    if plain is None:
        number = run.seed if seed is None else seed
        start: Mapping[str, Any] = run.network.init(
            jax.random.fold_in(jax.random.key(number), 0)
        )
    else:
        start = plain
    return states.branches(
        start,
        run.patterns,
        len(run.domains),
        run.separate,
        run.method.running_errors(),
        run.trained,
    )


def abstract_variables(run: Any, mesh: Mesh) -> dict[str, Any]:
    """Shapes, types and places of the variables that are evaluated.

    Every device has a copy of them. run: a Run or Networks.
    """
    shapes = jax.eval_shape(functools.partial(initial_variables, run))
    place = meshes.replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes
    )
