"""Runs and their soups as files, from Python and from the command line."""

import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest

pytest.importorskip("flatbuffers")

import advadapters as aa
from advadapters.__main__ import main
from advadapters.evaluation import tables
from advadapters.evaluation.rows import Row
from advadapters.exports import tensors
from advadapters.runs import opening

SMALL = {
    "model.size": "16x1x32x2",
    "model.classes": 5,
    "data.image_size": 8,
    "evaluation.suites": "{}",
}
IMAGES = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=5e-6)


def write_run(config, folder):
    """A run whose parameters are all random."""
    names = ["cat", "dog", "eel", "fox", "gnu"]
    part = {"images": 5, "counts": [1] * 5, "fingerprint": "0"}
    data = {"classes": names, "train": part, "test": part}
    draw = np.random.default_rng(0)

    def fill(leaf):
        return np.float32(0.3 * draw.normal(size=leaf.shape))

    opening.write_run(config, folder, lambda like: jax.tree.map(fill, like), data)
    return aa.load(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two domains."""
    folder = tmp_path_factory.mktemp("exporting") / "run"
    return write_run(aa.config("digits:cotrain", **SMALL), folder)


def test_a_run_is_one_file_with_all_soups(run, tmp_path):
    run.export(tmp_path / "run.stablehlo")
    network = aa.load_exported(tmp_path / "run.stablehlo")
    assert network.domains == run.domains and network.classes == run.classes
    for weights in (
        {"clean": 0.3, "linf": 0.7},
        {"linf": 1.0},
        {"clean": 1.5, "linf": -0.5},
    ):
        close(network(IMAGES, weights), run.soup(weights)(IMAGES))
    pgd = {"attack": "pgd", "norm": "linf", "eps": 0.12}
    assert network.eps == {"clean": [], "linf": [pgd]}
    source = network.metadata["source"]
    assert source["run"] == "run" and source["step"] == run.step
    assert source["program"] == f"advadapters {aa.__version__}"
    assert "8x8, float32 in [0, 1]" in network.metadata["preprocessing"]


def test_a_soup_is_a_file_of_its_own(run, tmp_path):
    soup = run.soup(clean=0.3, linf=0.7)
    soup.export(tmp_path / "soup.stablehlo")
    network = aa.load_exported(tmp_path / "soup.stablehlo")
    assert network.domains == () and network.name == "0.3 clean + 0.7 linf"
    close(network(IMAGES), soup(IMAGES))


def test_the_verb_writes_what_python_writes(run, tmp_path, capsys):
    soup, whole, python = (tmp_path / f"{name}.stablehlo" for name in ("s", "w", "p"))
    flags = ["export", f"--workdir={run.path}"]
    assert main([*flags, f"--output={soup}", "--mixture=clean=0.3,linf=0.7"]) == 0
    assert main([*flags, f"--output={whole}"]) == 0
    assert f"step {run.step} of {run.path} -> {whole}" in capsys.readouterr().out
    run.export(python)
    assert python.read_bytes() == whole.read_bytes()
    run.soup(clean=0.3, linf=0.7).export(python)
    assert python.read_bytes() == soup.read_bytes()


def test_the_verb_writes_the_folder_that_python_writes(run, tmp_path, capsys):
    flags = ["export", f"--workdir={run.path}", "--to=timm"]
    output = f"--output={tmp_path / 'soup'}"
    assert main([*flags, output, "--mixture=clean=0.3,linf=0.7"]) == 0
    (tmp_path / "again").mkdir()
    run.soup(clean=0.3, linf=0.7).save(tmp_path / "again" / "soup")
    for file in (tmp_path / "soup").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / "soup" / file.name).read_bytes()
    assert main([*flags, f"--output={tmp_path / 'none'}"]) == 2
    assert "choose it by --mixture, weights of clean, linf" in capsys.readouterr().err


BAD = {
    "suffix": (("--output=x.txt",), "a file .stablehlo, got 'x.txt'"),
    "folder": (("--output=none/x.stablehlo",), "cannot write .*none/x.stablehlo"),
    "domain": (("--output=x.stablehlo", "--mixture=l2=1"), "unknown domain 'l2'"),
    "two": (("--output=x.stablehlo", "--mixture=clean=1;linf=1"), "1;linf=1"),
    "lambda": (("--output=x.stablehlo", "--lambda=0.2"), "not conditioned on it"),
    "both": (
        ("--output=x.stablehlo", "--lambda=0.2", "--mixture=clean=1"),
        "either --mixture=... or --lambda",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags_are_refused_in_one_line(case, run, tmp_path, monkeypatch, capsys):
    flags, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    assert main(["export", f"--workdir={run.path}", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_by_lambda_is_exported_at_one(tmp_path):
    run = write_run(aa.config("digits_oat:vit", **SMALL), tmp_path / "run")
    with pytest.raises(aa.UsageError, match="goes by lambda: export one network"):
        run.export(tmp_path / "run.stablehlo")
    output = tmp_path / "one.stablehlo"
    flags = [f"--workdir={run.path}", f"--output={output}", "--lambda=0.2"]
    assert main(["export", *flags]) == 0
    network = aa.load_exported(output)
    assert network.name == "lambda 0.2"
    close(network(IMAGES), run.at(0.2)(IMAGES))


def test_a_soup_is_saved_as_a_folder_with_its_card(run, tmp_path):
    """results.json has the soup's rows, and no others are in the card."""
    soup, folder = run.soup(clean=0.3, linf=0.7), tmp_path / "soup"
    soups = [{"clean": 0.3, "linf": 0.7}, {"clean": 1}]
    rows = run.evaluate(IMAGES, np.arange(6) % 5, soups=soups, attacks={})
    results = pathlib.Path(run.path) / "results.json"
    results.write_text(json.dumps(rows))
    soup.save(folder)
    assert {file.name for file in folder.iterdir()} == {
        "model.safetensors", "config.json", "README.md",
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    assert card.startswith("---\npipeline_tag: image-classification\n")
    assert f"| 0.3 clean + 0.7 linf | {tables.percent(Row.of_plain(rows[0]))} |" in card
    assert '--workdir=run --mixture="clean=0.3,linf=0.7"` measures' in card
    assert "clean mode" not in card and "| linf | pgd, linf 0.12 |" in card
    assert "cat, dog, eel" in card and f"Step {run.step} of the run `run`" in card
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == ["cat", "dog", "eel", "fox", "gnu"]
    arrays = tensors.unpack((folder / "model.safetensors").read_bytes())
    kernel = soup.params["head"]["kernel"]
    np.testing.assert_array_equal(arrays["head.weight"], kernel.T)
    with pytest.raises(aa.UsageError, match="not empty: name a new folder"):
        soup.save(folder)


def test_timm_and_transformers_load_the_folder(run, tmp_path):
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    import torch

    soup, folder = run.soup(clean=0.3, linf=0.7), tmp_path / "soup"
    soup.save(folder)
    pixels = (np.float32(IMAGES) / 255 - 0.5) / 0.5
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    networks = [
        timm.create_model(f"local-dir:{folder}", pretrained=True),
        transformers.AutoModelForImageClassification.from_pretrained(folder),
    ]
    for network in networks:
        with torch.no_grad():
            out = network.eval()(images)
        logits = getattr(out, "logits", out).numpy()
        np.testing.assert_allclose(logits, soup(IMAGES), rtol=0, atol=1e-4)
    assert networks[1].config.id2label[2] == "eel"


def test_files_of_arrays_are_for_heads_that_have_names_there(run, tmp_path):
    with pytest.raises(aa.UsageError, match="no norm after the mean of the tokens"):
        run.mode("linf").save(tmp_path / "soup.npz")
    assert not list(tmp_path.iterdir())
