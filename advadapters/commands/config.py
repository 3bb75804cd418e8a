"""usage: advadapters config [--config=FILE[:VARIANT]] [--config.KEY=VALUE ...] [--json]

Prints the whole config that a file makes, overrides included, a line for each key: the flag
that sets it, its type, and what it is. Without --config it lists the config files that come
with the package, which --config=NAME finds from any folder.

{flags}
"""

import ast
import dataclasses
import io
import json
import pathlib
import shlex
import tokenize
from collections.abc import Iterator
from typing import Annotated, Any

from advadapters import configs, defaults, schema
from advadapters.flags import ConfigFile

# Which part of a config each function of `defaults` makes; * is any name.
SECTIONS = {
    "config": "",
    "method": "",
    "data": "data",
    "model": "model",
    "added": "model.added.*",
    "film": "model.film",
    "adamw": "optimizer",
    "sgd": "optimizer",
    "schedule_keys": "optimizer",
    "NO_START": "start",
    "pgd": "attacks.*",
    "view": "views.*",
    "oat": "oat",
    "twins_at": "twins",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    config: ConfigFile | None = None
    json: Annotated[bool, "the config as JSON, for machines"] = False


def main(flags: Flags) -> int:
    """Returns the exit code."""
    if flags.config is None:
        print(listing())
        return 0
    config = flags.config.read()
    print(json.dumps(config, indent=2) if flags.json else text(config))
    return 0


def listing() -> str:
    """A line for each config that comes with the package: its name and what it is."""
    lines = []
    for name, path in configs.packaged().items():
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
        lines.append(f"{name:<28}{about[0] if about else ''}".rstrip())
    return "\n".join(lines)


def text(config: dict[str, Any]) -> str:
    """The lines of a config, see the usage."""
    comments, lines = {}, []
    for path in sorted(pathlib.Path(defaults.__file__).parent.glob("*.py")):
        comments |= comments_of(path.read_text())
    for key, value in leaves(config):
        flag = f"--config.{key}={shown(value)}"
        kind, about = type(value).__name__, about_key(key, comments)
        if setting := setting_of(config, key):
            kind, about = describe(setting), setting.about or about
        lines.append(f"{flag:<52} # {kind}{'; ' if about else ''}{about}")
    return "\n".join(lines)


def setting_of(config: dict[str, Any], key: str) -> schema.Setting | None:
    """The `schema.Setting` of a dotted key of the model or an attack, or None."""
    from advadapters.attacks import ATTACKS
    from advadapters.models import MODELS

    *path, name = key.split(".")
    tables = {("model",): MODELS, ("attacks",): ATTACKS, ("evaluation", "suites"): ATTACKS}
    table = tables.get(tuple(path)) or tables.get(tuple(path[:-1]))
    for part in path:
        config = config[part]
    owner: Any = table and table.get(config.get("name", ""))
    return schema.settings_of(owner).get(name) if owner else None


def describe(setting: schema.Setting) -> str:
    """ "int of at least 1", "linf, l2 or l1": what a setting may be."""
    if isinstance(setting.allowed, schema.OneOf):
        *words, last = [word or "''" for word in setting.allowed.words]
        return f"{', '.join(words)} or {last}" if words else last
    bounds = " and ".join(schema.bounds(setting.allowed))
    return " ".join(filter(None, [setting.kind.__name__, bounds]))


def shown(value: Any) -> str:
    """A value as a shell takes it."""
    return shlex.quote(value if isinstance(value, str) else repr(value))


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all values of nested dicts; empty sections are values."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def about_key(key: str, comments: dict[str, str]) -> str:
    """What is written about a dotted key, "" if nothing."""
    parts = key.replace("evaluation.suites.", "attacks.").split(".")
    for end in (len(parts), len(parts) - 1):  # of free names below a key, what the key is
        for star in (None, 1, 2):
            names = ["*" if i == star else part for i, part in enumerate(parts[:end])]
            if comment_of := comments.get(".".join(names)):
                return comment_of
    return ""


def comments_of(source: str) -> dict[str, str]:
    """{dotted key: comment} of the keywords in the functions of `defaults`.

    A comment is at the end of the keyword's line, or on lines of its own before it.
    """
    lines = source.splitlines()
    at_end, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            stands_alone = not lines[row - 1][:column].strip()
            (alone if stands_alone else at_end)[row] = token.string.lstrip("# ")
    comment_of = {}
    for node in ast.parse(source).body:
        prefix = SECTIONS.get(name_of(node))
        if prefix is not None:
            for path, row in keywords(node):
                above = []
                while (row - 1 - len(above)) in alone:
                    above.insert(0, alone[row - 1 - len(above)])
                comment = " ".join([*above, *filter(None, [at_end.get(row)])])
                if comment:
                    comment_of[".".join(filter(None, [prefix, *path]))] = comment
    return comment_of


def name_of(node: ast.AST) -> str:
    """The name of a function, or of what is assigned, at the top of a file."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return getattr(node, "name", "")


def keywords(
    node: ast.AST, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], int]]:
    """(path of keywords, line) of every keyword of the calls below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.keyword) and child.arg:
            yield (*path, child.arg), child.lineno
            yield from keywords(child, (*path, child.arg))
        else:
            yield from keywords(child, path)
