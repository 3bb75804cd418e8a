"""Networks conditioned on lambda on the command line: sweeps, widths, extraction."""

import json
import pathlib

import pytest
import untrained

from advadapters import checkpoints, trees
from advadapters.__main__ import main

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
QUICK = [
    "--config.model.name=preact_resnet",
    "--config.model.size=8x1",
    "--config.epochs=0.2",
    "--config.batch_size=64",
    "--config.oat.widths=(0.5,1.0)",
    "--config.oat.lambdas=(0.0,0.1,1.0)",
    "--config.data.validation=0.25",
    "--config.validate_every=100",
    "--config.attacks.linf.steps=1",
    "--config.evaluation.suites.pgd20_linf.steps=1",
    "--config.evaluation.batch_size=360",
]


@pytest.fixture(scope="module")
def oats(tmp_path_factory):
    """A finished run over three widths."""
    workdir = tmp_path_factory.mktemp("run") / "oats"
    argv = [f"--config={CONFIGS}/digits_oat.py:oats", *QUICK, f"--workdir={workdir}"]
    assert main(["train", *argv]) == 0
    return workdir


def parameters(workdir):
    """How many numbers a checkpoint has of the network, norms of all domains included."""
    with checkpoints.Checkpoints(workdir / "checkpoints", read_only=True) as saved:
        return trees.count(saved.restore_raw(saved.latest())["variables"])


def rows_of(file):
    return json.loads(file.read_text())


def need_same(found, whole):
    """Rows of the same network in two programs, which round each in its way: an attack may
    take the other side of a tie.
    """
    for one, other in zip(found, whole, strict=True):
        assert abs(one["correct"] - other["correct"]) <= (one["suite"] != "clean")


def test_every_lambda_and_width_is_evaluated(oats):
    rows = rows_of(oats / "results.json")
    seen = {(row["lambda"], row["width"], row["suite"]) for row in rows}
    lambdas, widths = (0.0, 0.1, 1.0), (0.5, 1.0)
    suites = ("clean", "pgd20_linf")
    assert seen == {(lam, w, s) for lam in lambdas for w in widths for s in suites}
    flops = {row["width"]: row["flops"] for row in rows}
    # Convolutions inside the network go with the square of the width.
    assert flops[0.5] / flops[1.0] == pytest.approx(0.25, abs=0.08)
    for row in rows:
        domain = f"{'robust' if row['lambda'] else 'clean'}{row['width']:g}"
        assert row["mixture"][domain] == 1.0 == sum(row["mixture"].values())
    text = (oats / "results.md").read_text()
    assert "| lambda 0.1, width 0.5 |" in text and "MFLOP per image" in text
    assert (oats / "tradeoff.png").read_bytes()[:4] == b"\x89PNG"
    log = [json.loads(line) for line in (oats / "metrics.jsonl").read_text().splitlines()]
    assert "validation/lambda0.1/width0.5/attacked" in log[-1]


def test_a_sweep_of_some(oats, capsys):
    argv = [f"--workdir={oats}", "--lambda=0,1", "--width=0.5", "--suite=pgd20_linf"]
    assert main(["evaluate", *argv]) == 0
    rows = rows_of(oats / "evaluation.json")
    assert {(row["lambda"], row["width"]) for row in rows} == {(0.0, 0.5), (1.0, 0.5)}
    whole = rows_of(oats / "results.json")
    for row in rows:
        same = [r for r in whole if all(
            r[key] == row[key] for key in ("lambda", "width", "suite"))]  # fmt: skip
        assert [row["correct"]] == [r["correct"] for r in same]


def test_a_width_taken_out_is_an_ordinary_smaller_run(oats, tmp_path, capsys):
    small = tmp_path / "small"
    argv = [f"--workdir={oats}", f"--output={small}", "--width=0.5"]
    assert main(["extract", *argv]) == 0
    assert main(["evaluate", f"--workdir={small}"]) == 0
    whole = [row for row in rows_of(oats / "results.json") if row["width"] == 0.5]
    found = rows_of(small / "evaluation.json")
    need_same(found, whole)
    assert not any("width" in row for row in found)
    assert parameters(small) < parameters(oats) / 2
    assert main(["extract", *argv]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb, argv, told",
    [
        ("evaluate", ["--lambda=1.5"], "--lambda must be within 0 and 1, got [1.5]"),
        ("evaluate", ["--lambda=0.15"], "encoding has no row for [0.15]; it has (0.0, 0.1"),
        ("evaluate", ["--lambda=x"], "--lambda must be numbers like 0,0.3, got 'x'"),
        ("evaluate", ["--width=0.6"], "--width: [0.6] was not trained; there are: (0.5"),
        ("evaluate", ["--mixture=clean1=1"], "goes by --lambda=... and --width=..."),
        ("extract", ["--width=0.6", "--output=NEW"], "[0.6] was not trained"),
        ("extract", ["--width=0.5,1", "--output=NEW"], "must be one number, got '0.5,1'"),
        ("extract", ["--mixture=clean1=1", "--output=NEW"], "goes by lambda"),
        ("extract", ["--output=NEW"], "give either --mixture=... or --width=..."),
    ],
)
def test_bad_input(oats, tmp_path, monkeypatch, capsys, verb, argv, told):
    monkeypatch.chdir(tmp_path)
    assert main([verb, f"--workdir={oats}", *argv]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_soup_taken_out_is_an_ordinary_network(tmp_path):
    workdir, soup = tmp_path / "run", tmp_path / "soup"
    flags = ["--config.model.size=16x1x32x2", "--config.evaluation.batch_size=360",
             "--config.evaluation.suites.pgd20_linf.steps=1"]  # fmt: skip
    untrained.write(workdir, "digits.py", "cotrain", flags)
    mixture = "--mixture=clean=0.3,linf=0.7"
    assert main(["evaluate", f"--workdir={workdir}", mixture]) == 0
    argv = [f"--workdir={workdir}", f"--output={soup}", mixture]
    assert main(["extract", *argv]) == 0
    assert main(["evaluate", f"--workdir={soup}"]) == 0
    whole, found = (rows_of(folder / "evaluation.json") for folder in (workdir, soup))
    need_same(found, whole)
