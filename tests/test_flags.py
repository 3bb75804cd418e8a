"""Overrides of configs on the command line: sections whose keys are free names."""

import pathlib

import pytest

from advadapters import configs
from advadapters.errors import UsageError

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
