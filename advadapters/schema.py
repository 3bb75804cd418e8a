"""What settings a function or a class has: its annotated signature says so.

    def attack(logits_fn, images, labels, key, *, norm, eps, steps: Count = 10): ...

    class ViT(nn.Module):
        patch: Annotated[int, Between(low=1), "side of a patch in pixels"]

Configs read settings by it, with types, bounds and defaults, and calls from Python are
checked by it. Parameters without such an annotation are no settings.
"""

import inspect
import math
import numbers
import typing
from collections.abc import Collection
from typing import Annotated, Any, NamedTuple

import numpy as np

from advadapters.errors import UsageError, check_word

MISSING = inspect.Parameter.empty


class Between(NamedTuple):
    """Bounds of a number: low <= value <= high, above < value < below."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None


class OneOf(NamedTuple):
    """Words that a setting may be, looked up when it is read: a table may grow."""

    words: Collection[str]


class Setting(NamedTuple):
    """One setting: its type, what it may be, its default (MISSING for none), what it is."""

    kind: type
    allowed: Between | OneOf
    default: Any = MISSING
    about: str = ""


Count = Annotated[int, Between(low=1)]
Amount = Annotated[float, Between(low=0.0)]
Switch = Annotated[bool, Between()]


def settings_of(owner) -> dict[str, Setting]:
    """{name: Setting} of a function's keywords, or of the fields of a dataclass.

    >>> def attack(images, *, steps: Count, momentum: Amount = 0.9, key=None): ...
    >>> {name: setting.default for name, setting in settings_of(attack).items()}
    {'steps': <class 'inspect._empty'>, 'momentum': 0.9}
    """
    hints = typing.get_type_hints(owner, include_extras=True)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(owner).parameters.items()
    }
    found = {}
    for name, default in defaults.items():
        hint = hints.get(name)
        # A union with other types is one too: Python may give those, configs cannot.
        members = [hint, *typing.get_args(hint)]
        members = [part for part in members if typing.get_origin(part) is Annotated]
        if not members:
            continue
        kind, *extras = typing.get_args(members[0])
        allowed = [extra for extra in extras if isinstance(extra, Between | OneOf)]
        about = " ".join(extra for extra in extras if isinstance(extra, str))
        if allowed:
            found[name] = Setting(kind, allowed[-1], default, about)
    return found


def read(section, name, setting):
    """The value of a setting in a `configs.Section`; its default where it is left out."""
    if name not in section.left and setting.default is not MISSING:
        section.known.append(name)
        return setting.default
    if isinstance(setting.allowed, OneOf):
        return section.choice(name, setting.allowed.words)
    bounds = setting.allowed._asdict() if setting.kind in (int, float) else {}
    return section.take(name, setting.kind, **bounds)


def defaults_of(owner) -> dict[str, Any]:
    """{name: default} of the settings that have one."""
    found = settings_of(owner).items()
    return {name: s.default for name, s in found if s.default is not MISSING}


def check(name, value, setting):
    """Raises UsageError for a value, given from Python, that a setting cannot have."""
    if isinstance(setting.allowed, OneOf):
        check_word(setting.allowed.words, value, name)
    elif setting.kind is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be True or False, got {told(value)}")
    elif setting.kind in (int, float):
        check_number(name, value, setting)


def check_number(name, value, setting):
    """`check` for numbers; an array of one number is one, too."""
    whole = setting.kind is int
    kinds = numbers.Integral if whole else numbers.Real
    array = not whole and np.ndim(value) == 0 and hasattr(value, "dtype")
    number = isinstance(value, kinds) and not isinstance(value, bool)
    number = float(value) if number or array else math.nan
    if not fits(number, setting.allowed):
        told_bounds = " and ".join(bounds(setting.allowed))
        what = "a whole number" if whole else "a number"
        raise UsageError(f"{name} must be {what} {told_bounds}, got {told(value)}")


def fits(number: float, between: Between) -> bool:
    """Whether a number is finite and within bounds."""
    low, high, above, below = between
    return math.isfinite(number) and all(
        (
            low is None or number >= low,
            high is None or number <= high,
            above is None or number > above,
            below is None or number < below,
        )
    )


def bounds(between):
    """["of at least 1", "below 2"]: the bounds of a Between in words."""
    words = ("of at least", "of at most", "above", "below")
    return [
        f"{word} {b:g}" for word, b in zip(words, between, strict=True) if b is not None
    ]


def told(value):
    """repr on one line."""
    return " ".join(repr(value).split())
