"""The workflows of launch/reproduce: that they plan what is to be run, and run it."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("snakemake", reason="needs .[reproduce]")
ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "launch" / "reproduce"
WORKFLOWS = sorted(path for path in FOLDER.glob("*.smk") if "rule all:" in path.read_text())


def snakemake(workflow, configfile, *arguments):
    """The command of a workflow, and the environment in which it finds `advadapters`."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--cores=1", "-s", workflow]
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": os.fspath(ROOT)}
    return [*command, "--configfile", FOLDER / configfile], environment


def run(workflow, configfile, folder, *arguments):
    """The finished process of a workflow in this folder."""
    command, environment = snakemake(workflow, configfile, *arguments)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )


def prepare(folder, *names):
    """The data sets of the rehearsal, and its weights, where rehearsal.yaml has them."""
    script = [sys.executable, FOLDER / "rehearsal_data.py", "runs/rehearsal_data", *names]
    environment = os.environ | {"PYTHONPATH": os.fspath(ROOT)}
    subprocess.run(script, cwd=folder, env=environment, check=True, capture_output=True)


def leave_out(*patterns):
    """The flags of a workflow that leave out these trainings."""
    return ["--config", f"left_out={json.dumps(patterns)}"]


@pytest.mark.parametrize("configfile", ["rehearsal.yaml", "full.yaml"])
@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_plans_its_steps(workflow, configfile, tmp_path):
    done = run(workflow, configfile, tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert "advadapters train --config=" in text
    assert "rule table:" in text or "rule poster:" in text  # what a workflow ends with
    assert f"tables/{workflow.stem}" in text


# Of OAT's trainings one, in some seconds.
ONE = leave_out("oat/cifar10_*", "oat/svhn", "oat/stl10")


def test_a_rehearsal_ends_with_its_table_and_is_done_then(tmp_path):
    prepare(tmp_path, "cifar10")
    done = run(FOLDER / "oat.smk", "rehearsal.yaml", tmp_path, *ONE)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "runs/rehearsal/tables/oat.trainings.md").read_text()
    assert "| oat/cifar10 | lambda 0 |" in text and "| oat/svhn | not run |" in text
    again = run(FOLDER / "oat.smk", "rehearsal.yaml", tmp_path, *ONE)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_step_that_is_at_work_is_refused(tmp_path):
    prepare(tmp_path, "cifar10")
    lock = tmp_path / "runs/rehearsal/locks/seed0+oat+cifar10"
    lock.parent.mkdir(parents=True)
    with subprocess.Popen(["flock", lock, "sleep", "600"], start_new_session=True) as other:
        while not lock.exists():
            time.sleep(0.05)
        done = run(FOLDER / "oat.smk", "rehearsal.yaml", tmp_path, *ONE)
        os.killpg(other.pid, signal.SIGKILL)
    assert done.returncode == 1 and "returned non-zero exit status 75" in done.stderr
    assert not (tmp_path / "runs/rehearsal/seed0/oat/cifar10/config.json").exists()


@pytest.mark.slow
def test_the_table_is_the_same_whenever_the_workflow_is_killed(tmp_path):
    """Snakemake and all that it has started get SIGKILL at five moments."""
    texts = []
    for seconds in ([], [8, 12, 16, 20, 24]):
        folder = tmp_path / f"killed{len(seconds)}"
        folder.mkdir()
        prepare(folder, "cifar10")
        arguments = FOLDER / "oat.smk", "rehearsal.yaml", *ONE
        command, environment = snakemake(*arguments)
        for wait in seconds:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, start_new_session=True
            )
            time.sleep(wait)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        done = run(arguments[0], arguments[1], folder, *ONE)
        assert done.returncode == 0, done.stdout + done.stderr
        texts.append((folder / "runs/rehearsal/tables/oat.trainings.md").read_text())
    assert texts[0] == texts[1]
