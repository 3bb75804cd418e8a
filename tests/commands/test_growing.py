"""What `evaluate` keeps: a table to which suites, sets and networks are added."""

import json
import os

import numpy as np
import pytest
import untrained

from advadapters.__main__ import main
from advadapters.errors import UsageError
from advadapters.evaluation.accuracy import NO_CLASS, Table
from advadapters.networks import mixture_case
from advadapters.runs import parts, predictions, requests

CASES = [mixture_case(("a", "b"), (w, 1 - w)) for w in (1.0, 0.5, 0.0)]
NETWORKS = [case.identity for case in CASES]


def table(said, first=0):
    """A table in which these networks say these classes [S, N] of images from a number."""
    said = np.asarray(said, np.int32)
    numbers = np.arange(first, first + said.shape[1], dtype=np.int32)
    return Table(said, numbers % 3, numbers)


def add(folder, suite, networks, said, command="evaluate", **settings):
    settings = {"suite": suite, **settings}
    tables = {suite: table(said)}
    predictions.add(folder, "t", settings, networks, [], tables, command)


def test_networks_and_suites_are_added(tmp_path):
    add(tmp_path, "clean", NETWORKS[:1], [[0, 1]], "first")
    add(tmp_path, "fog", NETWORKS[:2], [[1, 1], [2, 2]])
    add(tmp_path, "clean", NETWORKS[1:], [[NO_CLASS, 2], [40_000, 0]], "second")
    kept = predictions.read(tmp_path, "t", ["clean"])
    assert kept.networks == NETWORKS and kept.commands == {"clean": "second"}
    assert kept.tables["clean"].predictions.tolist() == [[0, 1], [NO_CLASS, 2], [40_000, 0]]
    # Networks that not all suites have are left out, and said so.
    both = predictions.read(tmp_path, "t")
    assert both.networks == NETWORKS[:2] and list(both.tables) == ["clean", "fog"]
    assert both.tables["clean"].predictions.tolist() == [[0, 1], [NO_CLASS, 2]]
    assert "1 networks were not" in predictions.left_out(tmp_path, "t", both.networks)
    add(tmp_path, "snow", NETWORKS[2:], [[0, 0]])
    with pytest.raises(UsageError, match="no network was evaluated on all of clean, fog"):
        predictions.read(tmp_path, "t")


def test_a_network_that_is_asked_again_replaces_itself_alone(tmp_path):
    add(tmp_path, "clean", NETWORKS[:2], [[0, 1], [1, 1]])
    add(tmp_path, "clean", NETWORKS[1:2], [[2, 2]])
    kept = predictions.read(tmp_path, "t")
    assert kept.networks == NETWORKS[:2]
    assert kept.tables["clean"].predictions.tolist() == [[0, 1], [2, 2]]


def test_other_settings_make_another_entry_and_the_last_asked_for_counts(tmp_path):
    add(tmp_path, "clean", NETWORKS, np.zeros((3, 4)))
    add(tmp_path, "clean", NETWORKS, np.ones((3, 2)), examples=2)
    assert len(list((tmp_path / "t").glob("*.npz"))) == 2
    assert predictions.read(tmp_path, "t").tables["clean"].predictions.shape == (3, 2)
    assert predictions.find(tmp_path, "t", {"suite": "clean"}) == NETWORKS
    assert predictions.read(tmp_path, "t").tables["clean"].predictions.shape == (3, 4)
    assert predictions.find(tmp_path, "t", {"suite": "clean", "examples": 3}) == []


def test_answers_of_other_images_are_dropped(tmp_path):
    add(tmp_path, "clean", NETWORKS[:1], [[0, 1]])
    predictions.add(
        tmp_path, "t", {"suite": "clean"}, NETWORKS[1:2], [], {"clean": table([[1]])}, ""
    )
    assert predictions.read(tmp_path, "t").networks == NETWORKS[1:2]


def test_predictions_take_a_thirtieth_of_what_rows_of_networks_took(tmp_path):
    """Networks mostly agree, and images by networks lets the compression see it."""
    draw = np.random.default_rng(0)
    classes = draw.integers(1000, size=20_000)
    said = np.repeat(classes[None], 60, axis=0)
    part = draw.uniform(size=said.shape) < 0.01
    said[part] = draw.integers(1000, size=part.sum())
    made = Table(said.astype(np.int32), classes, np.arange(20_000, dtype=np.int32))
    cases = [mixture_case(("a", "b"), (n / 60, 1 - n / 60)) for n in range(60)]
    predictions.write(tmp_path / "t.npz", cases, {"clean": made})
    np.savez_compressed(tmp_path / "old.npz", predictions=made.predictions)
    size, before = ((tmp_path / f"{n}.npz").stat().st_size for n in ("t", "old"))
    assert size / said.size < 0.15 and before / size > 10
    kept = predictions.read(tmp_path, "t").tables["clean"]
    np.testing.assert_array_equal(kept.predictions, said)
    assert kept.predictions.dtype == np.int16


@pytest.mark.parametrize(
    "text, items",
    [
        ("", {}),
        ("pgd,corruptions:fog,snow,clean", {"pgd": 0, "corruptions": 2, "clean": 0}),
        ("corruptions,fog", {"corruptions": 0, "fog": 0}),
        ("autoattack:apgd-ce,square,corruptions:fog", {"autoattack": 2, "corruptions": 1}),
        ("autoattack-fast+standard,a,b", {"autoattack-fast+standard": 0, "a": 0, "b": 0}),
    ],
)
def test_items_of_suite(text, items):
    found = requests.read_items(text)
    assert {name: len(listed) for name, listed in found.items()} == items


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growing") / "run"
    flags = ["--config.model.size=16x1x32x2", "--config.evaluation.batch_size=360",
             "--config.evaluation.suites.pgd20_linf.steps=1"]  # fmt: skip
    untrained.write(folder, "digits.py", "cotrain", flags)
    return folder


def evaluate(folder, *argv):
    assert main(["evaluate", f"--workdir={folder}", *argv]) == 0
    rows = json.loads((folder / "evaluation.json").read_text())
    return {(row["suite"], row["mixture"]["clean"]): row for row in rows}


def test_attacks_corruptions_and_sets_in_one_command(run, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", test_images=np.zeros((4, 8, 8, 1), np.uint8),
             test_labels=np.arange(4))  # fmt: skip
    argv = ["--suite=pgd20_linf,corruptions:contrast", "--severity=1,5", "--examples=40"]
    argv += [f"--data=npz:{tmp_path}/a.npz", "--mixture=clean=1"]
    rows = evaluate(run, *argv)
    suites = ["clean", "pgd20_linf", "contrast-1", "contrast-5", f"npz:{tmp_path}/a.npz"]
    assert list(rows) == [(name, 1.0) for name in [*suites, "corruptions mean"]]
    assert capsys.readouterr().out.count("evaluated before") == 0
    times = {file: file.stat().st_mtime_ns for file in (run / "evaluation").glob("*.npz")}

    # The same again does nothing; another network asks what is missing and no more.
    assert evaluate(run, *argv) == rows
    said = capsys.readouterr().out
    assert "evaluated before, with the same settings: clean, pgd20_linf, contrast-1" in said
    assert "evaluated clean" not in said and "| contrast |" in said
    assert times == {f: f.stat().st_mtime_ns for f in times}
    more = evaluate(run, *argv[:-1], "--mixture=clean=1;linf=1")
    assert {key: more[key] for key in rows} == rows and len(more) == 2 * len(rows)
    assert "clean: 1 of 2 networks were evaluated before" in capsys.readouterr().out

    # What was added later is as if all had been asked at once.
    evaluate(run, *argv[:-1], "--mixture=clean=1;linf=1", "--name=other")
    other = json.loads((run / "other.json").read_text())
    assert {json.dumps(row) for row in other} == {json.dumps(r) for r in more.values()}


def test_a_kill_loses_the_entry_at_work(run, monkeypatch):
    keep = parts.keep

    def killed(opened, part, *rest):
        if part.title == "contrast-1":
            raise KeyboardInterrupt
        keep(opened, part, *rest)

    argv = [f"--workdir={run}", "--name=killed", "--mixture=clean=1", "--examples=40",
            "--suite=pgd20_linf,corruptions:fog,contrast", "--severity=1"]  # fmt: skip
    monkeypatch.setattr(parts, "keep", killed)
    assert main(["evaluate", *argv]) == 130
    assert list(predictions.read(run, "killed").tables) == ["clean", "pgd20_linf", "fog-1"]
    assert not (run / "killed.json").exists()
    (run / "killed" / "half.npz.part").write_bytes(b"half a file")
    asked = []

    def counted(opened, part, *rest):
        asked.append(part.title)
        keep(opened, part, *rest)

    monkeypatch.setattr(parts, "keep", counted)
    assert main(["evaluate", *argv]) == 0
    assert asked == ["contrast-1"]
    rows = json.loads((run / "killed.json").read_text())
    assert main(["evaluate", *argv[:1], "--name=whole", *argv[2:]]) == 0
    assert json.loads((run / "whole.json").read_text()) == rows
    assert os.listdir(run / "killed")
    # No entry holds answers of another: those of clean images are of the clean entry.
    for entry in predictions.entries(run / "killed"):
        assert entry.suites == (entry.settings["suite"],)
