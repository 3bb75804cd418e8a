"""The listings of docs/extend.md, as one package of somebody else's."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the page's listings make."""
    place = tmp_path_factory.mktemp("extend")
    page = (ROOT / "docs" / "extend.md").read_text()
    for listing in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", listing)[1]
        with (place / name).open("a") as file:
            file.write(listing)
    return place


def run(folder, *argv, plugins=True):
    """(exit code, output) of a verb in a process of its own."""
    paths = [str(ROOT)] + [str(folder)] * plugins
    found = subprocess.run(
        [sys.executable, "-m", "advadapters", *argv],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        cwd=ROOT,  # `python -m` looks for modules where it is called
        capture_output=True,
        text=True,
    )
    return found.returncode, found.stdout + found.stderr


def test_what_others_add_is_trained_and_evaluated(folder):
    workdir, batch = f"--workdir={folder}/run", "--config.evaluation.batch_size=120"
    train = ("train", f"--config={folder}/my_config.py", batch)
    code, text = run(folder, *train, workdir, "--config.model.scale=2")
    assert code == 0, text
    assert "330 per domain: last/.*" in text and "| linf mode |" in text
    evaluate = ("evaluate", workdir, "--mixture=linf=1")
    code, text = run(folder, *evaluate)
    assert code == 0 and "ascend" in text, text
    code, text = run(folder, *evaluate, plugins=False)
    assert code == 2
    assert "config.plugins: cannot import 'my_package' (ModuleNotFoundError" in text
    code, text = run(folder, *train, f"--workdir={folder}/b", "--config.model.scale=-1")
    assert code == 2 and "config.model.scale must be above 0" in text


def test_a_method_of_others_is_trained_and_evaluated(folder):
    workdir, batch = f"--workdir={folder}/line", "--config.evaluation.batch_size=120"
    held = ("--config.data.validation=0.1", "--config.validate_every=100")
    code, text = run(
        folder, "train", f"--config={folder}/my_line.py", batch, *held, workdir
    )
    assert code == 0, text
    assert "Along: clean, attacked" in text and "| attacked mode |" in text
    assert "validation/attacked 0." in text
    code, text = run(folder, "evaluate", workdir, "--mixture=clean=0.5,attacked=0.5")
    assert code == 0 and "| 0.5 clean + 0.5 attacked |" in text, text
    code, text = run(folder, "evaluate", workdir, "--lambda=0.5")
    assert code == 2 and "--lambda: this network is not conditioned on lambda" in text
    code, text = run(
        folder, "train", f"--config={folder}/my_line.py", f"--workdir={folder}/c",
        "--config.domains=('a',)",
    )  # fmt: skip
    assert code == 2 and "config.loss='along' names its domains itself" in text


def test_listings_are_short():
    page = (ROOT / "docs" / "extend.md").read_text()
    for listing in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        code = [line for line in listing.splitlines() if line and line[0] != "#"]
        code = [line for line in code if not line.startswith(("import", "from"))]
        assert len(code) <= 20, listing
