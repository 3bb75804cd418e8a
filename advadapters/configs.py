"""Configurations: plain values from a Python file, overrides, and strict reading.

A config file defines get_config(variant) -> ml_collections.ConfigDict. Its values
are read key by key through `Section`, which refuses wrong types and keys that
nobody reads. This module is light: `--help` and bad flags need no jax.
"""

import ast
import contextlib
import difflib
import math
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from advadapters.errors import UsageError, check_word

T = TypeVar("T")

# The config files that come with the package: in it, or in a checkout beside it.
HERE = pathlib.Path(__file__).parent
FOLDERS = (HERE / "config_files", HERE.parent / "configs")

FRACTION = re.compile(r"(--config\.\S+=)(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)$")
# Sections whose keys are free names, so that flags may bring new ones: of numbers, and of
# sections.
FREE = re.compile(
    r"--?config\.(?:"
    r"(?P<weights>start\.mixture|views\.[^.=]+\.(?:mixture|losses))(?:\.(?P<weight>[^=]+))?|"
    r"(?P<sections>attacks|views|evaluation\.suites|model\.added)\.(?P<section>[^.=]+)"
    r")=(?P<value>.*)",
    re.DOTALL,
)


def variant(text: str, known: Iterable[str]) -> str:
    """The variant that --config=FILE:VARIANT names; "" is the first one known.

    Raises:
      UsageError: the variant is not known.
    """
    if text:
        check_word(known, text, "variant")
    return text or next(iter(known))


def fraction(argument: str) -> str:
    """A flag like --config.x.eps=8/255 with the quotient; other arguments as they are."""
    match = FRACTION.match(argument)
    if not match:
        return argument
    flag, above, below = match.groups()
    if float(below) == 0:
        raise UsageError(f"{argument}: division by zero")
    return f"{flag}{float(above) / float(below)!r}"


def parse(
    argv: Sequence[str], names: Mapping[str, str | None], with_config: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Parses --config=FILE[:VARIANT], its overrides, and string flags.

    Args:
      argv: the arguments after the verb.
      names: {flag: its default, or None if it must be given}.
      with_config: whether --config is a flag that must be given.

    Returns:
      (ConfigDict or None, {flag: text}).

    Raises:
      UsageError: anything is wrong with the arguments or the file.
    """
    values = flags.FlagValues()
    free, rest = _take_free(argv) if with_config else ([], argv)
    arguments = ["advadapters", *map(fraction, rest)]
    if with_config:
        arguments = [with_file(argument) for argument in arguments]
        # ml-collections loads all files as one module, which keeps what the last one set.
        sys.modules.pop("config_config", None)
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
        _need_file(arguments)
    for name, default in names.items():
        flags.DEFINE_string(name, default, "", flag_values=values)
    with _bad_file(arguments):
        _read_flags(values, arguments)
    for name in ("config", *names) if with_config else names:
        if values[name].value is None:
            raise UsageError(f"--{name}=... is missing")
    config = values["config"].value if with_config else None
    if with_config and not isinstance(config, ConfigDict):
        raise UsageError(
            "get_config must return a ConfigDict, such as advadapters.defaults.config() "
            f"makes, got {type(config).__name__}"
        )
    _put_free(config, free)
    return config, {name: values[name].value for name in names}


def _take_free(argv: Sequence[str]) -> tuple[list[re.Match[str]], list[str]]:
    """The arguments that FREE matches, as matches, and the other arguments."""
    matches = {argument: FREE.fullmatch(argument) for argument in argv}
    rest = [argument for argument in argv if not matches[argument]]
    return [match for match in matches.values() if match], rest


def _put_free(config: Any, matches: Iterable[re.Match[str]]) -> None:
    """Sets the free keys of a ConfigDict that arguments give."""
    for match in matches:
        path = (match["weights"] or match["sections"]).split(".")
        _put(config, path, match["weight"] or match["section"], match["value"])


def _read_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Has absl's FlagValues read the arguments; raises UsageError for anything wrong."""
    with _bad_flags():
        rest = values(arguments)[1:]
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; flags are --name=value")


@contextlib.contextmanager
def _bad_flags() -> Iterator[None]:
    """Makes a UsageError of whatever absl and ml-collections raise."""
    try:
        yield
    except flags.Error as error:
        raise UsageError(reason(error)) from None
    except (AttributeError, KeyError) as error:
        raise UsageError(f"no such config key: {reason(error)}") from None
    except (TypeError, ValueError, SyntaxError) as error:
        raise UsageError(f"bad config: {reason(error)}") from None


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are no overrides, and those that are: --config.KEY=VALUE."""
    overrides = [text for text in argv if text.lstrip("-").startswith("config.")]
    return [text for text in argv if text not in overrides], overrides


def overridden_keys(argv: Sequence[str]) -> set[str]:
    """The keys that the arguments override."""
    return {text.lstrip("-").partition("=")[0][len("config.") :] for text in split(argv)[1]}


def vary(argv: Sequence[str], variant: str) -> list[str]:
    """The arguments with another variant in --config=FILE[:VARIANT] (or --config FILE)."""
    changed, follows = [], False
    for argument in argv:
        flag, equals, value = argument.partition("=")
        named = flag.lstrip("-") == "config"
        if named and equals:
            argument = f"{flag}={value.partition(':')[0]}:{variant}"
        elif follows:
            argument = f"{argument.partition(':')[0]}:{variant}"
        changed.append(argument)
        follows = named and not equals
    return changed


def override(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A config, a nested dict, with --config.KEY=VALUE arguments applied."""
    if not overrides:
        return config
    values, changed = flags.FlagValues(), ConfigDict(config, allow_dotted_keys=True)
    free, rest = _take_free(overrides)
    arguments = ["advadapters", *map(fraction, rest)]
    with _bad_flags():
        config_flags.DEFINE_config_dict(
            "config", changed, flag_values=values, sys_argv=arguments
        )
    _read_flags(values, arguments)
    result: Any = values["config"].value
    _put_free(result, free)
    return result.to_dict()


def _put(config: Any, path: Sequence[str], name: str | None, text: str) -> None:
    """Sets a section whose keys are free names or, if there is a name, that key of it."""
    flag = "--config." + ".".join([*path, name] if name else path)
    try:
        value = ast.literal_eval(text) if text.startswith("{") else float(Fraction(text))
    except (ValueError, SyntaxError, ZeroDivisionError, OverflowError):
        raise UsageError(
            f"{flag}={text!r} is no number, no fraction and no section like {{...}}"
        ) from None
    parent = config
    for key in path:
        if key not in config:
            raise UsageError(f"no such config key: {key!r} in {flag}")
        config, parent = config[key], config
    value = config.to_dict() | {name: value} if name else value
    if not isinstance(value, dict):
        raise UsageError(f"{flag}={text} must be a section like {{...}}")
    # Folders give their names to the domains of soups, and may have dots in theirs.
    parent[path[-1]] = ConfigDict(value, allow_dotted_keys=True)


def packaged() -> dict[str, pathlib.Path]:
    """{name: path} of the config files that come with the package."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), HERE)
    files = sorted(folder.rglob("*.py")) if folder != HERE else []
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def with_file(argument: str) -> str:
    """--config=digits:nominal with the packaged file of that name, unless it is a file."""
    flag, equals, value = argument.partition("=")
    name, colon, rest = value.partition(":")
    if flag.lstrip("-") != "config" or pathlib.Path(name).is_file():
        return argument
    path = packaged().get(name)
    return f"{flag}={path}{colon}{rest}" if path else argument


def files(arguments: Sequence[str]) -> Iterator[str]:
    """The files of --config=FILE[:VARIANT]."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config":
            yield (value if equals else following).partition(":")[0]


@contextlib.contextmanager
def _bad_file(arguments: Sequence[str]) -> Iterator[None]:
    """Makes a UsageError, with file and line, of what goes wrong in a config file."""
    try:
        yield
    except Exception as error:
        chain = _chain_of(error)
        if any(isinstance(link, UsageError) for link in chain[1:]):
            raise  # what it says is ours, like that of an unknown variant
        for path in files(arguments):
            if line := _line_of(chain, path):
                raise UsageError(line) from None
            if "no attribute 'get_config'" in str(error):
                raise UsageError(f"{path} defines no get_config(variant)") from None
            if "parsing config file" in str(error):
                raise UsageError(f"{path}: {reason(chain[-1])}") from None
        raise


def _line_of(chain: Sequence[BaseException], path: str) -> str:
    """ "FILE, line 3: NameError: ..." if one of the exceptions is of the file, or ""."""
    for link in reversed(chain):
        number = getattr(link, "lineno", None) if isinstance(link, SyntaxError) else None
        for frame in traceback.extract_tb(link.__traceback__):
            if os.path.abspath(frame.filename) == os.path.abspath(path):
                number = number or frame.lineno
        if number:
            return f"{path}, line {number}: {type(link).__name__}: {reason(link)}"
    return ""


def _need_file(arguments: Sequence[str]) -> None:
    """Raises UsageError if the file of --config=FILE[:VARIANT] is not there."""
    for path in files(arguments):
        if not pathlib.Path(path).is_file():
            names = list(packaged())
            similar = difflib.get_close_matches(path, names, 3, 0.4) or names
            raise UsageError(
                f"no config file {path!r}; give a path, or a name that comes with the "
                f"package, like {', '.join(similar[:3])}"
            )


def _chain_of(error: BaseException) -> list[BaseException]:
    """The exception and all that it came from, the first cause last."""
    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(below)
    return chain


def reason(error: BaseException) -> str:
    """One line of an exception: that of the UsageError it came from, or its own first."""
    ours = [str(link) for link in _chain_of(error) if isinstance(link, UsageError)]
    text: Any = ours[-1] if ours else error
    while isinstance(text, BaseException):  # ml-collections wraps one in another
        text = text.args[0] if text.args else type(text).__name__
    first, *more = str(text).strip().splitlines()
    hints = [line.strip() for line in more if line.startswith("Did you mean")]
    return ". ".join([first, *hints])


class Section:
    """Values of one part of a config, taken key by key.

    with Section("config.data", values) as data:
        size = data.take("image_size", int, low=1)

    Leaving the block raises UsageError for the first key that was not taken.
    """

    def __init__(self, name: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise UsageError(f"{name} must be a section with keys, got {values!r}")
        self.name = name
        self.left = dict(values)  # that were not taken yet
        self.known: list[str] = []  # keys that were taken

    def __enter__(self) -> "Section":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None and self.left:
            raise UsageError(
                f"unknown key {self.name}.{next(iter(self.left))}; there are: "
                + ", ".join(self.known)
            )

    def take(
        self,
        key: str,
        kind: type[T],
        *,
        low: float | None = None,
        above: float | None = None,
        below: float | None = None,
        high: float | None = None,
        of: type | None = None,
    ) -> T:
        """The value of a key.

        Args:
          key: of this section; it must be there.
          kind: the type of the value. Floats must be finite.
          low: the least value that is allowed, if any.
          above: what the value must be larger than, if anything.
          below: what the value must be smaller than, if anything.
          high: the largest value that is allowed, if any.
          of: the type of the elements of a tuple.

        Raises:
          UsageError: the key is missing or its value is not allowed.
        """
        value = self._take_any(key, kind, of)
        for wrong, bound in (
            (low is not None and not value >= low, f"at least {low}"),
            (above is not None and not value > above, f"above {above}"),
            (below is not None and not value < below, f"below {below}"),
            (high is not None and not value <= high, f"at most {high}"),
        ):
            if wrong:
                raise UsageError(f"{self.name}.{key} must be {bound}, got {value!r}")
        return value

    def _take_any(self, key: str, kind: type, of: type | None) -> Any:
        """`take` without bounds."""
        self.known.append(key)
        if key not in self.left:
            raise UsageError(f"{self.name}.{key} is missing ({kind.__name__})")
        value: Any = self.left.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple and isinstance(value, list):
            value = tuple(value)
        if of is float and kind is tuple and isinstance(value, tuple):
            value = tuple(float(v) if type(v) is int else v for v in value)
        if type(value) is not kind:
            raise UsageError(f"{self.name}.{key} must be {kind.__name__}, got {value!r}")
        items = value if kind is tuple else (value,)
        if of and not all(type(item) is of for item in items):
            raise UsageError(f"{self.name}.{key} must hold {of.__name__}, got {value!r}")
        if not all(math.isfinite(item) for item in items if isinstance(item, float)):
            raise UsageError(f"{self.name}.{key} must be finite, got {value!r}")
        return value

    def choice(self, key: str, allowed: Iterable[str]) -> str:
        """The value of a key that must be one of the strings in `allowed`."""
        value = self.take(key, str)
        check_word(allowed, value, f"{self.name}.{key}")
        return value

    def section(self, key: str) -> "Section":
        """The section below a key."""
        return Section(f"{self.name}.{key}", self.take(key, dict))

    def sections(self, key: str) -> dict[str, "Section"]:
        """{name: Section} of a section whose keys are free names."""
        return self.section(key).parts()

    def parts(self) -> dict[str, "Section"]:
        """{name: Section} of all keys that were not taken, each of them a section."""
        values, self.left = self.left, {}
        return {name: Section(f"{self.name}.{name}", v) for name, v in values.items()}
