"""The pages: what they link to and name is there."""

import contextlib
import importlib.util
import io
import pathlib
import re
import shlex

import pytest

from advadapters import configs
from advadapters.__main__ import VERBS, main

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "BUILD.md", *(ROOT / "docs").rglob("*.md")],
    key=str,
)
# Scripts that tables cite with the commit that had them.
PAST = {"tests/benchmarks/autoattack.py", "tests/benchmarks/train_step.py"}
FOREIGN = ("file_format",)  # flags of other programs: of TFDS
# Keys of the user's own in sections whose keys are free names.
FREE = re.compile(r"(start\.mixture|views\.\w+\.(mixture|losses)|evaluation\.suites)\.\w+")


def named(page):
    return str(page.relative_to(ROOT))


def text_of(page):
    """The page, included files too."""
    text = page.read_text()
    for name in re.findall(r"```\{include\} (\S+)", text):
        text += (page.parent / name).read_text()
    return text


def anchors(page):
    """The headings of a page as links name them."""
    prose = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}


def snippets(page):
    """What a page shows as code: inline, and the lines of listings that are no Python."""
    text = page.read_text()
    for language, listing in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL):
        if language != "python":
            yield from re.sub(r"\\\n\s*", " ", listing).splitlines()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for code in re.findall(r"`([^`]+)`", prose):
        yield " ".join(code.split())


def commands(page):
    """(verb, the rest of the line) of each command of the program."""
    for code in snippets(page):
        found = re.findall(r"(?<!import )(?<![\w.-])advadapters ([a-z]\w*)([^#]*)", code)
        yield from ((verb, rest.split(" && ")[0]) for verb, rest in found)


@pytest.fixture(scope="module")
def helps():
    """{verb: the text of its --help}, and of all verbs under ""."""
    found = {}
    for verb in ("", *VERBS):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main([verb, "--help"] if verb else ["--help"]) == 0
        found[verb] = out.getvalue()
    return found


@pytest.fixture(scope="module")
def keys():
    """The paths of all keys that a config of the package has, sections included."""
    found = set()

    def walk(section, path):
        for key, value in section.items():
            found.add(f"{path}{key}")
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")

    for file in (ROOT / "configs").rglob("*.py"):
        for name in variants(file):
            walk(load(file)(name).to_dict(), "")
    return found


def load(file):
    """The function get_config of a file."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def variants(file):
    """The names that get_config takes; the empty one is the first."""
    from advadapters import defaults

    spec = load(file).__globals__
    return ["", *spec.get("VARIANTS", defaults.METHODS)]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_point_to_what_is_there(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(<?([^)>\s]+)", prose):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_are_there(page):
    text = page.read_text()
    files = re.findall(
        r"(?<![\w/.-])((?:advadapters|tests|configs|launch|docs)/[\w/]+\.\w+)", text
    )
    for name in set(files) - PAST:
        assert (ROOT / name).exists(), name
    for name, chosen in re.findall(r"configs/([\w/]+)\.py:(\w+)", text):
        load(ROOT / "configs" / f"{name}.py")(chosen)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_verbs_and_flags_that_are_named_are_there(page, helps, keys):
    for verb, rest in commands(page):
        assert verb in VERBS, verb
        allowed = helps[verb] + helps[""]
        for flag in re.findall(r"(?<!\S)--(\w+)", rest):
            assert flag in ("help", "config") or f"--{flag}" in allowed, (verb, flag)
    scripts = (ROOT / "tests" / "benchmarks").rglob("*.py")
    everything = "".join([*helps.values(), *(file.read_text() for file in scripts)])
    for code in snippets(page):
        flag = re.match(r"--(\w+)(?![\w-])", code)
        if flag and flag[1] not in FOREIGN:
            assert re.search(rf"--{flag[1]}\b", everything), code
        for key in re.findall(r"config\.([a-z]\w*(?:\.\w+)*)\b(?![(/])", code):
            if not key.endswith((".py", ".json")) and key not in ("json", "py"):
                assert key in keys or FREE.fullmatch(key), code


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_overrides_that_are_shown_are_taken(page):
    for verb, rest in commands(page):
        if verb not in ("train", "season", "study", "dryrun"):
            continue
        words = shlex.split(rest)
        found = [word for word in words if word.startswith("--config")]
        if found and "..." not in rest and not re.match(r"--config=[A-Z]", found[0]):
            configs.parse(found, {})
