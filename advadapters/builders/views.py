"""config.attacks and config.views -> attacks, and views of a batch."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from advadapters import losses, schema, soups
from advadapters.attacks import ATTACKS, checks, contract
from advadapters.errors import UsageError, pick
from advadapters.networks import Network
from advadapters.sections import Section
from advadapters.training import radius, views

MODES = ("eval", "train")

AGAINST = ("labels", "predictions")

# The settings of an attack are bound to it. In training its radius may grow.
Attack = functools.partial | radius.Growing
A = TypeVar("A", functools.partial, Attack)
Losses = tuple[tuple[str, float], ...]  # (a loss, its factor)


def read_fixed(
    sections: Mapping[str, Section], shape: tuple[int, ...]
) -> dict[str, functools.partial]:
    """The attacks of evaluation, whose radii do not grow: see `read_attacks`."""
    return read_attacks(sections, shape, _read_fixed)


def read_attacks(
    sections: Mapping[str, Section],
    shape: tuple[int, ...],
    read: Callable[[Section, functools.partial], A],
) -> dict[str, A]:
    """Reads attacks, each from the section of its name.

    Args:
      sections: {name: section} of the attacks.
      shape: [H, W, C] of the images.
      read: reads the settings that concern training or evaluation alone, and gives the
        attack with them.
    """
    attacks = {}
    for name, c in sections.items():
        with c:
            attacks[name] = read(c, _read_attack(c, shape))
    return attacks


def _read_fixed(c: Section, attack: functools.partial) -> functools.partial:
    """The attack of evaluation as it is; eps_warmup may only be 0.0, as no radius grows."""
    if "eps_warmup" in c.left and (warmup := c.take("eps_warmup", float, low=0.0)):
        raise UsageError(
            f"{c.name}.eps_warmup={warmup:g}: radii grow in training alone, so set it in "
            "config.attacks, and 0.0 here"
        )
    return attack


def read_growing(
    c: Section, attack: functools.partial, epochs: float, epoch: float
) -> Attack:
    """The attack of training, whose radius may grow over the first epochs.

    epochs: of the whole training. epoch: the steps of one epoch.
    """
    c.left.setdefault("eps_warmup", 0.0)
    warmup = c.take("eps_warmup", float, low=0.0)
    if warmup > epochs:
        raise UsageError(
            f"{c.name}.eps_warmup={warmup:g} epochs, but training ends after config.epochs="
            f"{epochs:g}, before the radius is eps: set at most {epochs:g}, or 0.0"
        )
    return radius.Growing(attack, warmup, epoch) if warmup else attack


def need_trained(attacks: Mapping[str, Attack], trained: Iterable[Any]) -> None:
    """Raises UsageError for a growing radius of an attack that nothing is trained under.

    Args:
      attacks: {name: attack} of config.attacks.
      trained: the attacks that training makes images by.
    """
    for name, attack in attacks.items():
        if isinstance(attack, radius.Growing) and not any(a is attack for a in trained):
            raise UsageError(
                f"config.attacks.{name}.eps_warmup={attack.epochs:g}, but nothing is "
                f"trained under {name!r}, and alarms have their full radius: set 0.0"
            )


def _read_attack(c: Section, shape: tuple[int, ...]) -> functools.partial:
    """Reads an attack on images [H, W, C], with its settings."""
    function = pick(ATTACKS, c.take("name", str), f"{c.name}.name")
    norm = c.choice("norm", contract.norms(function))
    eps = c.take("eps", float, above=0, high=checks.largest(norm, shape))
    known = schema.settings_of(function).items()
    settings = {name: schema.read(c, name, setting) for name, setting in known}
    return functools.partial(function, norm=norm, eps=eps, **settings)


def read_views(
    sections: Mapping[str, Section],
    domains: tuple[str, ...],
    attacks: Mapping[str, Attack],
    read: Callable[[Section, tuple[Any, ...]], dict[str, Any]],
) -> list[views.View]:
    """Reads views, each from the section of its name.

    Args:
      sections: {name: section} of the views.
      domains: the names of the domains.
      attacks: {name: attack} of config.attacks.
      read: reads the fields of View that are about tricks of the view's attacks.

    Raises:
      UsageError: a setting is wrong, or a domain is in no view that is trained.
    """
    if not domains or len(set(domains)) != len(domains):
        raise UsageError(f"config.domains must be different names, got {domains}")
    try:
        soups.check_names(domains)
    except ValueError as error:
        raise UsageError(f"config.domains: {error}") from None
    if not sections:
        raise UsageError("config.views is empty: training needs at least one view")
    listed = []
    for name, c in sections.items():
        with c:
            view = _read_view(name, c, domains, attacks, list(sections))
            listed.append(view._replace(**read(c, view.attacks)))
    if not any(view.weight for view in listed):
        raise UsageError("config.views: every weight is 0, so nothing is trained")
    unused = [
        domain
        for k, domain in enumerate(domains)
        if not any(view.mixture[k] and view.weight for view in listed)
    ]
    if unused:
        raise UsageError(
            f"config.domains has {len(domains)} domains, but no view trains {unused}: "
            "drop them from config.domains or add a view with such a mixture"
        )
    return listed


def _read_view(
    name: str,
    c: Section,
    domains: tuple[str, ...],
    attacks: Mapping[str, Attack],
    names: Sequence[str],
) -> views.View:
    """Reads the view of a name without its tricks; names: those of all views."""
    mixture = c.take("mixture", dict)
    weights = {d: Section(c.name + ".mixture", mixture).take(d, float) for d in mixture}
    try:
        weights = soups.weights_of(weights, domains)
    except ValueError as error:
        raise UsageError(f"{c.name}.mixture={mixture}: {error}") from None
    drawn = [part for part in c.take("attack", str).split(",") if part]
    alarm = c.take("alarm", str)
    terms = _read_losses(c)
    against = c.choice("attack_against", AGAINST)
    if len(set(drawn)) != len(drawn):
        raise UsageError(f"{c.name}.attack names one twice: {','.join(drawn)}")
    chosen = tuple(pick(attacks, part, f"{c.name}.attack") for part in drawn)
    if against == "predictions":
        for part, attack in zip(drawn, chosen, strict=True):
            _check_start(f"{c.name}.attack {part!r}", radius.full(attack))
    if not drawn and (alarm or against != "labels"):
        raise UsageError(
            f"{c.name} has no attack, but attack_against={against!r} and alarm={alarm!r}: "
            "name an attack, or leave them at 'labels' and ''"
        )
    return views.View(
        name=name,
        mixture=weights,
        weight=c.take("weight", float, low=0.0),
        attacks=chosen,
        train_mode=c.choice("attack_mode", MODES) == "train",
        against=against,
        losses=terms,
        reference=_read_reference(c, terms, name, names),
        alarm=radius.full(pick(attacks, alarm, f"{c.name}.alarm")) if alarm else None,
    )


def _check_start(name: str, attack: functools.partial) -> None:
    """Raises UsageError for an attack on predictions that starts at the clean images.

    The cross-entropy with the network's probabilities there is at its minimum, where its
    gradient is zero, so the attack would not move.
    """
    settings = inspect.signature(attack.func).parameters
    chosen = {n: p.default for n, p in settings.items()} | attack.keywords
    fix = {
        "pgd": None if chosen.get("random_start") else "random_start=True",
        "n_fgsm": None if chosen.get("noise") else "noise above 0",
        "pyramid": "target='random'",
    }.get(attack.func.__name__)
    still = chosen.get("loss", "cross_entropy") == "cross_entropy" and fix
    if still and not chosen.get("target"):
        raise UsageError(
            f"{name} starts at the clean images, where the gradient of their own "
            f"predictions is zero, so it finds nothing: give it {fix}, or set "
            "attack_against='labels'"
        )


def read_tricks(
    c: Section, attacks: Sequence[Attack], network: Network, epoch: float
) -> dict[str, Any]:
    """Reads attack_tricks and attack_warmup of a view, as fields of View.

    Args:
      c: the section of the view.
      attacks: of the view.
      network: that is trained.
      epoch: the steps of one epoch.
    """
    chosen = c.take("attack_tricks", tuple, of=str)
    warmup = c.take("attack_warmup", float, low=0.0)
    can = {"ard": network.gated, "prm": network.patch > 0}
    for trick in chosen:
        if not pick(can, trick, f"{c.name}.attack_tricks"):
            raise UsageError(
                f"{c.name}.attack_tricks has {trick!r}, which is for vision transformers, "
                "and prm for patches of whole pixels (see config.model.resize): change "
                "config.model, or set attack_tricks=()"
            )
    if bool(chosen) != bool(warmup):
        raise UsageError(
            f"{c.name} has attack_tricks={chosen!r} and attack_warmup={warmup:g} epochs: "
            "tricks are on during the warm-up, so set both, or () and 0.0"
        )
    functions = [radius.full(attack).func for attack in attacks]
    able = ["vary" in inspect.signature(function).parameters for function in functions]
    if chosen and not (able and all(able)):
        raise UsageError(
            f"{c.name}.attack_tricks={chosen!r} change the steps of pgd, and "
            f"{c.name}.attack is {'another' if able else 'none'}: name one that is pgd, or "
            "set attack_tricks=()"
        )
    return dict(tricks=chosen, warmup=warmup * epoch)


def _read_losses(c: Section) -> Losses:
    """Reads the losses of a view and their factors."""
    section = c.section("losses")
    known = losses.TRAINING | losses.PAIRED
    for name in section.left:
        pick(known, name, f"{section.name} key")
    names = list(section.left)
    with section:
        terms = tuple((name, section.take(name, float, above=0)) for name in names)
    if not terms:
        raise UsageError(f"{section.name} is empty; there are: {', '.join(known)}")
    return terms


def _read_reference(
    c: Section, terms: Losses, name: str, names: Sequence[str]
) -> int | None:
    """The number of the view that paired losses compare with, None where none is paired.

    terms: the losses of the view `name`; names: those of all views.
    """
    reference = c.take("reference", str)
    paired = [term for term, _ in terms if term in losses.PAIRED]
    others = [other for other in names if other != name]
    if reference and reference not in others or bool(paired) != bool(reference):
        raise UsageError(
            f"{c.name}.losses has {', '.join(paired) or 'no paired loss'} and "
            f"reference={reference!r}: a paired loss compares with another view, name it "
            f"in {c.name}.reference; there are: {', '.join(others) or 'no other views'}"
        )
    return names.index(reference) if reference else None
