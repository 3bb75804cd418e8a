"""`advadapters train` and `evaluate` as a user runs them, on the real digits."""

import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from advadapters.__main__ import main

ROOT = pathlib.Path(__file__).parents[2]
QUICK = [
    f"--config={ROOT}/configs/digits.py",
    "--config.model.size=16x1x32x2",
    "--config.epochs=2.0",
    "--config.log_every=5",
    "--config.checkpoint_every=8",
    "--config.optimizer.warmup_epochs=0.5",
    "--config.data.validation=0.1",
    "--config.validate_every=8",
    "--config.evaluation.suites.pgd20_linf.steps=3",
    "--config.evaluation.soup_weights=(1.1,1.0,0.5,0.0)",
]


# One device, as most users have.
ENVIRONMENT = os.environ | {
    "XLA_FLAGS": re.sub(r"\S+device_count=8", "", os.environ["XLA_FLAGS"])
}


def run(verb, *argv):
    """The command in a process of its own, one device; returns what it printed."""
    command = [sys.executable, "-m", "advadapters", verb, *argv]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def lines(workdir):
    """The rows of metrics.jsonl."""
    return [
        json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run and what it printed."""
    workdir = tmp_path_factory.mktemp("run") / "digits"
    return workdir, run("train", *QUICK, f"--workdir={workdir}", "--profile=2")


def test_what_is_printed(trained):
    workdir, out = trained
    for text in (
        "16 per domain: class_token",
        "32 in the adapters of 2 domains (clean, linf)",
        "view clean: weight 0.5, mixture clean=1; no attack",
        "attacks its own mixture in eval mode (no drop path, fixed statistics)",
        "starting at step 0 of 20, batch 128, 1293 training images",
        "step 5/20  accuracy/clean",
        "images/s  ETA 0:",
        "step 8 validation  validation/clean",
        "profile of 2 steps, ",
        "| attack | ",
        "| matrix products | ",
        "| 1.1 clean + -0.1 linf |",
        "| linf mode |",
        f"written to {workdir}",
    ):
        assert text in out, text
    assert "Traceback" not in out and "WARNING" not in out, out


def test_what_is_written(trained):
    workdir, out = trained
    rows = json.loads((workdir / "results.json").read_text())
    assert len(rows) == 2 * 4
    assert rows[0]["mixture"] == {"clean": 1.1, "linf": pytest.approx(-0.1)}
    assert {row["suite"] for row in rows} == {"clean", "pgd20_linf"}
    assert all(
        row["n"] == 360 and row["low"] <= row["value"] <= row["high"] for row in rows
    )
    clean = {str(r["mixture"]): r["correct"] for r in rows if r["suite"] == "clean"}
    assert all(r["correct"] <= clean[str(r["mixture"])] for r in rows)
    assert (workdir / "results.md").read_text().strip() in out
    assert (workdir / "tradeoff.png").stat().st_size > 5000
    metrics = lines(workdir)
    logged = [row for row in metrics if "loss" in row]
    assert [row["step"] for row in logged] == [5, 10, 15, 20]
    assert {"loss/clean", "loss/linf", "images_per_second", "learning_rate"} <= logged[
        0
    ].keys()
    assert all(row["gradient_norm"] > 0 and row["weight_norm"] > 0 for row in logged)
    assert all(0 <= row["waiting"] <= 1 for row in logged)
    assert any("validation/linf" in row for row in metrics)
    assert list((workdir / "profile").glob("**/*.xplane.pb"))
    assert "class_token" in (workdir / "parameters.txt").read_text()
    assert json.loads((workdir / "config.json").read_text())["epochs"] == 2.0
    assert {"8", "16", "20"} & {p.name for p in (workdir / "checkpoints").iterdir()}


def test_events_are_read_by_tensorboard(trained):
    from tensorboardX.proto.event_pb2 import Event

    (file,) = trained[0].glob("events.out.*")
    data, tags = file.read_bytes(), set()
    while data:  # TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        tags |= {value.tag for value in event.summary.value}
        data = data[16 + size :]
    assert {"loss/clean", "loss/linf"} <= tags


def test_a_finished_run_says_so(trained, capsys):
    workdir, _ = trained
    assert main(["train", *QUICK, f"--workdir={workdir}"]) == 0
    out = capsys.readouterr().out
    assert "finished already, 20 steps" in out and "| linf mode |" in out
    # Killed while the results were written: they are made again.
    before = (workdir / "results.json").read_text()
    (workdir / "results.json").write_text(before[:100])
    (workdir / "tradeoff.png").unlink()
    out = run("train", *QUICK, f"--workdir={workdir}")
    assert "finished already" not in out and (workdir / "tradeoff.png").exists()
    assert (workdir / "results.json").read_text() == before


def test_what_cannot_be_profiled(trained, capsys):
    for text, message in (
        ("18", "traces 18 steps after the first 3, and this run has 0 left"),
        ("all", "--profile must be a positive whole number, got 'all'"),
    ):
        argv = [*QUICK, f"--workdir={trained[0]}", f"--profile={text}"]
        assert main(["train", *argv]) == 2
        assert message in capsys.readouterr().err


def test_another_config_is_refused(trained, capsys):
    workdir, _ = trained
    assert main(["train", *QUICK, "--config.seed=1", f"--workdir={workdir}"]) == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err


def test_evaluate_repeats_the_result_and_takes_any_mixture(trained, capsys):
    workdir, _ = trained
    rows = json.loads((workdir / "results.json").read_text())
    out = run("evaluate", f"--workdir={workdir}", "--mixture=clean=1;clean=0.3,linf=0.7")
    found = json.loads((workdir / "evaluation.json").read_text())
    assert "| clean mode |" in out and "| 0.3 clean + 0.7 linf |" in out
    same = [r for r in rows if r["mixture"] == {"clean": 1.0, "linf": 0.0}]
    again = [r for r in found if r["mixture"] == {"clean": 1.0, "linf": 0.0}]
    assert [r["correct"] for r in same] == [r["correct"] for r in again]
    argv = ["--step=best", "--suite=pgd20_linf", "--examples=50", "--mixture=linf=1"]
    assert main(["evaluate", f"--workdir={workdir}", *argv, "--signs=8"]) == 0
    found = json.loads((workdir / "evaluation.json").read_text())
    assert [r["n"] for r in found] == [50, 50] and found[0]["step"] in (8, 16, 20)
    assert "| linf mode |" in capsys.readouterr().out
    # On a CPU training and evaluation have the same float32.
    assert [r.get("sign_agreement") for r in found] == [None, 1.0]
    for argv, message in (
        (["--config.x=1"], "no such config key: 'x'"),
        (["--mixture=robust=1"], "unknown domain 'robust'"),
        (["--mixture=clean=x"], "'x' is no number"),
        (["--suite=aa"], "unknown suite 'aa'; there are: pgd20_linf"),
        (["--examples=-3"], "--examples must be a positive whole number"),
        (["--step=7"], "has no checkpoint '7'"),
    ):
        need_refused(capsys, message, f"--workdir={workdir}", *argv)


def need_refused(capsys, message, *argv):
    """`evaluate` ends with 2 and this message, on one line."""
    assert main(["evaluate", *argv]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said


def test_autoattack_from_the_command_line(trained, capsys):
    workdir, _ = trained
    argv = [f"--workdir={workdir}", "--suite=autoattack", "--eps=1/50", "--examples=8"]
    argv += ["--steps=10", "--queries=50", "--name=aa"]
    out = run("evaluate", *argv, "--mixture=clean=0.5,linf=0.5")
    assert "apgd-ce 1/1" in out and "ETA at most" in out
    assert "AutoAttack standard, linf 0.02, 8 images" in out and "| square | " in out
    assert "AutoAttack linf 0.02, after fab-t: accuracy" in out
    assert "| 0.5 clean + 0.5 linf |" in out
    rows = json.loads((workdir / "aa.json").read_text())
    assert [row["suite"] for row in rows] == ["clean", "autoattack_linf_0.02"]
    assert list(rows[1]["stages"]) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert rows[1]["n"] == 8 and rows[1]["value"] == rows[1]["stages"]["square"]
    assert main(["evaluate", *argv, "--mixture=clean=0.5,linf=0.5"]) == 0
    again = "".join(capsys.readouterr())
    assert "ETA" not in again and json.loads((workdir / "aa.json").read_text()) == rows
    for more, message in (
        (["--eps=x"], "--eps must be a number or a fraction"),
        (["--norm=l3"], "unknown norm 'l3'"),
        (["--eps=3"], "eps must be at least 0 and at most 1"),
        (["--suite=autoattack,autoattack-plus"], "one version of AutoAttack at a time"),
        (["--suite=autoattack-rand"], "not random when they are evaluated"),
        (["--suite=autoattack:cw"], "unknown attack 'cw'"),
        (["--suite=autoattack:square"], "none of the attacks square takes steps"),
        (["--suite=autoattack-fast"], "malt, fab-malt takes queries"),
        (["--norm=linf,l2"], "as many, and no threat twice: got 2 norms and 1 radii"),
        (["--steps=0"], "--steps must be a positive whole number"),
        (["--seed=x"], "--seed must be a whole number"),
        (["--bits=7"], "unknown --bits '7'"),
        (["--save_images=x.npz"], "writes those of one network"),
        (["--suite=pgd20_linf", "--eps="], "--steps is for --suite=autoattack"),
        (["--images=x.npz"], "--images counts a file's images"),
    ):
        need_refused(capsys, message, *argv, *more)


def test_several_threats_and_their_images_from_the_command_line(trained, tmp_path):
    workdir, _ = trained
    file = tmp_path / "images.npz"
    argv = [f"--workdir={workdir}", "--mixture=clean=0.5,linf=0.5", "--name=threats"]
    cascade = ["--suite=autoattack:square", "--norm=linf,l2", "--eps=0.3,2"]
    cascade += ["--queries=20", "--examples=40", "--seed=5"]
    assert main(["evaluate", *argv, *cascade, f"--save_images={file}", "--bits=8"]) == 0
    rows = json.loads((workdir / "threats.json").read_text())
    names = ["clean", "autoattack_linf_0.3", "autoattack_l2_2", "union"]
    clean, linf, l2, union = (row["correct"] for row in rows)
    assert [row["suite"] for row in rows] == names
    assert linf < clean and union <= min(linf, l2)
    assert rows[1]["version"] == "square" and rows[1]["not_finite"] == 0
    with file.open("rb") as raw, np.load(raw) as found:
        assert found["autoattack_linf_0.3"].dtype == np.uint8
    assert main(["evaluate", *argv, f"--images={file}"]) == 0
    again = json.loads((workdir / "threats.json").read_text())
    again = [row for row in again if row not in rows]
    assert [row["suite"] for row in again] == [f"images:{name}" for name in names[1:3]]
    # Rounding may undo an image, never more: the network sees nothing else.
    assert linf <= again[0]["correct"] <= clean and again[0]["n"] == 40
    file.write_bytes(b"none")
    assert main(["evaluate", *argv, f"--images={file}"]) == 2


def test_mixtures_share_what_is_compiled(trained):
    workdir, _ = trained
    argv = [f"--workdir={workdir}", "--mixture=clean=1;linf=1", "--name=shared"]
    argv += ["--suite=autoattack:square", "--eps=0.3", "--queries=3", "--examples=16"]
    assert main(["evaluate", *argv]) == 0
    rows = json.loads((workdir / "shared.json").read_text())
    first, second = (row["costs"]["square"] for row in rows if "costs" in row)
    assert first["compile_seconds"] > 0 == second["compile_seconds"]


def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(trained, tmp_path):
    workdir, _ = trained
    command = [sys.executable, "-m", "advadapters", "train", *QUICK]
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path}/run"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    saved = tmp_path / "run" / "checkpoints" / "8"
    deadline = time.monotonic() + 300
    while not saved.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    out = run("train", *QUICK, f"--workdir={tmp_path}/run")
    assert "resuming at step 8 of 20" in out or "resuming at step 16 of 20" in out
    first, second = (
        json.loads((folder / "results.json").read_text())
        for folder in (workdir, tmp_path / "run")
    )
    assert first == second
    losses = [
        [(row["step"], row["loss"]) for row in lines(folder) if "loss" in row]
        for folder in (workdir, tmp_path / "run")
    ]
    # The mean of the interval that the kill cut is over fewer steps.
    resumed_after = 8 if "step 8 " in out else 16
    later = [[row for row in rows if row[0] > resumed_after + 5] for rows in losses]
    assert later[0] == later[1] and later[0]
    assert [step for step, _ in losses[1]] == sorted({step for step, _ in losses[1]})


def test_a_corrupt_image_is_named_during_the_run(tmp_path, capsys):
    import cv2

    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(8):
                image = np.full((8, 8), 20 * i, np.uint8)
                cv2.imwrite(str(tmp_path / "data" / split / name / f"{i}.png"), image)
    broken = tmp_path / "data" / "train" / "b" / "3.png"
    broken.write_bytes(b"no image")
    argv = [
        *QUICK,
        f"--config.data.source=folder:{tmp_path}/data",
        "--config.model.classes=2",
        "--config.batch_size=8",
        "--config.data.validation=0.0",
        "--config.validate_every=0",
        "--config.evaluation.suites={}",
    ]
    argv = [flag for flag in argv if "pgd20" not in flag]
    assert main(["train", *argv, f"--workdir={tmp_path}/run"]) == 2
    assert f"corrupt image {broken}" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").exists()  # what the message advises goes on
    argv += ["--config.data.skip_corrupt=True", f"--workdir={tmp_path}/run"]
    assert main(["train", *argv]) == 0
    assert "| linf mode |" in capsys.readouterr().out


def test_help_is_instant_and_needs_no_jax():
    for argv in (["--help"], ["train", "--help"], ["evaluate", "--help"]):
        spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        out = run(*argv)
        spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - spent
        assert spent < 1 and "usage: advadapters" in out
    code = (
        "import sys; from advadapters.__main__ import VERBS, main;"
        "print([main([verb, '--help']) for verb in VERBS]);"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
