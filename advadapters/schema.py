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
from collections.abc import Callable, Collection
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
    """A setting: its type, allowed values, default (MISSING for none), and meaning."""

    kind: type
    allowed: Between | OneOf
    default: Any = MISSING
    about: str = ""


Count = Annotated[int, Between(low=1)]
Amount = Annotated[float, Between(low=0.0)]
Switch = Annotated[bool, Between()]


def settings_of(owner: Callable[..., Any]) -> dict[str, Setting]:
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
    settings = {}
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
            settings[name] = Setting(kind, allowed[-1], default, about)
    return settings


def read(section: Any, name: str, setting: Setting) -> Any:
    """The value of a setting in a `sections.Section`; its default where it is left out."""
    if name not in section.left and setting.default is not MISSING:
        section.known.append(name)
        return setting.default
    if isinstance(setting.allowed, OneOf):
        return section.choice(name, setting.allowed.words)
    bounds = setting.allowed._asdict() if setting.kind in (int, float) else {}
    return section.take(name, setting.kind, **bounds)


def defaults_of(owner: Callable[..., Any]) -> dict[str, Any]:
    """{name: default} of the settings that have one."""
    settings = settings_of(owner).items()
    return {name: s.default for name, s in settings if s.default is not MISSING}


def check(name: str, value: Any, setting: Setting) -> None:
    """Raises UsageError for a value, given from Python, that a setting cannot have."""
    if isinstance(setting.allowed, OneOf):
        check_word(setting.allowed.words, value, name)
    elif setting.kind is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be True or False, got {_on_one_line(value)}")
    elif setting.kind in (int, float):
        _check_number(name, value, setting.kind is int, setting.allowed)


def _check_number(name: str, value: Any, whole: bool, bound: Between) -> None:
    """`check` for numbers, and for arrays of one number."""
    kinds = numbers.Integral if whole else numbers.Real
    array = not whole and np.ndim(value) == 0 and hasattr(value, "dtype")
    number = isinstance(value, kinds) and not isinstance(value, bool)
    number = float(value) if number or array else math.nan
    if not fits(number, bound):
        allowed = " and ".join(bounds(bound))
        what = "a whole number" if whole else "a number"
        raise UsageError(f"{name} must be {what} {allowed}, got {_on_one_line(value)}")


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


def bounds(between: Between) -> list[str]:
    """The bounds in words: ["of at least 1", "below 2"]."""
    words = ("of at least", "of at most", "above", "below")
    return [
        f"{word} {b:g}" for word, b in zip(words, between, strict=True) if b is not None
    ]


def _on_one_line(value: Any) -> str:
    """The repr of a value, on one line."""
    return " ".join(repr(value).split())
