"""usage: advadapters config [--config=FILE[:VARIANT]] [--config.KEY=VALUE ...] [--json]

Prints the whole config that a file makes, overrides included, a line for each key: the flag
that sets it, its type, and what it is. Without --config it lists the config files that come
with the package, which --config=NAME finds from any folder.

  --json  the config as JSON, for machines
"""

import ast
import io
import json
import pathlib
import shlex
import tokenize

from advadapters import configs, defaults
from advadapters.errors import UsageError

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
    "pgd": "attacks.*",
    "view": "views.*",
    "oat": "oat",
    "twins_at": "twins",
}


def main(argv):
    """Returns the exit code."""
    if unknown := [a for a in argv if not a.lstrip("-").startswith("config")]:
        if unknown != ["--json"]:
            raise UsageError(f"unexpected argument {unknown[0]!r}; see --help")
        argv = [a for a in argv if a != "--json"]
    if not argv:
        print(listing())
        return 0
    config, _ = configs.parse(argv, {})
    whole = config.to_dict()
    print(json.dumps(whole, indent=2) if unknown else text(whole))
    return 0


def listing():
    """A line for each config that comes with the package: its name and what it is."""
    lines = []
    for name, path in configs.packaged().items():
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
        lines.append(f"{name:<28}{about[0] if about else ''}".rstrip())
    return "\n".join(lines)


def text(config):
    """The lines of a config, see the usage."""
    comments, lines = comments_of(pathlib.Path(defaults.__file__).read_text()), []
    for key, value in leaves(config):
        flag = f"--config.{key}={shown(value)}"
        about = about_key(key, comments)
        kind = type(value).__name__
        lines.append(f"{flag:<52} # {kind}{'; ' if about else ''}{about}")
    return "\n".join(lines)


def shown(value):
    """A value as a shell takes it."""
    return shlex.quote(value if isinstance(value, str) else repr(value))


def leaves(tree, prefix=""):
    """(dotted key, value) of all values of nested dicts; empty sections are values."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def about_key(key, comments):
    """What is written about a dotted key, "" if nothing."""
    key = key.replace("evaluation.suites.", "attacks.")
    parts = key.split(".")
    tries = [key, ".".join([parts[0], "*", *parts[2:]])]
    tries.append(".".join([*parts[:2], "*", *parts[3:]]))
    return next((comments[one] for one in tries if one in comments), "")


def comments_of(source):
    """{dotted key: comment} of the keywords in the functions of `defaults`.

    A comment is at the end of the keyword's line, or on lines of its own before it.
    """
    lines = source.splitlines()
    at_end, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            own = not lines[row - 1][:column].strip()
            (alone if own else at_end)[row] = token.string.lstrip("# ")
    found = {}
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef) and function.name in SECTIONS:
            prefix = SECTIONS[function.name]
            for path, row in keywords(function):
                above = []
                while (row - 1 - len(above)) in alone:
                    above.insert(0, alone[row - 1 - len(above)])
                comment = " ".join([*above, *filter(None, [at_end.get(row)])])
                if comment:
                    found[".".join(filter(None, [prefix, *path]))] = comment
    return found


def keywords(node, path=()):
    """(path of keywords, line) of every keyword of the calls below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.keyword) and child.arg:
            yield (*path, child.arg), child.lineno
            yield from keywords(child, (*path, child.arg))
        else:
            yield from keywords(child, path)
