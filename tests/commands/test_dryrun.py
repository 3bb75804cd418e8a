"""`advadapters dryrun` on fake devices; with TPUs' compiler by hand."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from advadapters import builders, costs, trees
from advadapters.__main__ import main
from advadapters.commands import dryrun
from advadapters.data import sources
from advadapters.errors import UsageError
from advadapters.flags import ConfigFile
from advadapters.runs import planning

ROOT = pathlib.Path(__file__).parents[2]
TINY = [
    f"--config={ROOT}/configs/digits.py",
    "--config.model.size=16x1x32x2",
    "--config.batch_size=16",
    "--config.evaluation.batch_size=16",
    "--config.epochs=2.0",
]
CONFIG = ConfigFile(tuple(TINY))


def test_what_a_step_costs(tmp_path, capsys):
    file = tmp_path / "costs.json"
    flags = ["--topology=cpu:8", "--images=160", f"--output={file}", "--sharding=fsdp"]
    flags += ["--parts=training"]
    assert main(["dryrun", *TINY, *flags]) == 0
    out = capsys.readouterr().out
    told = json.loads(file.read_text())
    (row,) = told["rows"]
    assert told["jax"] == jax.__version__
    assert row["steps"] == 2 * 160 // 16
    assert (row["devices"], row["batch_size"], row["sharding"]) == (8, 16, "fsdp")
    flops = row["flops"]
    # Two views of 3F and three steps of PGD of 2F, nearly: see tests/test_costs.py.
    assert flops["paper"] / flops["forward"] == pytest.approx(6 + 3 * 2, rel=0.1)
    assert flops["paper_once"] / flops["forward"] == pytest.approx(6 + 2, rel=0.1)
    assert flops["compiled"] - flops["compiled_once"] == pytest.approx(
        flops["paper"] - flops["paper_once"]
    )
    assert flops["compiled_once"] > flops["paper_once"]
    assert {sent["kind"] for sent in row["collectives"]} >= {"all-gather", "reduce-scatter"}
    assert sum(sent["in_loops"] for sent in row["collectives"]) == 0
    assert row["fits"] is None and "whether it fits is not known" in out
    assert "| cpu:8 | 16 | fsdp |" in out
    # An eighth of parameters, averages and two moments; a batch is next to nothing.
    config = CONFIG.read()
    run = dryrun.build("cpu:8", config)[1]
    size = trees.count(builders.abstract_state(run, dryrun.build("cpu:8", config)[2]))
    assert row["memory"]["arguments"] == pytest.approx(4 * size / 8, rel=0.1)


def test_what_evaluation_costs(tmp_path, capsys):
    """On a chip that is not there, planned by CPUs: all at once, and less in less room."""
    file = tmp_path / "costs.json"
    flags = ["--topology=cpu:2", "--chip=v5e", "--images=100,40", "--parts=evaluation"]
    assert main(["dryrun", *TINY, *flags, f"--output={file}"]) == 0
    said, told = capsys.readouterr().out, json.loads(file.read_text())
    (row,) = told["evaluation"]
    assert told["rows"] == [] and "pgd20_linf: fits, 13 of 13 networks on 8 images" in said
    assert (row["suite"], row["networks"], row["images"]) == ("pgd20_linf", 13, 40)
    assert (row["soups"], row["rows"], row["devices"]) == (13, 8, 2)
    assert row["calls"] == 3  # of 16 images
    assert row["room"] == int(0.9 * 16 * 2**30) and row["memory"]["peak"] < row["room"]
    # Clean images, the best of 21 iterates, and what was found: 23 forward passes, and 20
    # gradients of images at as much again, or a little more.
    config = CONFIG.read()
    about = dryrun.build("cpu:2", config)
    forward = planning.count_products(about[1], jax.make_jaxpr(lambda: 0)().jaxpr, 2)[
        "forward"
    ]
    assert row["flops"] / forward == pytest.approx(43, rel=0.1)
    compute = row["flops"] * 13 * 8 / (197e12 / 6)
    assert row["seconds"]["compute"] == pytest.approx(compute)
    assert row["hours"] == pytest.approx(3 * row["seconds"]["step"] / 3600)
    chip = costs.CHIPS["v5e"]._replace(memory=row["memory"]["peak"])
    (less,) = planning.measure(*about[:3], chip)
    assert less["fits"] and less["soups"] < 13 and less["rows"] == 8
    assert less["memory"]["peak"] <= less["room"] < row["memory"]["peak"]
    assert less["calls"] == -(-360 // 16) * -(-13 // less["soups"])  # of the digits


def test_the_abstract_batch_is_the_pipelines(mesh):
    config = CONFIG.read()
    run = builders.build(config, mesh)
    batch = next(iter(builders.train_batches(run, 0)))
    shapes = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), batch)
    told = jax.tree.map(
        lambda x: (x.shape, np.dtype(x.dtype)), builders.abstract_batch(run, mesh)
    )
    assert shapes == told


def test_images_that_are_not_there():
    found = sources.load("blank:3", channels=1)
    assert len(found.train) == len(found.test) == 3
    assert found.train[2][0].shape == (1, 1, 1)
    assert len(sources.load("blank:3,2", channels=1).test) == 2
    with pytest.raises(UsageError, match="source 'blank' takes a number of images"):
        sources.load("blank:")


def test_every_combination():
    flags = dryrun.Flags(
        config=CONFIG,
        topology=("cpu:2", "cpu:4"),
        remat=("none", "full"),
        batch_size=(8, 16),
    )
    config = {"batch_size": 1, "model": {"remat": "none"}, "data": {"source": "x"}}
    cases = dryrun.read_cases(config, flags)
    assert len(cases) == 8 and cases[0][0] == "cpu:2"
    seen = {(n, c["batch_size"], c["model"]["remat"]) for n, c in cases}
    assert len(seen) == 8 and ("cpu:4", 16, "full") in seen


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--topology=v7:2x2"], "unknown topology 'v7:2x2'; there are: TPUs as"),
        (["--topology=cpu:8", "--batch_size=20"], "batch_size=20 is not divisible by 8"),
        (["--topology=cpu:8", "--batch_size=many"], "--batch_size must be whole numbers"),
        (["--topology=cpu:8", "--images=many"], "the second of test images, got 'many'"),
        (["--topology=cpu:8", "--parts=all"], "'all'; there are: training, evaluation"),
        (["--topology=cpu:8", "--chip=H1000"], "unknown --chip 'H1000'; there are: v4, "),
        (["--topology=v5e:2x2", "--chip=H100"], "--chip=H100 is for --topology=cpu:COUNT"),
        (["--topology=cpu:8", "--remat=maybe"], "'maybe'; there are: none, dots, full"),
        (["--topology=cpu:8", "--sharding=half"], "'half'; there are: replicated, fsdp"),
        ([], "--topology=... is missing"),
    ],
)
def test_mistakes_are_told_in_a_line(flags, told, capsys):
    assert main(["dryrun", *TINY, *flags]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_what_does_not_fit():
    text = "RESOURCE_EXHAUSTED: Ran out of memory. Used 17.50G of 15.75G hbm. Exceeded by"
    assert costs.needed(text) == 17.5 * 2**30
    row = dict(
        topology="v5e:2x2", devices=4, batch_size=64, accumulate=2, sharding="replicated",
        remat="none", fits=False,
    )  # fmt: skip
    told = dryrun.advice(row)
    assert "does NOT fit" in told
    for change in ("sharding=fsdp", "model.remat=dots", "model.remat=full", "accumulate=4"):
        assert f"--config.{change}" in told
    assert "remat=dots" not in dryrun.advice(row | {"remat": "dots"})
    assert "remat" not in dryrun.advice(row | {"remat": "full"})


@pytest.mark.slow
def test_a_tpu_that_is_not_here(tmp_path):
    """With the real compiler, of the extra `[tpu]`: in a process of its own."""
    pytest.importorskip("libtpu")
    file = tmp_path / "costs.json"
    flags = ["--topology=v5e:2x2,v4:2x2x1", "--config.model.dtype=bfloat16"]
    command = [sys.executable, "-m", "advadapters", "dryrun", *TINY, *flags]
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(
        [*command, f"--output={file}"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(file.read_text())
    for row in told["rows"]:
        assert row["devices"] == 4 and row["fits"]
        assert sum(sent["in_loops"] for sent in row["collectives"]) == 0
    assert len(told["evaluation"]) == 2 and all(r["fits"] for r in told["evaluation"])
    command[-2] = "--topology=v5e:3x5"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "v5e:3x5" in done.stderr.splitlines()[-1]
