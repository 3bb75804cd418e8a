"""Files of adapters as a user has them: written by `train`, read by `evaluate`."""

import functools
import importlib.machinery
import json
import pathlib
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained

from advadapters import attacks, builders, defaults
from advadapters.__main__ import main
from advadapters.errors import UsageError
from advadapters.runs import opening, training
from advadapters.training import states

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
LORA = "digits_lora.py"
SUITE = {"pgd2": defaults.evaluation_pgd("linf", 0.12, steps=2)}


def opened(workdir, file, variant="", **changes):
    """A run of a shrunken config, three steps of 512 images."""
    path = str(CONFIGS / file)
    config = importlib.machinery.SourceFileLoader("config", path).load_module()
    config = config.get_config(variant)
    config.update(batch_size=512, epochs=1.0)
    config.model.size = "32x1x128x2"
    config.optimizer.warmup_epochs = 0.0
    for attack in config.attacks:
        config.attacks[attack].steps = 2
    config.update_from_flattened_dict(changes)
    config = config.to_dict()
    config["evaluation"] |= {"suites": SUITE, "batch_size": 360}
    return opening.open_run(config, workdir)


def train(*arguments, **changes):
    """A finished run."""
    assert training.train(opened(*arguments, **changes)) == 0


def adapters_alone(*arguments, **changes):
    """A run of which there is nothing but the adapters that it would start from."""
    run = opened(*arguments, **changes)
    make = jax.jit(functools.partial(builders.initial_state, run.run))
    training.write_adapters(run, states.averaged(make()))


def moved(old, new):
    """A run like a finished one whose adapters are others."""
    run = opening.open_trained(old)
    variables, _ = opening.restore_variables(run, "latest")
    shared = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.cos(leaf), variables["shared"])
    variables = variables | {"shared": shared}
    training.write_adapters(
        opening.write_run(run.config, new, lambda _: variables), variables
    )
    assert main(["evaluate", f"--workdir={new}"]) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A backbone, two fine-tunings of it, one of it at another scale, and another's."""
    root = tmp_path_factory.mktemp("adapters")
    flags = ["--config.model.size=32x1x128x2", "--config.evaluation.suites={}"]
    untrained.write(root / "backbone", "digits.py", "nominal", flags)
    start = {"start.workdir": str(root / "backbone")}
    train(root / "first", LORA, **start)
    moved(root / "first", root / "second")
    adapters_alone(root / "third", LORA, seed=1, **{"start.workdir": ""})
    shutil.copytree(root / "first", root / "scaled")
    config = json.loads((root / "scaled" / "config.json").read_text())
    config["model"]["added"]["lora"]["scale"] = 2.0
    (root / "scaled" / "config.json").write_text(json.dumps(config))
    return root


def counts(file):
    """{(suite, mixture): correct} of a file of rows."""
    return {
        (row["suite"], str(row["mixture"])): row["correct"]
        for row in json.loads(file.read_text())
    }


def evaluate(runs, name, adapters, *argv):
    """The exit code of evaluating a run with the adapters of another."""
    file = runs / adapters / "adapters.npz"
    return main(["evaluate", f"--workdir={runs / name}", f"--adapters={file}", *argv])


def test_another_runs_adapters_give_that_runs_accuracies(runs, capsys):
    first = counts(runs / "first" / "results.json")
    second = counts(runs / "second" / "evaluation.json")
    assert first != second
    assert evaluate(runs, "first", "second") == 0
    assert f"with the adapters of {runs / 'second'}" in capsys.readouterr().out
    assert counts(runs / "first" / "evaluation.json") == second
    rows = json.loads((runs / "first" / "evaluation.json").read_text())
    assert {row["adapters"] for row in rows} == {str(runs / "second" / "adapters.npz")}
    assert evaluate(runs, "first", "first") == 0
    assert counts(runs / "first" / "evaluation.json") == first


def test_autoattack_of_two_files_has_two_journals(runs, monkeypatch):
    journals = []

    def autoattack(*_, resume, **__):
        journals.append(resume.name)
        raise UsageError("enough")

    monkeypatch.setattr(attacks, "autoattack", autoattack)
    argv = ("--suite=autoattack", "--eps=1/50", "--examples=8", "--mixture=linf=1")
    for name in ("first", "second", "first"):
        assert evaluate(runs, "first", name, *argv) == 2
    first, second, again = journals
    assert first == again != second and "-adapters-" in first


def test_the_file_is_small_and_said_to_be(runs, capsys):
    file = runs / "first" / "adapters.npz"
    saved = runs / "first" / "checkpoints"
    whole = sum(p.stat().st_size for p in saved.rglob("*") if p.is_file())
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
    assert file.stat().st_size < min(30_000, whole / 3)
    assert "shared/head/kernel.npy" in names
    assert not any(name.startswith("frozen") for name in names)
    assert not list((runs / "first").glob("*.part"))
    (runs / "first" / "results.json").unlink()  # as if killed before it was written
    before = file.read_bytes()
    file.unlink()
    train(runs / "first", LORA, **{"start.workdir": str(runs / "backbone")})
    assert f"adapters.npz ({len(before) / 1e3:,.0f} kB; " in capsys.readouterr().out
    with np.load(file) as new:
        assert {f"{name}.npy" for name in new.files} == names
    assert not (runs / "backbone" / "adapters.npz").exists()


REFUSED = {
    "another backbone": ("first", "third", "was trained on another backbone"),
    "another scale": ("scaled", "first", "was trained with model.added {'lora'"),
    "nothing frozen": ("backbone", "first", "nothing is frozen in"),
    "no such file": ("first", "backbone", "cannot read adapters from"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(name, runs, capsys):
    workdir, file, message = REFUSED[name]
    before = sorted(p.name for p in (runs / workdir).iterdir())
    assert evaluate(runs, workdir, file) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1 and message in out.err, out
    assert sorted(p.name for p in (runs / workdir).iterdir()) == before
