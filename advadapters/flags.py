"""The flags of a verb: the fields of one frozen dataclass, read from and written as texts.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Flags:
        workdir: Annotated[str, Shown("DIR"), "a trained run"]
        examples: Annotated[int | None, Between(low=1), Shown("1000"), "images"] = None
        overrides: tuple[str, ...] = ()

A field is a flag --name=value if its annotation says what it is. The type is a text, a
number, a switch, or a tuple of texts or numbers; `Between` and `OneOf` bound the value, or
each part of a tuple, and `| None` stands for a flag that may be left out. Fields without a
default must be given, and an empty text stands for the default. A field that ends with "_",
like `lambda_`, has a flag without it.

Two fields are special: `config` is a `ConfigFile`, that is --config=FILE[:VARIANT] with
--config.KEY=VALUE, and `overrides` are --config.KEY=VALUE of a run that has its config.
"""

import dataclasses
import shlex
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, NamedTuple, TypeVar, cast

from advadapters import configs, schema
from advadapters.errors import UsageError, check_word
from advadapters.schema import Between, OneOf

F = TypeVar("F")
COLUMN, WIDTH = 33, 88  # of the help: where explanations begin, and where lines end


class Shown(NamedTuple):
    """How the help shows a value, and what an error says is expected, "" for the usual."""

    text: str
    expected: str = ""


class Separated(NamedTuple):
    """What separates the parts of a tuple, and what one part is called."""

    by: str = ","
    part: str = "value"


class ConfigFile(NamedTuple):
    """A config file and what is changed in it, as the command line says it.

    arguments: --config=FILE[:VARIANT] and any --config.KEY=VALUE.
    """

    arguments: tuple[str, ...]

    def read(self, variant: str = "") -> dict[str, Any]:
        """The config as plain values; of another variant than the file's, if one is named.

        Raises UsageError for anything wrong.
        """
        arguments = list(self.arguments)
        if variant:
            arguments = configs.vary(arguments, variant)
        config, _ = configs.parse(arguments, {})
        return config.to_dict()

    @property
    def path(self) -> str:
        """The file, "" if none is named."""
        named = [configs.with_file(argument) for argument in self.arguments]
        return next(configs.files(named), "")

    @property
    def keys(self) -> set[str]:
        """The keys that are changed."""
        return configs.overridden_keys(self.arguments)


class Flag(NamedTuple):
    """One flag, see the module.

    kind: the type of the value, or of each part where `separated` is not None. default:
    `schema.MISSING` if it must be given. about: what it is, for the help.
    """

    name: str
    kind: type
    separated: Separated | None
    allowed: Between | OneOf | None
    shown: Shown
    default: Any
    about: str

    def read(self, text: str) -> Any:
        """The value of a text; raises UsageError for what it cannot be."""
        if not text:
            if self.default is schema.MISSING:
                raise UsageError(f"--{self.name}=... is missing")
            return self.default
        if self.separated is None:
            return self._read_part(text, text)
        parts = [part for part in text.split(self.separated.by) if part.strip()]
        if not parts:
            raise UsageError(f"--{self.name}={text!r} names no {self.separated.part}")
        return tuple(self._read_part(part, text) for part in parts)

    def _read_part(self, part: str, text: str) -> Any:
        if isinstance(self.allowed, OneOf):
            check_word(self.allowed.words, part, f"--{self.name}")
        if self.kind is str:
            return part
        value = _READERS[self.kind](part)
        bounds = self.allowed if isinstance(self.allowed, Between) else Between()
        if value is None or not schema.fits(value, bounds):
            raise UsageError(f"--{self.name} must be {self.expected}, got {text!r}")
        return value

    @property
    def expected(self) -> str:
        """What the value must be, in words."""
        whole, bounds = self.kind is int, self.allowed
        if self.shown.expected:
            return self.shown.expected
        if self.kind is bool:
            return "true or false"
        if self.separated:
            return "whole numbers" if whole else f"numbers like {self.shown.text}"
        if whole and bounds == Between(low=1):
            return "a positive whole number"
        words = schema.bounds(bounds) if isinstance(bounds, Between) else []
        return " ".join(["a whole number" if whole else "a number", " and ".join(words)])

    def help(self) -> str:
        """The lines of the help."""
        example = self.shown.text or self.write(self.default)
        head = f"  --{self.name}" + (f"={example}" if self.kind is not bool else "")
        about = self.about
        if self.default not in (schema.MISSING, None, (), "", False):
            about += f" (default: {self.write(self.default)})"
        return _described(head, about)

    def write(self, value: Any) -> str:
        """The text that `read` takes for a value."""
        if isinstance(value, tuple | list):
            separator = (self.separated or Separated()).by
            return separator.join(self.write(part) for part in value)
        return str(value).lower() if isinstance(value, bool) else str(value)


def flags_of(owner: type) -> dict[str, Flag]:
    """{name of the field: Flag} of a dataclass of flags."""
    hints = typing.get_type_hints(owner, include_extras=True)
    flags = {
        field.name: _flag(field.name.rstrip("_"), hints[field.name], field.default)
        for field in dataclasses.fields(cast(Any, owner))
        if field.name not in ("config", "overrides")
    }
    # Those that must be given come first.
    order = sorted(flags, key=lambda name: flags[name].default is not schema.MISSING)
    return {name: flags[name] for name in order}


def _flag(name: str, hint: Any, default: Any) -> Flag:
    """The Flag that a field's annotation and default describe."""
    kind, *extras = typing.get_args(hint)
    if isinstance(kind, types.UnionType):  # X | None
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
    separated = None
    if typing.get_origin(kind) is tuple:
        separated = _last(extras, Separated, Separated())
        kind = typing.get_args(kind)[0]
    allowed = _last(extras, Between, None) or _last(extras, OneOf, None)
    shown, about = _last(extras, Shown, Shown("")), _last(extras, str, "")
    if default is dataclasses.MISSING:
        default = schema.MISSING
    return Flag(name, kind, separated, allowed, shown, default, about)


def _last(extras: Sequence[Any], kind: type, default: Any) -> Any:
    """The last extra of a type in an annotation: it counts before those of an alias."""
    return next((extra for extra in reversed(extras) if type(extra) is kind), default)


def _whole(text: str) -> int | None:
    """A whole number, None for other texts."""
    return int(text) if text.isdecimal() else None


def _number(text: str) -> float | None:
    """A number or a fraction like 8/255, None for other texts."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _switch(text: str) -> bool | None:
    """True or False, None for other texts."""
    return {"true": True, "false": False}.get(text.lower())


_READERS: Mapping[type, Callable[[str], Any]] = {int: _whole, float: _number, bool: _switch}


def taken_by(main: Callable[[Any], int]) -> type:
    """The dataclass of the flags that a verb's main takes."""
    return typing.get_type_hints(main)["flags"]


def read(owner: type[F], argv: Sequence[str]) -> F:
    """The flags that the arguments after a verb set.

    Raises UsageError for an unknown flag, with those that are near, for one that is missing
    and for a value that cannot be.
    """
    make: Any = owner
    fields = {field.name: field for field in dataclasses.fields(make)}
    known = flags_of(owner)
    switches = {f"--{flag.name}" for flag in known.values() if flag.kind is bool}
    argv = [f"{text}=true" if text in switches else text for text in argv]
    arguments, rest = _split(argv, "config" in fields)
    names: dict[str, str | None] = {flag.name: "" for flag in known.values()}
    if "config" in fields:
        names["config"] = ""  # so that it is among those that may be near
    values: dict[str, Any] = {}
    if "overrides" in fields:
        values["overrides"] = arguments
    elif "config" not in fields:
        rest = argv
    _, texts = configs.parse(rest, names, with_config=False)
    if "config" in fields and (arguments or fields["config"].default is not None):
        if not arguments or not any(configs.files(arguments)):
            raise UsageError("--config=... is missing")
        values["config"] = ConfigFile(arguments)
    values |= {key: flag.read(texts[flag.name]) for key, flag in known.items()}
    return make(**values)


def of_values(owner: type[F], values: Mapping[str, Any]) -> F:
    """Flags of {name: value}, checked like those of a command line.

    One value stands for a tuple of it, and None for the default. Raises UsageError.
    """
    known, make = flags_of(owner), cast(Any, owner)
    for name in values:
        check_word(known, name, f"flag of {owner.__name__}")
    # What can be written and read again is also what a user may paste.
    texts = {
        name: known[name].write(value)
        for name, value in values.items()
        if value is not None
    }
    return make(**{name: known[name].read(text) for name, text in texts.items()})


def _split(argv: Sequence[str], files: bool) -> tuple[tuple[str, ...], list[str]]:
    """(--config=FILE, if files count, and --config.KEY=VALUE, all other arguments).

    Values may be arguments of their own: --config FILE.
    """
    taken, rest = [], []
    value = False  # whether the next argument may be the value of the last
    for text in argv:
        name, equals, _ = text.lstrip("-").partition("=")
        if value and not text.startswith("-"):
            taken.append(text)
            value = False
        elif text.startswith("-") and (
            name.removeprefix("no").startswith("config.") or (files and name == "config")
        ):
            taken.append(text)
            value = not equals
        else:
            rest.append(text)
            value = False
    return tuple(taken), rest


def arguments(flags: Any, left_out: Sequence[str] = ()) -> list[str]:
    """The arguments that `read` makes these flags of, but for those that are left out.

    Flags at their defaults are not told.
    """
    texts = []
    if config := getattr(flags, "config", None):
        texts += config.arguments
    for key, flag in flags_of(type(flags)).items():
        value = getattr(flags, key)
        if key not in left_out and value != flag.default:
            texts.append(f"--{flag.name}={flag.write(value)}")
    return texts + list(getattr(flags, "overrides", ()))


def command(verb: str, flags: Any, left_out: Sequence[str] = ()) -> str:
    """The command line of a verb with these flags, as a shell takes it, see `arguments`."""
    return shlex.join(["advadapters", verb, *arguments(flags, left_out)])


def describe(text: str | None, owner: type) -> str:
    """The help of a verb: its text, with the flags in the place of {flags}."""
    hints = typing.get_type_hints(owner, include_extras=True)
    lines = [flag.help() for flag in flags_of(owner).values()]
    for name in ("config", "overrides"):
        about = _last(typing.get_args(hints.get(name)), str, "")
        if about:
            lines.append(_described("  --config.KEY=VALUE", about))
    return (text or "").strip().replace("{flags}", "\n".join(lines))


def _described(head: str, about: str) -> str:
    """Lines of the help: a flag, and in the next column what it is."""
    lines = textwrap.wrap(about, WIDTH - COLUMN, break_on_hyphens=False)
    if len(head) > COLUMN - 2:
        return "\n".join([head, *(" " * COLUMN + line for line in lines)])
    first, *more = lines
    return "\n".join([f"{head:<{COLUMN}}{first}", *(" " * COLUMN + line for line in more)])


# Flags that several verbs have.
Workdir = Annotated[str, Shown("DIR"), "the folder of a trained run"]
Examples = Annotated[
    int | None,
    Between(low=1),
    Shown("1000"),
    "only so many test images, a fixed random draw",
]
Statistics = Annotated[
    int | None,
    Between(low=1),
    Shown("1000"),
    "batch statistics of each soup estimated anew on so many training images (default: the "
    "mixed ones)",
]
Step = Annotated[str, Shown("4000"), 'a checkpoint\'s step, "best" or "latest"']
Suites = Annotated[
    tuple[str, ...],
    Shown("pgd20_linf"),
    'suites of the config, separated by "," (default: all)',
]
Overrides = Annotated[tuple[str, ...], "of keys that may still change, see `train`"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of a run's networks are chosen; those that its config lists if none is."""

    mixture: Annotated[
        tuple[str, ...],
        Separated(";", "mixture"),
        Shown("clean=0.9,linf=0.1"),
        'weights by domain that sum to 1, or fractions like 1/3; several separated by ";" '
        "(default: the soups that the config lists)",
    ] = ()
    grid: Annotated[
        float | None, Shown("0.2"), "all soups with weights in such steps instead"
    ] = None
    extrapolation: Annotated[
        float, Shown("0.2"), "how far below 0 the grid's weights may go"
    ] = 0.0
    ensemble: Annotated[
        tuple[str, ...],
        Separated(";", "mixture"),
        Shown("clean=0.5,linf=0.5"),
        "these as well: their probabilities mixed, not their weights, at a forward pass "
        "for each domain",
    ] = ()
    lambda_: Annotated[
        tuple[float, ...],
        Shown("0,0.3"),
        "of a network conditioned on lambda (default: those that it was trained with)",
    ] = ()
    width: Annotated[
        tuple[float, ...], Shown("0.5"), "widths of such a network (default: all)"
    ] = ()
