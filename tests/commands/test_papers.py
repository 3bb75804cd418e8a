"""`advadapters papers`: what the workflows of launch/reproduce cost, and what came out."""

import json
import os
import pathlib
import re

import pytest
import yaml

from advadapters import costs
from advadapters.__main__ import main
from advadapters.commands import papers
from advadapters.evaluation import rows
from advadapters.evaluation.rows import Row
from advadapters.flags import ConfigFile
from advadapters.networks import mixture_case

ROOT = pathlib.Path(__file__).parents[2]
PLAN = ROOT / "launch" / "reproduce" / "full.yaml"
TINY = "--config.model.size=16x1x32x2 --config.batch_size=16 --config.epochs=2.0"


@pytest.fixture
def plan(tmp_path):
    """A plan of two papers that share a training."""
    training = {
        name: {
            "config": f"{ROOT}/configs/digits.py:{name}",
            "images": [160, 20],
            "flags": TINY,
            "ours": f"all of {name}",
        }
        for name in ("nominal", "cotrain")
    }
    content = {"papers": {"one": ["*"], "two": ["nom*"]}, "trainings": training}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def cells(text, title):
    """The cells of the first line of a table that begins with this title."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_costs_are_those_of_matrix_products(plan, capsys, monkeypatch):
    chip = costs.CHIPS["v4"]._replace(flops=1e6)
    monkeypatch.setitem(costs.CHIPS, "v4", chip)
    assert main(["papers", f"--plan={plan}", "--chip=v4", "--count=2", "--seeds=3"]) == 0
    out = capsys.readouterr().out
    flops = {name: float(n) for name, n in re.findall(r"^(\w+): (\S+) FLOP$", out, re.M)}
    # A pass with gradients costs three forward passes; co-training has two, and PGD-3.
    assert float(cells(out, "nominal")[3]) == pytest.approx(3, rel=0.1)
    assert float(cells(out, "cotrain")[3]) == pytest.approx(6 + 3 * 2, rel=0.1)
    assert cells(out, "nominal")[1:3] == ["20", "16"] and "all of nominal" in out
    hours = 3 * flops["nominal"] / 1e6 / 3600
    assert float(cells(out, "nominal")[5]) == pytest.approx(hours, rel=0.05)
    assert float(cells(out, "nominal")[6]) == pytest.approx(hours / 2, rel=0.05)
    whole = cells(out, "**all papers, shared trainings once**")
    assert whole[4:] == cells(out, "**all of one**")[4:]
    assert cells(out, "**all of two**")[5] == cells(out, "nominal")[5]


def test_what_was_not_run_is_an_empty_row(plan, tmp_path, capsys):
    network = mixture_case(("clean",), (1.0,)).identity
    for seed, right in enumerate((40, 60)):
        folder = tmp_path / "runs" / f"seed{seed}" / "nominal"
        folder.mkdir(parents=True)
        row = Row.of_counts(network, "clean", right, 100, 7)
        (folder / "results.json").write_text(rows.dump([row]))
    row = Row.of_counts(network, "autoattack", 10, 100, 7)
    (folder / "attacks.json").write_text(rows.dump([row]))
    output = tmp_path / "table.md"
    flags = [f"--plan={plan}", f"--runs={tmp_path}/runs", f"--output={output}"]
    assert main(["papers", *flags]) == 0
    text = output.read_text()
    assert "written to" in capsys.readouterr().out
    line = cells(text, "nominal")
    assert line[2].startswith("50.0 ±") and line[3].startswith("10.0 (") and line[4] == "2"
    assert "digits.py:nominal" in line[5]
    assert cells(text, "cotrain")[1:5] == ["not run", "", "", "0"]


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, [], "cannot read"),
        ("[1, 2]", [], "as a plan with trainings and papers"),
        ("trainings: {}\npapers: {one: [x]}", [], "papers.one matches no training"),
        ("trainings: {x: {config: a}}\npapers: {one: [x]}", [], "two numbers of images"),
        ("trainings: {x: {}}\npapers: {one: [x]}", ["--paper=two"], "--paper"),
        ("trainings: {x: {}}\npapers: {one: [x]}", ["--chip=v9"], "--chip"),
    ],
)
def test_bad_plans_are_refused_in_a_line(content, flags, message, tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    if content:
        file.write_text(content)
    assert main(["papers", f"--plan={file}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_plan_of_the_papers_is_whole():
    plan = yaml.safe_load(PLAN.read_text())
    names, trainings = papers.read_plan(os.fspath(PLAN))
    assert {name for of_paper in names.values() for name in of_paper} == trainings.keys()
    files = {json.dumps(t["config"]) for t in trainings.values()}
    assert len(files) > 40
    for name, training in trainings.items():
        flags = f"--config={ROOT}/{training['config']}", *training.get("flags", "").split()
        config = ConfigFile(tuple(flags)).read()
        assert training.get("start", name) in trainings
        assert training.get("weights", "mae") in plan["weights"]
        # What starts from something is told from what.
        starts = [key for key in ("workdir", "weights") if config["start"][key]]
        keys = {"workdir": "start", "weights": "weights"}
        assert [keys[key] for key in starts] == [k for k in keys.values() if k in training]
    for paper in names:
        assert (PLAN.parent / f"{paper}.smk").exists()
