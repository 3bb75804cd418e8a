"""config.loss, and the section of that name, -> a training method."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from advadapters.builders.views import Attack, read_tricks, read_views
from advadapters.errors import UsageError, pick
from advadapters.models.film import Film
from advadapters.networks import Network
from advadapters.sections import Section
from advadapters.training.method import Method
from advadapters.training.oat import OAT, need_known
from advadapters.training.twins import TWINS
from advadapters.training.views import Views


class Parts(NamedTuple):
    """What a method may be made of beside the section of its own name.

    attacks: {name: attack} of config.attacks. domains: the names in config.domains, () for
    a method that names its domains itself. network: the one of the full width. film: how it
    is conditioned on lambda, None where it is not. separate: whether batch statistics are
    kept for each view and domain. perturbation: the size of perturbations of the weights, 0
    for none. epoch: the steps of one epoch.
    """

    attacks: Mapping[str, Attack]
    domains: tuple[str, ...]
    network: Network
    film: Film | None
    separate: bool
    perturbation: float
    epoch: float

    def attack(self, c: Section) -> Attack:
        """The attack that the key `attack` of a section names."""
        return pick(self.attacks, c.take("attack", str), f"{c.name}.attack")


def _read_listed(c: Section, parts: Parts) -> Views:
    """Reads config.views, a method that is a list of views."""
    if parts.film:
        raise UsageError("config.model.film conditions on lambda: set config.loss='oat'")
    read = functools.partial(read_tricks, network=parts.network, epoch=parts.epoch)
    views = read_views(c.parts(), parts.domains, parts.attacks, read)
    return Views(parts.domains, views, not parts.separate, parts.perturbation)


def _read_oat(c: Section, parts: Parts) -> OAT:
    """Reads config.oat, once-for-all adversarial training."""
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


def read_lambdas(c: Section, key: str) -> tuple[float, ...]:
    """Reads numbers in [0, 1] that grow and of which at least one is above 0."""
    lambdas = c.take(key, tuple, of=float)
    wrong = [lam for lam in lambdas if not 0 <= lam <= 1]
    if wrong or list(lambdas) != sorted(set(lambdas)) or not any(lambdas):
        raise UsageError(
            f"{c.name}.{key} must be growing numbers from 0 to 1, not only 0, got {lambdas}"
        )
    return lambdas


def _read_twins(c: Section, parts: Parts) -> TWINS:
    """Reads config.twins, training with a frozen and an adaptive wing."""
    if parts.film:
        raise UsageError("config.model.film conditions on lambda, which TWINS has not")
    return TWINS(
        weight=c.take("weight", float, low=0.0),
        attack=parts.attack(c),
        beta=c.take("beta", float, low=0.0),
        keep_norms=c.take("keep_norms", bool),
        gradient_norms=c.take("gradient_norms", bool),
    )


# What config.loss may be, and the readers of the sections of these names.
METHODS: dict[str, Callable[[Section, Parts], Method]] = {
    "views": _read_listed,
    "oat": _read_oat,
    "twins": _read_twins,
}


def read(kind: str, c: Section, parts: Parts, *, views: Collection[str]) -> Method:
    """Reads a training method.

    Args:
      kind: config.loss, a row in METHODS.
      c: the section of the method.
      parts: what else of the config it may be made of.
      views: the names in config.views.

    Raises:
      UsageError: a setting is wrong, or the method has no use for parts that are given.
    """
    if kind != "views":
        _need_none(kind, parts.domains, views)
    with c:
        method = METHODS[kind](c, parts)
    if parts.perturbation and kind != "views":
        name = type(method).__name__
        raise UsageError(f"config.weight_perturbation is for views; {name} has none")
    return method


def _need_none(kind: str, domains: tuple[str, ...], views: Collection[str]) -> None:
    """Raises UsageError for domains or views, which only a list of views takes."""
    if domains:
        raise UsageError(f"config.loss={kind!r} names its domains itself: set domains=()")
    if views:
        raise UsageError(
            f"config.loss={kind!r} has no views, got config.views={sorted(views)}: set "
            "config.views={}, or config.loss='views'"
        )
