"""Imports go down the floors only; functions stay short."""

import ast
import pathlib

from advadapters.__main__ import VERBS

PACKAGE = pathlib.Path(__file__).parents[1] / "advadapters"
FLOORS = [
    {"shapes"},
    {
        "digests",
        "errors",
        "files",
        "intervals",
        "markdown",
        "meshes",
        "papers",
        "pixels",
        "rng",
        "trees",
    },
    {
        "balls",
        "losses",
        "plugins",
        "configs",
        "convolutions",
        "costs",
        "hlo",
        "hosts",
        "precision",
        "schema",
        "sections",
    },
    {"models", "adapters", "attacks", "data", "flags", "soups", "profiles"},
    {"networks"},
    {"training", "evaluation", "checkpoints", "weights"},
    {"builders", "defaults", "exports"},
    {"runs"},
    {"commands"},
    {"__main__", "front"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS, start=-1) for name in names}


def modules():
    """(part of the package, path, syntax tree) of every file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part != "__init__":
            yield part, path, ast.parse(path.read_text())


def imported(tree):
    """The parts of the package that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "advadapters"
        ):
            below = node.module.split(".")[1:]
            yield from below[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("advadapters."):
                    yield alias.name.split(".")[1]


def test_every_part_has_a_floor():
    assert {part for part, _, _ in modules()} == FLOOR.keys()


def test_imports_go_down():
    for part, path, tree in modules():
        for other in imported(tree):
            below = FLOOR.get(other, -2) < FLOOR[part]
            assert other == part or below, f"{path} imports {other}"


def test_no_verb_is_used_by_another_module():
    """What verbs do together is in the rooms below, and their folder holds verbs only."""
    files = {path.stem for path in (PACKAGE / "commands").glob("*.py")}
    assert files == {"__init__", *VERBS}
    for _, path, tree in modules():
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                whole = node.module or ""
                names |= {whole, *(f"{whole}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        verbs = {name for name in VERBS if f"advadapters.commands.{name}" in names}
        assert not verbs, f"{path} imports the verbs {verbs}"


def test_functions_are_short():
    for _, path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"


def test_public_functions_say_what_they_do():
    for _, path, tree in modules():
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                words = ast.get_docstring(node) or node.name.startswith(
                    ("step_", "sample_", "rows_")
                )
                assert words, f"{path}: {node.name} has no docstring"


def loaded_by(path):
    """The modules of the package that a module imports when it is itself imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "advadapters"
        ):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if file_of(inner) else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("advadapters."))


def file_of(module):
    """The file of a module or a folder's __init__, None if there is none."""
    place = PACKAGE.parent.joinpath(*module.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def test_no_import_goes_in_a_circle():
    """Within a room too, whichever of its modules is imported first."""
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        graph[".".join(parts).removesuffix(".__init__")] = set(loaded_by(path))
    done = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        if name != "advadapters":  # which imports lazily
            visit(name, [])
