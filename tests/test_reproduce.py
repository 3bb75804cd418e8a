"""The workflows of launch/reproduce: that they plan what is to be run, and run it."""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("snakemake", reason="needs .[reproduce]")
ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "launch" / "reproduce"
WORKFLOWS = sorted(path for path in FOLDER.glob("*.smk") if "rule all:" in path.read_text())


def snakemake(workflow, configfile, folder, *arguments):
    """The finished process of a workflow in this folder."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--cores=1", "-s", workflow]
    bin_ = os.path.dirname(sys.executable)
    environment = os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}"}
    return subprocess.run(
        [*command, "--configfile", FOLDER / configfile],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("configfile", ["rehearsal.yaml", "full.yaml"])
@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_plans_its_steps(workflow, configfile, tmp_path):
    done = snakemake(workflow, configfile, tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert "advadapters train --config=" in text and "rule table:" in text
    assert f"tables/{workflow.stem}" in text
