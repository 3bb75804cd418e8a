"""What `import advadapters` offers, on a run whose training images are gone."""

import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

import advadapters as aa
from advadapters import builders, checkpoints, front
from advadapters.data import identity, sources
from advadapters.runs import opening, workdir
from advadapters.training import optim, states

NAMES = ("a", "b", "c")
SMALL = {
    "model.size": "16x1x32x2",
    "model.classes": 3,
    "evaluation.batch_size": 16,
    "data.image_size": 8,
}


@pytest.fixture(scope="module")
def data():
    """(images uint8 [24, 8, 8, 1], labels)."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (24, 8, 8, 1)).astype(np.uint8)
    return images, draw.integers(3, size=24)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run with two class tokens far from each other."""
    folder = tmp_path_factory.mktemp("front")
    file = folder / "data.npz"
    images, labels = data
    np.savez(file, train_images=images, train_labels=labels, test_images=images,
             test_labels=labels)  # fmt: skip
    config = aa.config("digits:cotrain", **SMALL, **{"data.source": f"npz:{file}"})

    def apart(like):
        leaves, structure = jax.tree.flatten(like)
        keys = jax.random.split(jax.random.key(0), len(leaves))
        drawn = [
            jax.random.normal(key, leaf.shape).astype(leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, drawn)

    opening.write_run(config, folder / "runs" / "fashion", jax.jit(apart))
    file.unlink()
    return aa.load(folder / "runs" / "fashion")


def test_importing_is_light():
    code = """
import sys
import advadapters as aa
assert not {"jax", "numpy", "flax"} & set(sys.modules), "import advadapters"
aa.soups, aa.trees
heavy = {"flax", "orbax", "optax", "grain", "tensorflow", "cv2", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert all(hasattr(aa, name) for name in aa.__all__)
assert set(aa.__all__) <= set(dir(aa))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_listing_of_the_readme_runs(run, data, monkeypatch, capsys):
    page = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    listing = re.search(r"## From Python\n\n```python\n(.*?)```", page, re.DOTALL)[1]
    monkeypatch.chdir(pathlib.Path(run.path).parents[1])
    # The standard suite takes half a minute to compile.
    short = functools.partial(aa.autoattack, version=("square",), queries=5)
    monkeypatch.setattr(aa, "autoattack", short, raising=False)
    images, labels = data
    names = {"images": images, "labels": labels}
    exec(compile(listing, "README.md", "exec"), names)
    soup = run.soup(clean=0.3, linf=0.7)
    text = capsys.readouterr().out
    assert f"{soup.predict(images)} {soup.accuracy(images, labels)}" in text
    assert aa.table(names["rows"]) in text
    assert {row.suite for row in names["rows"]} == {"clean", "pgd"}
    assert len(names["rows"]) == 22


def built(run):
    """All that its config says, training included."""
    images = identity.absent(workdir.read_data(run.path))
    return builders.build(run.config, run.opened.mesh, images)


def test_opening_reads_what_networks_need_and_no_more(run, monkeypatch):
    """No data, no optimizer, and config.json once; the same values as the whole state."""
    read, names = workdir.read_json, []
    monkeypatch.setattr(workdir, "read_json", lambda path: names.append(path) or read(path))
    monkeypatch.setattr(optim, "make", None)
    monkeypatch.setattr(sources, "load", None)
    again = aa.load(run.path)
    assert len(names) == 1 and not hasattr(again.opened.run, "tx")
    monkeypatch.undo()
    whole = built(run)
    abstract = builders.abstract_state(whole, run.opened.mesh)
    with checkpoints.Checkpoints(f"{run.path}/checkpoints", read_only=True) as saved:
        state = saved.restore(abstract, run.step)
    assert np.abs(jax.tree.leaves(state.ema["shared"])[0]).max() > 0
    chex.assert_trees_all_equal(again.variables, states.averaged(state))


def test_a_run_that_knows_nothing_of_its_images_can_be_used(run, data, tmp_path):
    shutil.copytree(run.path, tmp_path / "bare")
    (tmp_path / "bare" / "data.json").unlink()
    bare = aa.load(tmp_path / "bare")
    assert bare.classes == run.classes
    np.testing.assert_array_equal(bare.mode("linf")(data[0]), run.mode("linf")(data[0]))


def test_a_run_says_what_it_is(run):
    assert run.domains == ("clean", "linf")
    assert run.classes == ("0", "1", "2")
    assert run.config["model"]["size"] == "16x1x32x2"
    assert run.step == built(run).steps and run.path in repr(run)


def test_a_run_is_loaded_on_any_number_of_devices(run, data):
    file = pathlib.Path(run.path) / "config.json"
    text = file.read_text()
    config = json.loads(text)
    config["evaluation"]["batch_size"] = 10  # of no use to eight devices
    try:
        file.write_text(json.dumps(config))
        again = aa.load(run.path)
        assert again.opened.run.evaluation.batch_size == 16
        np.testing.assert_array_equal(
            again.mode("linf")(data[0]), run.mode("linf")(data[0])
        )
    finally:
        file.write_text(text)


def test_a_soup_is_the_ordinary_network_of_its_weights(run, data):
    images, labels = data
    soup = run.soup(clean=0.25, linf=0.75)
    plain = aa.trees.plain(run.variables, (0.25, 0.75))
    jax.tree.map(np.testing.assert_array_equal, soup.params, plain["params"])
    evaluate = jax.jit(run.opened.run.network.evaluate)
    logits = evaluate(plain, images.astype(np.float32) / np.float32(255))
    found = soup(images)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)
    right = np.argmax(logits, axis=1)
    for given in (images, images[..., 0], images / 255, np.float32(images) / 255):
        np.testing.assert_array_equal(soup.predict(given), right)
        assert soup.accuracy(given, labels) == pytest.approx(np.mean(right == labels))
    np.testing.assert_allclose(soup(images[:3]), found[:3], rtol=1e-5, atol=1e-5)
    many = np.tile(images, (11, 1, 1, 1))  # 264: more than one call
    np.testing.assert_array_equal(soup.predict(many), np.tile(right, 11))
    assert "0.25 clean + 0.75 linf" in repr(soup) and "8x8x1" in repr(soup)


def test_modes_differ_and_are_the_ends_of_the_line(run, data):
    images, _ = data
    first, last = (run.soup(dict(zip(run.domains, w, strict=True))) for w in
                   (aa.line(5)[0], aa.line(5)[-1]))  # fmt: skip
    np.testing.assert_array_equal(first(images), run.mode("clean")(images))
    np.testing.assert_array_equal(last(images), run.mode("linf")(images))
    assert np.abs(first(images) - last(images)).max() > 0.1


def test_evaluation_counts_what_the_classifiers_say(run, data):
    images, labels = data
    attack = aa.pgd("linf", 0.3, steps=2)
    rows = run.evaluate(images, labels, soups=aa.line(3), attacks={"pgd2": attack})
    clean = [row.value for row in rows if row.suite == "clean"]
    soups = [run.soup(dict(zip(run.domains, w, strict=True))) for w in aa.line(3)]
    assert clean == pytest.approx([soup.accuracy(images, labels) for soup in soups])
    attacked = [row for row in rows if row.suite == "pgd2"]
    assert all(row.metric == "robust_accuracy" for row in attacked)
    assert sum(row.value for row in attacked) < sum(clean)
    for floats in (images / 255, np.float32(images) / 255):  # every level comes back
        np.testing.assert_array_equal(front.as_bytes(floats), images)
    again = run.evaluate(images / 255, labels, soups=[{"linf": 1}], attacks={})
    assert [row.value for row in again] == clean[-1:]
    assert "| clean mode | " in aa.table(rows)
    assert repr(rows[0]).startswith("Row('clean mode', 'clean', accuracy 0.")
    assert repr(rows[0]).endswith(", 24 images)")
    assert aa.Row.of_plain(rows[-1].plain()) == rows[-1]
    axes = aa.plot_tradeoff(rows)
    assert len(axes.lines[0].get_xdata()) == 3
    with pytest.raises(aa.UsageError, match="no rows of pgd9; there are: pgd2"):
        aa.plot_tradeoff(rows, "pgd9")


def test_autoattack_takes_a_classifier(run, data):
    images, labels = data
    soup = run.mode("clean")
    settings = dict(norm="linf", eps=0.1, version=("square",), queries=5, quiet=True)
    report = aa.autoattack(soup, images, labels, **settings)
    assert report.clean_accuracy == pytest.approx(soup.accuracy(images, labels))
    by_hand = aa.attacks.autoattack(
        soup.logits_fn, images, labels, jax.random.key(0), **settings
    )
    assert report.robust_accuracy == by_hand.robust_accuracy


BAD = {
    "sum": (lambda run, x, y: run.soup(clean=0.5), "weights must sum to 1, got 0.5, 0"),
    "domain": (lambda run, x, y: run.soup(cln=1), "unknown domain 'cln'; there are: clean"),
    "length": (
        lambda run, x, y: run.evaluate(x, y, soups=[(1,)]),
        "one weight for each of clean, linf",
    ),
    "lambda": (lambda run, x, y: run.at(0.2), "not conditioned on lambda: take run.soup"),
    "size": (lambda run, x, y: run.mode("linf")(x[:, 1:]), "must be .B, 8, 8, 1. for this"),
    "range": (lambda run, x, y: run.mode("linf")(x * 1.0), "divide by 255"),
    "labels": (lambda run, x, y: run.mode("linf").accuracy(x, y + 9), "labels run from 9"),
    "levels": (lambda run, x, y: run.evaluate(x / 256, y), "whole multiples of 1/255"),
    "attack": (
        lambda run, x, y: run.evaluate(x, y, attacks={"a": {"name": "pdg"}}),
        "attacks.a.name",
    ),
    "line": (lambda run, x, y: aa.line(1), "2 soups at least, got 1"),
    "config": (lambda run, x, y: aa.config("digitz"), "no config file 'digitz'.* digits"),
    "key": (lambda run, x, y: aa.config("digits", epohs=1), "epochs"),
    "run": (lambda run, x, y: aa.load("nowhere"), "nowhere holds no run"),
    "step": (lambda run, x, y: aa.load(run.path, 7), "no checkpoint '7'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, run, data):
    call, message = BAD[case]
    with pytest.raises(aa.UsageError, match=message) as caught:
        call(run, *data)
    assert "\n" not in str(caught.value)


def test_configs_come_by_name_with_values_changed():
    config = aa.config("digits:nominal", epochs=5, **{"optimizer.base_lr": 1e-3})
    assert (config["epochs"], config["optimizer"]["base_lr"]) == (5.0, 1e-3)
    assert config["domains"] == ("clean",)
    changes = {
        "adapters": ["norms", "head"],
        "attacks.l2": {"name": "pgd"},
        "start.mixture.clean": 1,
        "seed": np.int64(3),
    }
    config = aa.config("digits:cotrain", **changes)
    assert config["adapters"] == ("norms", "head") and config["seed"] == 3
    assert config["attacks"]["l2"] == {"name": "pgd"} and "linf" in config["attacks"]
    assert config["start"]["mixture"] == {"clean": 1}


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("epochs", "ten", "config.epochs must be float, got 'ten'"),
        ("epochs", None, "config.epochs must be float, got None"),
        ("seed", 0.5, "config.seed must be int, got 0.5"),
        ("adapters", "norms", "config.adapters must be tuple, got 'norms'"),
        ("optimizer", 3, "config.optimizer must be a section, got 3"),
        ("optimizer.base_lrr", 1.0, "no such config key: 'base_lrr' in config.optimizer"),
        ("epochs.x", 1, "no such config key: 'x' in config.epochs.x"),
        ("nope.x", 1, "no such config key: 'nope' in config.nope.x"),
        ("start.mixture", 5, "start.mixture=5 must be a section like"),
    ],
)
def test_values_of_configs_are_checked_like_flags(key, value, message):
    with pytest.raises(aa.UsageError, match=message):
        aa.config("digits:cotrain", **{key: value})


def test_a_folder_with_the_name_of_a_config_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert aa.config("digits:nominal")["domains"] == ("clean",)


def test_training_from_python(tmp_path):
    flags = {"model.size": "8x1x16x1", "evaluation.suites": {}, "model.patch": 4}
    config = aa.config("digits:nominal", epochs=0.1, **flags)
    run = aa.train(config, tmp_path / "run")
    assert (run.domains, run.step) == (("clean",), 1)
    assert (tmp_path / "run" / "results.json").exists()
