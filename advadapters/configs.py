"""Configurations: plain values from a Python file, and what is changed in them.

A config file defines get_config(variant) -> ml_collections.ConfigDict. Its values are read
key by key through `sections.Section`. This module is light: `--help` and bad flags need no
jax.
"""

import ast
import contextlib
import difflib
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from advadapters.errors import UsageError, check_word

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


def change(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    """Sets values of a config, {"a.b": value}, with the checks that flags have.

    Raises:
      UsageError: a key does not exist, or a value has another type than the one there.
    """
    section: Any
    for key, value in changes.items():
        value = value.item() if hasattr(value, "item") else value  # numbers of numpy
        if free := FREE.fullmatch(f"--config.{key}="):
            path = (free["weights"] or free["sections"]).split(".")
            _set_free(
                config, path, free["weight"] or free["section"], value, f"{key}={value!r}"
            )
            continue
        section, names = config, key.split(".")
        for number, name in enumerate(names):
            if not isinstance(section, ConfigDict) or name not in section:
                known = list(section) if isinstance(section, ConfigDict) else []
                similar = difflib.get_close_matches(name, known, 1)
                hint = f". Did you mean {similar[0]!r}?" if similar else ""
                raise UsageError(f"no such config key: {name!r} in config.{key}{hint}")
            if number < len(names) - 1:
                section = section[name]
        kind = type(section[names[-1]])
        try:
            if value is None:
                raise TypeError
            section[names[-1]] = value
        except TypeError:
            name = "a section" if kind is ConfigDict else kind.__name__
            raise UsageError(f"config.{key} must be {name}, got {value!r}") from None


def _put(config: Any, path: Sequence[str], name: str | None, text: str) -> None:
    """Sets a section whose keys are free names or, if there is a name, that key of it."""
    flag = "--config." + ".".join([*path, name] if name else path)
    try:
        value = ast.literal_eval(text) if text.startswith("{") else float(Fraction(text))
    except (ValueError, SyntaxError, ZeroDivisionError, OverflowError):
        raise UsageError(
            f"{flag}={text!r} is no number, no fraction and no section like {{...}}"
        ) from None
    _set_free(config, path, name, value, f"{flag}={text}")


def _set_free(
    config: Any, path: Sequence[str], name: str | None, value: Any, where: str
) -> None:
    """What `_put` does, with a value; where: KEY=VALUE, as errors show it."""
    parent = config
    for key in path:
        if key not in config:
            raise UsageError(f"no such config key: {key!r} in {where.partition('=')[0]}")
        config, parent = config[key], config
    content = config.to_dict() | {name: value} if name else value
    if not isinstance(content, dict):
        raise UsageError(f"{where} must be a section like {{...}}")
    # Folders give their names to the domains of soups, and may have dots in theirs.
    parent[path[-1]] = ConfigDict(content, allow_dotted_keys=True)


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
