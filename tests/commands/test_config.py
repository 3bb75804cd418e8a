"""`advadapters config`: what it prints can be given back."""

import json
import shlex

import pytest

from advadapters import configs
from advadapters.__main__ import main
from advadapters.commands.config import comments_of


def test_every_packaged_config_is_listed(capsys):
    assert main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(configs.packaged())
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    "name", ["digits", "digits_oat", "digits_lora", "cifar10_vit:four"]
)
def test_the_printed_flags_make_the_same_config(name, capsys):
    assert main(["config", f"--config={name}", "--config.epochs=7"]) == 0
    text = capsys.readouterr().out
    flags = [shlex.split(line, comments=True) for line in text.splitlines()]
    assert all(len(flag) == 1 for flag in flags)
    again, _ = configs.parse([f"--config={name}", *(flag[0] for flag in flags)], {})
    assert main(["config", f"--config={name}", "--config.epochs=7", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(json.dumps(again.to_dict())) == printed
    assert printed["epochs"] == 7.0


def test_comments_stand_at_their_keys(capsys):
    source = """
def config():
    return dict(
        seed=0,
        # Two lines
        # above it.
        epochs=1.0,
        data=dict(pad=0),  # pixels
    )

def view():
    return dict(alarm="")  # an attack
"""
    assert comments_of(source) == {
        "epochs": "Two lines above it.",
        "data": "pixels",
        "data.pad": "pixels",
        "views.*.alarm": "an attack",
    }
    assert main(["config", "--config=digits"]) == 0
    text = capsys.readouterr().out
    assert "--config.data.pad=0" in text and "# int; pixels of zero padding" in text
    assert main(["config", "--nonsense"]) == 2
