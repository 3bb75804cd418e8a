"""config.loss, and the section of that name, -> a training method."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from advadapters.builders.views import read_tricks, read_views
from advadapters.configs import Section
from advadapters.errors import UsageError, pick
from advadapters.networks import Network
from advadapters.training.method import Method
from advadapters.training.oat import OAT, need_known
from advadapters.training.twins import TWINS
from advadapters.training.views import Views


class Parts(NamedTuple):
    """What of a config a method may be made of, beside its own section.

    attacks: {name: attack} of config.attacks. domains: as config.domains names them, () for
    a method that names its own. network: of the full width. film: how it is conditioned on
    lambda, or None. separate: whether batch statistics are kept for each view and domain.
    perturbation: size of those of weights. epoch: steps in one.
    """

    attacks: Mapping[str, Callable]
    domains: tuple[str, ...]
    network: Network
    film: Any
    separate: bool
    perturbation: float
    epoch: float

    def attack(self, c):
        """The attack that the key `attack` of a section names."""
        return pick(self.attacks, c.take("attack", str), f"{c.name}.attack")


def read_listed(c, parts):
    """config.views -> Views."""
    if parts.film:
        raise UsageError("config.model.film conditions on lambda: set config.loss='oat'")
    read = functools.partial(read_tricks, network=parts.network, epoch=parts.epoch)
    views = read_views(c.parts(), parts.domains, parts.attacks, read)
    return Views(parts.domains, views, not parts.separate, parts.perturbation)


def read_oat(c, parts):
    """config.oat -> OAT."""
    lambdas, film = read_lambdas(c, "lambdas"), parts.film
    zeros = c.take("zeros", float, low=0.0, below=1.0)
    if 0.0 not in lambdas and zeros:
        raise UsageError(
            f"{c.name}.zeros={zeros} is the share of lambda 0, which is not in "
            f"{c.name}.lambdas={lambdas}: add 0.0, or set zeros=0.0"
        )
    mixed = c.take("mixed", bool)
    if mixed == bool(film):
        raise UsageError(
            f"{c.name}.mixed={mixed}: lambda mixes adapters or goes through FiLM, one of "
            "them: " + ("set config.model.film={}" if mixed else "set config.model.film")
        )
    need_known(lambdas, film, f"{c.name}.lambdas")
    widths = c.take("widths", tuple, of=float)
    if sorted(set(widths)) != list(widths) or widths[-1:] != (1.0,) or widths[0] <= 0:
        raise UsageError(
            f"{c.name}.widths must be factors above 0, growing to 1.0, got {widths}"
        )
    if mixed and len(widths) > 1:
        raise UsageError(f"{c.name}.mixed goes with one width, got widths={widths}")
    return OAT(
        lambdas=lambdas,
        zeros=zeros or (1 / len(lambdas) if 0.0 in lambdas else 0.0),
        attack=parts.attack(c),
        dual=c.take("dual", bool) and not mixed,
        widths=widths,
        mixed=mixed,
        film=film,
    )


def read_lambdas(c, key):
    """Different numbers in [0, 1], in order, at least one above 0."""
    lambdas = c.take(key, tuple, of=float)
    wrong = [lam for lam in lambdas if not 0 <= lam <= 1]
    if wrong or list(lambdas) != sorted(set(lambdas)) or not any(lambdas):
        raise UsageError(
            f"{c.name}.{key} must be growing numbers from 0 to 1, not only 0, got {lambdas}"
        )
    return lambdas


def read_twins(c, parts):
    """config.twins -> TWINS."""
    if parts.film:
        raise UsageError("config.model.film conditions on lambda, which TWINS has not")
    return TWINS(
        weight=c.take("weight", float, low=0.0),
        attack=parts.attack(c),
        beta=c.take("beta", float, low=0.0),
        keep_norms=c.take("keep_norms", bool),
        gradient_norms=c.take("gradient_norms", bool),
    )


# {config.loss: reader}: (the section of that name, Parts) -> Method.
METHODS: dict[str, Callable[[Section, Parts], Method]] = {
    "views": read_listed,
    "oat": read_oat,
    "twins": read_twins,
}


def read(kind, c, parts, *, views):
    """The method of a row in METHODS from its section; views: the names in config.views."""
    if kind != "views":
        need_none(kind, parts.domains, views)
    with c:
        method = METHODS[kind](c, parts)
    if parts.perturbation and kind != "views":
        name = type(method).__name__
        raise UsageError(f"config.weight_perturbation is for views; {name} has none")
    return method


def need_none(kind, domains, views):
    """Raises UsageError for domains and views, which only a list of views has."""
    if domains:
        raise UsageError(f"config.loss={kind!r} names its domains itself: set domains=()")
    if views:
        raise UsageError(
            f"config.loss={kind!r} has no views, got config.views={sorted(views)}: set "
            "config.views={}, or config.loss='views'"
        )
