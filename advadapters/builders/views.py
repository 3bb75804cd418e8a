"""config.attacks and config.views -> attacks, and views of a batch."""

import functools
import inspect

from advadapters import losses, schema, soups
from advadapters.attacks import ATTACKS, checks, contract
from advadapters.configs import Section
from advadapters.errors import UsageError, pick
from advadapters.training import radius, views

MODES = ("eval", "train")

AGAINST = ("labels", "predictions")


def read_attacks(sections, shape, read=None):
    """{name: settings} -> {name: Attack} of images of this shape [H, W, C].

    read: (section, attack) -> the attack with what training alone makes of it; by default
    it attacks in evaluation, as it is.
    """
    found, read = {}, read or read_fixed
    for name, c in sections.items():
        with c:
            found[name] = read(c, read_attack(c, shape))
    return found


def read_fixed(c, attack):
    """An attack of evaluation: its radius never grows, though 0.0 epochs may be said."""
    if "eps_warmup" in c.left and (warmup := c.take("eps_warmup", float, low=0.0)):
        raise UsageError(
            f"{c.name}.eps_warmup={warmup:g}: radii grow in training alone, so set it in "
            "config.attacks, and 0.0 here"
        )
    return attack


def read_growing(c, attack, epochs, epoch):
    """An attack of training, whose radius may grow over its first epochs.

    epochs: of the whole training; epoch: steps in one.
    """
    c.left.setdefault("eps_warmup", 0.0)
    warmup = c.take("eps_warmup", float, low=0.0)
    if warmup > epochs:
        raise UsageError(
            f"{c.name}.eps_warmup={warmup:g} epochs, but training ends after config.epochs="
            f"{epochs:g}, before the radius is eps: set at most {epochs:g}, or 0.0"
        )
    return radius.Growing(attack, warmup, epoch) if warmup else attack


def need_trained(attacks, trained):
    """Raises UsageError for an attack of config.attacks that is to grow for nothing.

    trained: the attacks that training makes images by.
    """
    for name, attack in attacks.items():
        if isinstance(attack, radius.Growing) and not any(a is attack for a in trained):
            raise UsageError(
                f"config.attacks.{name}.eps_warmup={attack.epochs:g}, but nothing is "
                f"trained under {name!r}, and alarms have their full radius: set 0.0"
            )


def read_attack(c, shape):
    """One attack with its settings."""
    function = pick(ATTACKS, c.take("name", str), f"{c.name}.name")
    norm = c.choice("norm", contract.norms(function))
    eps = c.take("eps", float, above=0, high=checks.largest(norm, shape))
    known = schema.settings_of(function).items()
    settings = {name: schema.read(c, name, setting) for name, setting in known}
    return functools.partial(function, norm=norm, eps=eps, **settings)


def read_views(sections, domains, attacks, read):
    """{name: settings} -> [View]; every domain must be in some view.

    read: (section, attacks of a view) -> the fields of View about its tricks.
    """
    if not domains or len(set(domains)) != len(domains):
        raise UsageError(f"config.domains must be different names, got {domains}")
    try:
        soups.check_names(domains)
    except ValueError as error:
        raise UsageError(f"config.domains: {error}") from None
    if not sections:
        raise UsageError("config.views is empty: training needs at least one view")
    seen = []
    for name, c in sections.items():
        with c:
            view = read_view(name, c, domains, attacks, list(sections))
            seen.append(view._replace(**read(c, view.attacks)))
    if not any(view.weight for view in seen):
        raise UsageError("config.views: every weight is 0, so nothing is trained")
    unused = [
        d for k, d in enumerate(domains) if not any(v.mixture[k] and v.weight for v in seen)
    ]
    if unused:
        raise UsageError(
            f"config.domains has {len(domains)} domains, but no view trains {unused}: "
            "drop them from config.domains or add a view with such a mixture"
        )
    return seen


def read_view(name, c, domains, attacks, names):
    """One view; names: those of all views."""
    mixture = c.take("mixture", dict)
    weights = {d: Section(c.name + ".mixture", mixture).take(d, float) for d in mixture}
    try:
        weights = soups.weights_of(weights, domains)
    except ValueError as error:
        raise UsageError(f"{c.name}.mixture={mixture}: {error}") from None
    drawn = [part for part in c.take("attack", str).split(",") if part]
    alarm = c.take("alarm", str)
    terms = read_losses(c)
    against = c.choice("attack_against", AGAINST)
    if len(set(drawn)) != len(drawn):
        raise UsageError(f"{c.name}.attack names one twice: {','.join(drawn)}")
    chosen = tuple(pick(attacks, part, f"{c.name}.attack") for part in drawn)
    if against == "predictions":
        for part, attack in zip(drawn, chosen, strict=True):
            check_start(f"{c.name}.attack {part!r}", radius.full(attack))
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
        reference=read_reference(c, terms, name, names),
        alarm=radius.full(pick(attacks, alarm, f"{c.name}.alarm")) if alarm else None,
    )


def check_start(name, attack):
    """Refuses an attack on predictions that starts where they were made.

    There the cross-entropy with the network's own probabilities is at its least, and its
    gradient zero: the attack would not move.
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


def read_tricks(c, attacks, network, epoch):
    """attack_tricks and attack_warmup of a view, as fields of View.

    epoch: steps in one.
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
    attacks = [radius.full(attack).func for attack in attacks]
    able = ["vary" in inspect.signature(attack).parameters for attack in attacks]
    if chosen and not (able and all(able)):
        raise UsageError(
            f"{c.name}.attack_tricks={chosen!r} change the steps of pgd, and "
            f"{c.name}.attack is {'another' if able else 'none'}: name one that is pgd, or "
            "set attack_tricks=()"
        )
    return dict(tricks=chosen, warmup=warmup * epoch)


def read_losses(c):
    """((loss, factor), ...) of a view."""
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


def read_reference(c, terms, name, names):
    """The number of the view that paired losses compare with, or None."""
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
