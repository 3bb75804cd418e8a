"""Flags of verbs, and overrides of configs: sections whose keys are free names."""

import dataclasses
import importlib
import pathlib
from typing import Annotated

import pytest

from advadapters import configs, flags
from advadapters.__main__ import VERBS
from advadapters.errors import UsageError
from advadapters.schema import Between, OneOf

DIGITS = "--config=" + str(pathlib.Path(__file__).parents[1] / "configs" / "digits.py")
ATTACK = '{"name": "pgd", "norm": "linf"}'


def read(*argv):
    """The config with these overrides, as a dict."""
    return configs.parse([DIGITS, *argv], {})[0].to_dict()


def test_mixtures_are_set_by_domain():
    argv = ("--config.start.mixture.night mode=1/4", "--config.start.mixture.a.b=0.75")
    assert read(*argv)["start"]["mixture"] == {"night mode": 0.25, "a.b": 0.75}
    own = read(
        "--config.views.linf.mixture.clean=0.5", "--config.views.linf.mixture.linf=.5"
    )
    assert own["views"]["linf"]["mixture"] == {"clean": 0.5, "linf": 0.5}
    losses = read("--config.views.linf.losses.kl=6")["views"]["linf"]["losses"]
    assert losses == {"cross_entropy": 1.0, "kl": 6.0}


def test_the_last_word_counts():
    argv = ["--config.start.mixture.b=1", "--config.start.mixture={'a': 1.0}"]
    assert read(*argv)["start"]["mixture"] == {"a": 1.0}
    assert read(*reversed(argv))["start"]["mixture"] == {"a": 1.0, "b": 1.0}


def test_attacks_and_suites_are_added():
    found = read(
        f"--config.evaluation.suites.mine={ATTACK}",
        "--config.evaluation.suites.pgd20_linf.eps=8/255",
        f"--config.attacks.second={ATTACK}",
    )
    assert found["evaluation"]["suites"]["mine"] == {"name": "pgd", "norm": "linf"}
    assert found["evaluation"]["suites"]["pgd20_linf"]["eps"] == 8 / 255
    assert list(found["attacks"]) == ["linf", "second"]


@pytest.mark.parametrize(
    "argument, told",
    [
        ("start.mixture.clean=half", "'half' is no number, no fraction and no section"),
        ("start.mixture.clean=1/0", "'1/0' is no number"),
        ("start.mixture=clean=1", "'clean=1' is no number, no fraction and no section"),
        ("start.mixture=3", "--config.start.mixture=3 must be a section like {...}"),
        ("views.l3.mixture.clean=1", "no such config key: 'l3' in --config.views.l3.m"),
        ("start.mixtur.clean=1", 'Did you mean "mixture"'),
        ("evaluation.suites.mine={", "'{' is no number"),
    ],
)
def test_mistakes_are_one_line(argument, told):
    with pytest.raises(UsageError) as error:
        read(f"--config.{argument}")
    assert told in str(error.value) and "\n" not in str(error.value)


BROKEN = {
    "syntax": (
        "def get_config(name=''):\n    return (\n",
        "line 2: SyntaxError: '.' was never",
    ),
    "import": ("import not_there\n", "line 1: ModuleNotFoundError: No module named 'not_t"),
    "name": (
        "def get_config(name=''):\n    return x\n",
        "line 2: NameError: name 'x' is not",
    ),
    "type": (
        "from advadapters import defaults\ndef get_config(name=''):\n"
        "    c = defaults.config()\n    c.epochs = 'ten'\n    return c\n",
        "line 4: TypeError: .*'epochs'.* ten is of original type <class 'str'>",
    ),
    "default": ("def get_config(name):\n    return 1\n", "a.py: .*missing 1 required pos"),
    "nothing": ("x = 1\n", r"a.py defines no get_config\(variant\)"),
    "dict": (
        "def get_config(name=''):\n    return {}\n",
        "get_config must return a ConfigDict, .* got dict",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_in_a_config_file_is_said_with_its_line(case, tmp_path):
    text, message = BROKEN[case]
    file = tmp_path / "a.py"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        configs.parse([f"--config={file}"], {})
    assert "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """One flag of each kind."""

    file: Annotated[str, flags.Shown("FILE"), "must be given"]
    config: Annotated[flags.ConfigFile | None, "changes the file"] = None
    count: Annotated[int | None, Between(low=1), flags.Shown("5"), "how many"] = None
    share: Annotated[float, Between(0.0, 1.0), "of all"] = 0.5
    kind: Annotated[str, OneOf(("small", "large")), "which size"] = "small"
    names: Annotated[tuple[str, ...], flags.Separated(";", "name"), "some"] = ()
    sides: Annotated[tuple[int, ...], flags.Shown("8,9"), "of images"] = ()
    lambda_: Annotated[tuple[float, ...], flags.Shown("0,0.5"), "of the network"] = ()
    plain: Annotated[bool, "without colors"] = False


def test_flags_are_values_and_can_be_written_again():
    argv = ["--file", "a b", "--count=3", "--share=1/4", "--kind=large", "--names=a=1;b"]
    argv += ["--sides=8,16", "--lambda=0,1/3", "--plain", DIGITS, "--config.epochs", "2"]
    read_ = flags.read(Flags, argv)
    assert read_ == Flags(
        file="a b",
        config=flags.ConfigFile((DIGITS, "--config.epochs", "2")),
        count=3,
        share=0.25,
        kind="large",
        names=("a=1", "b"),
        sides=(8, 16),
        lambda_=(0.0, 1 / 3),
        plain=True,
    )
    assert read_.config is not None
    assert read_.config.read()["epochs"] == 2.0 and read_.config.keys == {"epochs"}
    assert read_.config.read("nominal")["domains"] == ("clean",)
    assert read_.config.path == DIGITS.removeprefix("--config=")
    again = flags.arguments(read_)
    assert flags.read(Flags, again) == read_
    assert "--share=0.25" in again and "--lambda=0.0,0.3333333333333333" in again
    # Defaults are not told, and empty texts are defaults.
    assert flags.command("verb", Flags(file="x y")) == "advadapters verb '--file=x y'"
    assert flags.read(Flags, ["--file=x", "--count=", "--names="]) == Flags(file="x")


def test_flags_of_values():
    given = flags.of_values(Flags, dict(file="x", sides=8, lambda_=[0, 1], count=None))
    assert given == Flags(file="x", sides=(8,), lambda_=(0.0, 1.0))
    for values, message in (
        (dict(file="x", side=8), "unknown flag of Flags 'side'; there are: .*'sides'"),
        (dict(file="x", count=2.5), "--count must be a positive whole number"),
        (dict(file="x", kind="lage"), "unknown --kind 'lage'"),
    ):
        with pytest.raises(UsageError, match=message):
            flags.of_values(Flags, values)


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "--file=... is missing"),
        (["--count=0"], "--count must be a positive whole number, got '0'"),
        (["--count=2.5"], "--count must be a positive whole number, got '2.5'"),
        (["--share=2"], "--share must be a number of at least 0 and of at most 1, got '2'"),
        (["--share=1/0"], "--share must be a number of at least 0 and of at most 1"),
        (["--kind=lage"], "unknown --kind 'lage'; there are: small, large; did you mean"),
        (["--names=;"], "--names=';' names no name"),
        (["--sides=8,x"], "--sides must be whole numbers, got '8,x'"),
        (["--lambda=nan"], "--lambda must be numbers like 0,0.5, got 'nan'"),
        (["--plain=maybe"], "--plain must be true or false, got 'maybe'"),
        (["--conut=3"], "Did you mean: count"),
        (["--confg=digits"], "Did you mean: config"),
        (["three"], "unexpected argument 'three'"),
        (["--config.epochs=3"], "--config=... is missing"),
    ],
)
def test_flags_that_cannot_be(argv, message):
    given = argv and ["--file=x", *argv]
    with pytest.raises(UsageError) as caught:
        flags.read(Flags, given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_help_tells_every_flag_once():
    text = flags.describe("usage: x\n\n{flags}\n", Flags)
    assert text.startswith("usage: x\n\n  --file=FILE                    must be given\n")
    assert "  --count=5                      how many\n" in text
    assert "  --kind=small                   which size (default: small)\n" in text
    assert "  --plain                        without colors\n" in text
    assert text.endswith("  --config.KEY=VALUE             changes the file")


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_of_a_verb_is_explained_in_its_help(verb):
    module = importlib.import_module(f"advadapters.commands.{verb}")
    known = flags.flags_of(flags.taken_by(module.main))
    assert all(flag.about for flag in known.values())
    text = flags.describe(module.__doc__, flags.taken_by(module.main))
    assert "{flags}" not in text and max(map(len, text.splitlines())) <= 92
    for flag in known.values():
        assert f"\n  --{flag.name}" in text
