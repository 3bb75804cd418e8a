"""`advadapters study` and runs that start from others, on the real digits."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from advadapters.__main__ import main
from advadapters.evaluation import studies
from advadapters.evaluation.rows import Row
from advadapters.networks import mixture_case

ROOT = pathlib.Path(__file__).parents[2]
QUICK = [
    f"--config={ROOT}/configs/digits.py",
    "--config.model.size=16x1x32x2",
    "--config.epochs=1.0",
    "--config.evaluation.suites.pgd20_linf.steps=2",
]
# Where the final table is not what is tested.
CLEAN = [*QUICK[:-1], "--config.evaluation.suites={}"]


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A study of two adapters and two seeds."""
    folder = tmp_path_factory.mktemp("study")
    argv = [*QUICK, f"--workdir={folder}", "--adapters=norms+head,nothing", "--seeds=2"]
    assert main(["study", *argv]) == 0
    return folder, argv


def test_a_study_trains_every_case_and_seed(studied, capsys):
    folder, argv = studied
    rows = json.loads((folder / "study.json").read_text())
    assert [(r["case"], r["suite"], r["mode"]) for r in rows] == [
        ("norms+head", "clean", "clean mode"), ("norms+head", "pgd20_linf", "linf mode"),
        ("nothing", "clean", "clean mode"), ("nothing", "pgd20_linf", "linf mode"),
    ]  # fmt: skip
    # Norms: three of width 16, scale and offset; head: 16 x 10 and 10.
    sizes = {row["case"]: row["parameters_per_domain"] for row in rows}
    assert sizes == {"norms+head": 3 * 2 * 16 + 170, "nothing": 0}
    for row in rows:
        results = [
            json.loads((folder / f"{row['case']}-seed{s}" / "results.json").read_text())
            for s in (0, 1)
        ]
        (domain,) = (name for name, weight in row["mixture"].items() if weight)
        by_hand = [
            [r["value"] for r in rows_
             if r["suite"] == row["suite"] and r["mixture"][domain] == 1.0][0]
            for rows_ in results
        ]  # fmt: skip
        assert row["values"] == by_hand and len(results[0]) == 4
    assert (folder / "study.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "study.md").read_text().count("\n") == 4
    # A second call trains nothing.
    capsys.readouterr()
    assert main(["study", *argv]) == 0
    out = capsys.readouterr().out
    assert out.count("finished already") == 4 and "trained" not in out


def test_a_run_starts_from_a_mixture_of_another(studied, tmp_path, capsys):
    from advadapters import builders, configs, trees
    from advadapters.runs import opening, starting, workdir

    folder = studied[0] / "norms+head-seed0"
    old = opening.open_run(workdir.read_config(folder), folder)
    ema, _ = opening.restore_variables(old, "latest")
    expected = trees.plain(ema, (0.25, 0.75))["params"]
    argv = [
        *CLEAN, f"--workdir={tmp_path}/new", f"--config.start.workdir={folder}",
        "--config.start.mixture.clean=1/4", "--config.start.mixture.linf=0.75",
        "--config.start.fresh=('head/.*',)", "--config.evaluation.soup_weights=(1.0,)",
    ]  # fmt: skip
    assert main(["train", *argv]) == 0
    out = capsys.readouterr().out
    # A class token, a block of twelve leaves, a norm, positions and patches; the head.
    assert (
        f"first parameters: {folder}, checkpoint latest\n  loaded          18 leaves" in out
    )
    assert (
        "blocks_* 12" in out
        and "  initialised      2 leaves,          170 parameters: head 2" in out
    )
    new = opening.open_run(workdir.read_config(tmp_path / "new"), tmp_path / "new")
    found = trees.flatten(starting.read(new.run).plain["params"])
    fresh = trees.flatten(builders.initial_state(new.run).variables["shared"])
    for path, leaf in trees.flatten(expected).items():
        same = fresh[path] if path.startswith("head/") else leaf
        np.testing.assert_allclose(found[path], same, atol=1e-6)
    sincos = ["--config.model.positions=sincos", "--config.start.changed=('positions',)"]
    for argv_, message in (
        (["--config.start.mixture={'l2': 1.0}"], "unknown domain 'l2'; there are: clean"),
        (["--config.start.mixture={}"], "no domain is named; there are: clean, linf"),
        (["--config.start.mixture.linf=0.5"], "weights must sum to 1, got 0.25, 0.5"),
        (["--config.start.dropped=('blocks_1/.*',)"], "'blocks_1/.*' matches no parameter"),
        (["--config.start.dropped=('norm/.*',)"], "here and missing there"),
        (["--config.start.changed=('means',)"], "unknown config.start.changed, a key of"),
        (["--config.model.mean=(0.4,)"], "was trained with mean (0.5,): set config.model."),
        (["--config.model.std=(0.4,)", "--config.start.changed=('mean',)"], "with std ("),
        (["--config.model.size=16x1x32x4"], "was trained with size.heads 2: set"),
        (sincos, "has pos_embed, which this network does not have: use the same config."),
        (["--config.start.step=best"], "has no checkpoint 'best'; there are: 11"),
        (["--config.start.step=7"], "has no checkpoint '7'; there are: 11"),
        (["--config.model.size=16x1x48x2"], "fc1/bias is [48] here and [32] there"),
        (["--config.model.size=16x2x32x2"], "here and missing there"),
    ):
        changed = [*argv, f"--workdir={tmp_path}/other", *argv_]
        assert main(["train", *changed]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1 and "Traceback" not in err, err
        assert not (tmp_path / "other").exists()

    argv = [*argv[:-1], *sincos, "--config.start.dropped=('pos_embed',)"]
    config, _ = configs.parse(argv, {"workdir": ""})
    told = starting.read(builders.build(config.to_dict(), new.mesh)).report
    assert "  dropped          1 leaves,          272 parameters: pos_embed 1" in told
    assert told.endswith("  changed: positions is sincos, there learned")


def test_a_checkpoint_of_eight_devices_is_read_on_one(studied):
    folder = studied[0] / "nothing-seed0"
    code = (
        "from advadapters.checkpoints import Checkpoints\n"
        f"with Checkpoints({str(folder / 'checkpoints')!r}, read_only=True) as c:\n"
        "    print(c.restore_raw(c.latest())['ema']['shared']['head']['bias'].shape)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "(10,)", done.stderr


def test_a_damaged_checkpoint_is_one_line(studied, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(studied[0] / "nothing-seed0", folder)
    shutil.rmtree(folder / "checkpoints" / "11" / "default")
    argv = [
        *QUICK, f"--workdir={tmp_path}/new", f"--config.start.workdir={folder}",
        "--config.start.mixture={'clean': 1.0}",
    ]  # fmt: skip
    assert main(["train", *argv]) == 2
    err = capsys.readouterr().err
    assert "no checkpoint that can be used: checkpoint 11" in err, err
    assert err.count("\n") == 1, err


def test_single_step_training_is_watched(tmp_path, capsys):
    quick = [CLEAN[0] + ":fgsm_rs", *CLEAN[1:]]
    assert main(["train", *quick, f"--workdir={tmp_path}/run"]) == 0
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    (told,) = [row for row in rows if "validation/linf" in row]
    assert 0 <= told["validation/linf/alarm"] <= told["validation/linf"] + 0.05


def result(values, suite="pgd20_linf"):
    """Result rows of one seed: two modes, clean and one suite."""
    return [
        Row(
            network=mixture_case(("clean", "linf"), (w, 1 - w)).identity,
            suite=s,
            metric="accuracy",
            value=v,
            n=10,
            step=1,
        )
        for s, (a, b) in (("clean", (0.9, 0.8)), (suite, values))
        for w, v in ((1.0, a), (0.0, b))
    ]


def test_rows_of_a_study_by_hand():
    rows = studies.rows("norms", 7, [result((0.1, 0.5)), result((0.2, 0.7))])
    clean, robust = rows
    assert clean.values == [0.9, 0.9] and clean.low == clean.high == 0.9
    # Student's t for one degree of freedom is 12.706; the standard error is 0.1.
    assert robust.mean == pytest.approx(0.6)
    assert robust.high - robust.mean == pytest.approx(1.2706, rel=1e-4)
    (alone, _) = studies.rows("norms", 7, [result((0.1, 0.5))])
    assert alone.low is None
    assert "| norms | 7 | 90.0 (clean mode) |" in studies.study_table([alone])
    last = [row for row in result((0.1, 0.5)) if row.network.mixture["linf"] == 1.0]
    (clean, _) = studies.rows("norms", 7, [last])
    assert (str(clean.network), clean.mean) == ("linf mode", 0.8)
    soup = mixture_case(("clean", "linf"), (0.5, 0.5)).identity
    half = [dataclasses.replace(row, network=soup) for row in last]
    (clean, _) = studies.rows("norms", 7, [half])
    assert (str(clean.network), clean.mean) == ("0.5 clean + 0.5 linf", 0.8)
    assert studies.mode_of("pgd20_l2", ["clean", "linf", "l2"]) == "l2"
    assert studies.mode_of("pgd20_l1", ["clean", "linf"]) == "linf"
    assert studies.mode_of("pgd_night_l2", ["l2", "night_l2", "clean"]) == "night_l2"
    assert (robust.network.kind, robust.network.mixture) == (
        "mode",
        {"clean": 0.0, "linf": 1.0},
    )


def test_arrays_of_a_checkpoint_are_read_as_they_are(studied):
    from advadapters import checkpoints

    folder = studied[0] / "nothing-seed0" / "checkpoints"
    with checkpoints.Checkpoints(folder, read_only=True) as saved:
        state, _ = saved.read("latest", saved.restore_raw, folder)
    assert state["ema"]["shared"]["head"]["kernel"].shape == (16, 10)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
