"""An experiment from its config file to the ledger: killed, resumed, stopped in time."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from advadapters import hosts
from advadapters.__main__ import main
from advadapters.commands import study
from advadapters.errors import UsageError
from advadapters.evaluation import ledger
from advadapters.flags import ConfigFile
from advadapters.runs import experiments, predictions, workdir

CONFIG = """
from advadapters import defaults

VARIANTS = ("nominal", "linf")


def get_config(name=""):
    config = defaults.digits(defaults.model("vit", "16x1x32x2", patch=4))
    config.epochs = 1.0
    config.checkpoint_every = 4
    config.data.validation = 0.1
    config.data.train_images = 1280
    attacks = {"linf": defaults.pgd("linf", 0.12, steps=1)}
    if name == "linf":
        config.update(defaults.method("adversarial", attacks))
        config.start.workdir = "nominal"  # that of the same seed
    else:
        config.update(defaults.method("nominal", attacks))
    config.evaluation.suites = {"pgd2": defaults.evaluation_pgd("linf", 0.12, steps=2)}
    return config


CLAIM = dict(sentence="S", place="Table 1")
AA = "aa:autoattack_linf_0.12"
EXPERIMENT = dict(
    paper="P",
    data="digits",
    variants=VARIANTS,
    seeds=2,
    soups={"both": dict(of=VARIANTS, weights=(1.0, 0.5, 0.0))},
    evaluations={"aa": {"linf": dict(suite="autoattack:apgd-ce", eps=0.12, steps=2,
                                     examples=24)}},
    chosen_on=100,
    at_scale="one hour, by a dry run",
    claims=(
        CLAIM | dict(id="more", test="more",
                     rows=((("linf", "", "pgd2"), ("nominal", "", "pgd2")),)),
        CLAIM | dict(id="near", test="within", margin=0.9,
                     rows=((("linf", "", "clean"), ("nominal", "", "clean")),)),
        CLAIM | dict(id="front", test="front", margin=0.01, variant="both",
                     networks=("nominal=1", "nominal=0.5,linf=0.5", "linf=1"),
                     suites=("clean", "pgd2")),
        CLAIM | dict(id="weaker", test="more", margin=-1.01,
                     rows=((("linf", "", AA), ("linf", "", "aa:clean")),)),
        CLAIM | dict(id="chosen", test="any",
                     rows=((("both", "best", "pgd2"), ("both", "best mode", "pgd2")),)),
    ),
)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, argv) of an experiment that was killed in its second run, and gone on."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "tiny.py").write_text(CONFIG)
    argv = [f"--config={folder}/tiny.py", f"--workdir={folder}/runs"]
    command = [sys.executable, "-m", "advadapters", "study", *argv]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    second = folder / "runs" / "linf-seed0" / "checkpoints"
    while process.poll() is None and not list(second.glob("[0-9]*")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = (folder / "runs" / "nominal-seed0" / "results.npz").stat().st_mtime_ns
    argv.append(f"--ledger={folder}/docs/ledger.jsonl")
    assert main(["study", *argv]) == 0
    after = (folder / "runs" / "nominal-seed0" / "results.npz").stat().st_mtime_ns
    assert before == after
    return folder, argv


def results(folder, name, suite, first=None):
    """Accuracies of both seeds; first: the weight of the mixture's first domain."""
    found = []
    for seed in (0, 1):
        rows = json.loads((folder / "runs" / f"{name}-seed{seed}/results.json").read_text())
        found += [
            row["value"] for row in rows if row["suite"] == suite
            and first in (None, next(iter(row["mixture"].values())))
        ]  # fmt: skip
    return found


def test_the_ledger_says_what_the_runs_say(finished):
    folder, argv = finished
    rows = ledger.load((folder / "runs" / "ledger.jsonl").read_text())
    assert rows == ledger.load((folder / "docs" / "ledger.jsonl").read_text())
    page = (folder / "docs" / "evidence.md").read_text()
    assert page == ledger.evidence_page(rows) and page.count("| S | Table 1 |") == 5
    assert "\nAt the paper's size: one hour, by a dry run\n" in page
    found = {row["id"]: row for row in rows}
    assert list(found) == ["more", "near", "front", "weaker", "chosen"]
    for name, one in zip(("linf", "nominal"), found["more"]["rows"], strict=True):
        assert one["row"] == [name, "", "pgd2"]
        assert one["values"] == results(folder, name, "pgd2")
    middle = found["front"]["rows"][1]
    assert middle["row"] == ["both", "nominal=0.5,linf=0.5", "clean"]
    assert middle["values"] == results(folder, "both", "clean", first=0.5)
    # The ends of the soup are the networks that it is made of.
    assert found["front"]["rows"][0]["values"] == results(folder, "nominal", "clean")
    assert [found[name]["verdict"] for name in ("near", "weaker")] == ["holds", "holds"]
    assert found["weaker"]["comparisons"][0]["images"] == 24
    assert found["chosen"]["comparisons"][0]["images"] == 260
    for row in rows:
        assert row["seeds"] == [0, 1] and row["cpu_seconds"] > 0
        assert row["command"].endswith("tiny.py --workdir=DIR")
        assert {"jax", "commit", "device", "date", "paper", "data"} <= row.keys()
    costs = json.loads((folder / "runs" / "costs.json").read_text())
    assert len(costs["linf-seed0"]) == 3  # until the kill, after it, AutoAttack
    assert len(costs["nominal-seed0"]) == 1
    used = sum(piece["cpu_seconds"] for name in ("linf", "nominal") for seed in (0, 1)
               for piece in costs[f"{name}-seed{seed}"])  # fmt: skip
    assert found["weaker"]["cpu_seconds"] == pytest.approx(used, abs=0.1)


def test_a_variant_starts_from_another_of_its_seed(finished):
    folder = finished[0] / "runs"
    for seed in (0, 1):
        start = workdir.read_config(folder / f"linf-seed{seed}")["start"]["workdir"]
        assert start == str(folder / f"nominal-seed{seed}")


def test_a_second_call_does_nothing_again(finished, capsys, monkeypatch):
    folder, argv = finished

    def refuse(request):
        raise AssertionError("evaluated again")

    monkeypatch.setattr(experiments, "evaluate", refuse)
    before = (folder / "runs" / "costs.json").read_text()
    assert main(["study", *argv]) == 0
    out = capsys.readouterr().out
    assert out.count("finished already") == 4 and "trained" not in out
    assert (folder / "runs" / "costs.json").read_text() == before


def test_autoattack_keeps_who_is_right(finished):
    folder = finished[0] / "runs" / "linf-seed0"
    _, found, commands, _ = predictions.read(folder, "aa")
    (command,) = {*commands.values()}
    rows = json.loads((folder / "aa.json").read_text())
    assert (
        list(found) == [row["suite"] for row in rows] and "--suite=autoattack:" in command
    )
    for row in rows:
        assert found[row["suite"]].right.sum() == row["correct"]
    assert np.all(found["clean"].right | ~found["autoattack_linf_0.12"].right)


def test_the_page_is_made_of_any_ledger(finished, tmp_path):
    rows = finished[0] / "docs" / "ledger.jsonl"
    argv = [f"--ledger={rows}", f"--output={tmp_path}/evidence.md"]
    assert main(["report", *argv]) == 0
    page = (finished[0] / "docs" / "evidence.md").read_text()
    assert (tmp_path / "evidence.md").read_text() == page


def test_it_stops_when_the_time_is_up_and_goes_on(finished, tmp_path, capsys):
    """Before the first run, after its second step; then all is done."""
    config = ConfigFile((f"--config={finished[0]}/tiny.py",))
    flags = study.Flags(config=config, workdir=str(tmp_path), variants=("nominal",))
    cases = study.read_cases(flags, None)
    asked = iter([True, False, False, True])

    def late():
        return next(asked, False)

    given = study.Study(cases, None, tmp_path, flags, late)
    for message in ("stopped before nominal, seed 0", "stopped: saved after step 2"):
        with pytest.raises(hosts.Preempted, match=message):
            study.run(given, 1, "")
    assert study.run(given, 1, "") == 0
    assert "resuming at step 2 of 10" in capsys.readouterr().out
    assert (tmp_path / "study.json").exists()


def test_experiments_that_cannot_be(finished, tmp_path, capsys):
    for old, new, message in (
        ("seeds=2", "seed=2", "EXPERIMENT.seeds is missing or unknown"),
        ('"clean"), ("nominal"', '"clear"), ("nominal"', "unknown suite of claim near"),
        ('rows=((("linf", "", AA)', 'rows=((("nominal", "", AA)', "evaluation 'aa'"),
        ("steps=2,", "stpes=2,", "unknown flag of Request 'stpes'"),
        ("examples=24", "examples=0", "--examples must be a positive whole number"),
        ("of=VARIANTS", 'of=("nominal", "l2")', "unknown variant in EXPERIMENT.soups"),
        ('(("linf", "", "pgd2")', '(("linf", "l2=1", "pgd2")', "no network 'l2=1' was"),
    ):
        assert old in CONFIG
        (tmp_path / "bad.py").write_text(CONFIG.replace(old, new))
        argv = [f"--config={tmp_path}/bad.py", f"--workdir={tmp_path}/runs"]
        assert main(["study", *argv]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
        assert not (tmp_path / "runs").exists()
    with pytest.raises(UsageError, match="cannot read the ledger"):
        experiments.read_ledger(tmp_path / "none.jsonl")
