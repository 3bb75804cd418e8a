"""Runs and their soups as files, from Python and from the command line."""

import contextlib
import functools
import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("flatbuffers")

import advadapters as aa
from advadapters import configs
from advadapters.__main__ import main
from advadapters.evaluation import tables
from advadapters.exports import tensors
from advadapters.runs import opening

SMALL = {
    "model.size": "16x1x32x2",
    "model.classes": 5,
    "data.image_size": 8,
    "evaluation.suites": {},
}
IMAGES = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=5e-6)


def write_run(config, folder):
    """A run whose parameters are all random."""
    names = ["cat", "dog", "eel", "fox", "gnu"]
    part = {"images": 5, "counts": [1] * 5, "fingerprint": "0"}
    data = {"classes": names, "train": part, "test": part}
    draw = np.random.default_rng(0)

    def fill(path, leaf):
        noise = 0.3 * draw.normal(size=leaf.shape)
        variance = jax.tree_util.keystr(path, simple=True).endswith("var")
        return np.float32(0.5 + np.abs(noise) if variance else noise)

    def make(like):
        return jax.tree_util.tree_map_with_path(fill, like)

    opening.write_run(config, folder, make, data)
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


OAT = {key: SMALL[key] for key in SMALL if key != "model.size"}
BY_LAMBDA = {  # a random code for each lambda; any lambda, and norms of its own for 0
    "vit": ("digits_oat:vit", SMALL),
    "dual": ("digits_oat:oat_none", OAT | {"model.size": "10-1"}),
    "mixed": ("digits_oat:vit_tokens", SMALL),
}


@pytest.mark.parametrize("kind", BY_LAMBDA)
def test_a_run_that_goes_by_lambda_is_one_file_that_takes_it(kind, tmp_path):
    name, settings = BY_LAMBDA[kind]
    run = write_run(aa.config(name, **settings), tmp_path / "run")
    run.export(tmp_path / "run.stablehlo")
    network = aa.load_exported(tmp_path / "run.stablehlo")
    known = tuple(run.opened.run.method.lambdas)
    assert network.domains == () and network.lambdas == (known if kind == "vit" else ())
    assert repr(network).startswith("Exported(lambda ")
    lambdas = known[: len(IMAGES)]
    rows = [run.at(lam)(IMAGES) for lam in lambdas]
    assert np.abs(rows[0] - rows[-1]).max() > 1e-3
    for lam, expected in zip(lambdas, rows, strict=True):
        close(network(IMAGES, lam), expected)
    count = len(lambdas)
    each = [row[i] for i, row in enumerate(rows)]
    close(network(IMAGES[:count], np.float32(lambdas)), each)
    for lam, message in (
        (None, "goes by lambda: give a number"),
        ({"clean": 1.0}, "goes by lambda: give a number"),
        (1.5, "lambda 1.5: this network knows"),
        (np.nan, "lambda nan: this network knows"),
        ([0.0] * 2, "2 lambdas for 6 images"),
        ("a", "lambda is a number in"),
    ):
        with pytest.raises(aa.UsageError, match=message):
            network(IMAGES, lam)
    if kind == "vit":
        with pytest.raises(aa.UsageError, match="lambda 0.55: this network knows 0.0, "):
            network(IMAGES, 0.55)
    with pytest.raises(aa.UsageError, match="--width: .0.5. was not trained"):
        run.export(tmp_path / "half.stablehlo", width=0.5)


def test_a_run_that_goes_by_lambda_is_exported_at_one(tmp_path):
    run = write_run(aa.config("digits_oat:vit", **SMALL), tmp_path / "run")
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
    results.write_text(json.dumps([row.plain() for row in rows]))
    soup.save(folder)
    assert {file.name for file in folder.iterdir()} == {
        "model.safetensors", "config.json", "README.md",
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    assert card.startswith("---\npipeline_tag: image-classification\n")
    assert f"| 0.3 clean + 0.7 linf | {tables.percent(rows[0])} |" in card
    assert '--workdir=run --mixture="clean=0.3,linf=0.7"` measures' in card
    assert "clean mode" not in card and "| linf | pgd, linf 0.12 |" in card
    assert "cat, dog, eel" in card and f"Step {run.step} of the run `run`" in card
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == ["cat", "dog", "eel", "fox", "gnu"]
    need_config_again(run, card, tmp_path)
    arrays = tensors.unpack((folder / "model.safetensors").read_bytes())
    kernel = soup.params["head"]["kernel"]
    np.testing.assert_array_equal(arrays["head.weight"], kernel.T)
    with pytest.raises(aa.UsageError, match="not empty: name a new folder"):
        soup.save(folder)


class FakeHub:
    """Takes what is pushed; refuses what is not of "me"."""

    def __init__(self):
        self.files = {}

    def HfApi(self):
        return self

    def create_repo(self, repository, exist_ok):
        if not repository.startswith("me/"):
            raise OSError("403 Forbidden\nmore lines")

    def upload_folder(self, repo_id, folder_path, commit_message):
        files = sorted(path.name for path in pathlib.Path(folder_path).iterdir())
        self.files[repo_id] = files


def test_a_folder_is_pushed_to_the_hub(run, tmp_path, monkeypatch, capsys):
    fake = FakeHub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    flags = ["export", f"--workdir={run.path}", "--to=timm", "--mixture=clean=1"]
    assert main([*flags, f"--output={tmp_path}/a", "--push=me/soup"]) == 0
    assert fake.files == {"me/soup": ["README.md", "config.json", "model.safetensors"]}
    assert f"{tmp_path}/a -> https://huggingface.co/me/soup" in capsys.readouterr().out
    assert main([*flags, f"--output={tmp_path}/b", "--push=you/soup"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot push" in line and "403 Forbidden (`hf auth login`" in line
    assert main([*flags, f"--output={tmp_path}/c.npz", "--push=me/soup"]) == 2
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main([*flags, f"--output={tmp_path}/d", "--push=me/soup"]) == 2
    assert "pip install 'advadapters[hub]'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def need_config_again(run, card, folder):
    """The lines of a card make the config of the run again."""
    code = card.split("```python\nfrom advadapters")[1].partition("```")[0]
    (folder / "again.py").write_text(f"from advadapters{code}".replace('"run"', '"kept"'))
    (folder / "kept").mkdir()
    text = card.split("```json\n")[1].partition("```")[0]
    (folder / "kept" / "config.json").write_text(text)
    with contextlib.chdir(folder):
        config, _ = configs.parse([f"--config={folder}/again.py"], {})
    assert config.to_dict() == run.config


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
