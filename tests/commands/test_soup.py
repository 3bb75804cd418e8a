"""Soups of whole networks on the command line, from real tiny runs."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import untrained

from advadapters import soups
from advadapters.__main__ import main
from advadapters.commands.season import barriers
from advadapters.evaluation import choosing
from advadapters.evaluation.choosing import SEARCHES
from advadapters.evaluation.rows import Row
from advadapters.networks import Identity, mixture_case
from advadapters.pixels import to_float
from advadapters.runs import evaluating, opening, predictions, workdir
from advadapters.runs.assembling import ancestor
from advadapters.runs.searching import Searcher, rounded

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
QUICK = [
    f"--config={CONFIGS}/digits_season.py",
    "--config.model.name=preact_resnet",
    "--config.model.size=4x1",
    "--config.model.norm=batch",
    "--config.evaluation.suites={}",
    "--config.epochs=0.5",
    "--config.batch_size=64",
    "--config.attacks.linf.steps=1",
    "--config.evaluation.batch_size=360",
]


def rows_of(file):
    return json.loads(file.read_text())


def quick(variant):
    """The flags of a quick run; a nominal one has no attack to shorten."""
    flags = [flag for flag in QUICK if variant != "nominal" or "attacks" not in flag]
    return [flags[0] + f":{variant}", *flags[1:]]


SEASON = [flag for flag in QUICK if "attacks" not in flag] + ["--variants=linf,nominal"]


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    """An Linf-trained network, one fine-tuned to clean images, and their soups."""
    folder = tmp_path_factory.mktemp("season")
    argv = [*SEASON, f"--workdir={folder}", "--grid=0.5"]
    assert main(["season", *argv, "--ensemble=linf=0.5,nominal=0.5"]) == 0
    for name in ("season.md", "evaluation.json"):  # later calls write their own
        shutil.copy(folder / "soup" / name, folder / f"first-{name}")
    return folder


@pytest.fixture(scope="module")
def rows(season):
    """What the first call found of the soups."""
    return rows_of(season / "first-evaluation.json")


def test_one_hot_soups_are_the_ingredients(season, rows):
    assert {tuple(row["mixture"].values()) for row in rows} == {
        (1.0, 0.0), (0.5, 0.5), (0.0, 1.0)
    }  # fmt: skip
    for name in ("linf", "nominal"):
        (alone,) = rows_of(season / name / "results.json")
        (mixed,) = [row for row in rows if row["mixture"][name] == 1.0]
        assert mixed["correct"] == alone["correct"]
    text = (season / "first-season.md").read_text()
    assert "| linf mode |" in text and "| best ingredient |" in text.replace(" | | ", " | ")


def test_an_ensemble_is_told_with_its_cost(rows):
    (ensemble,) = [row for row in rows if row["kind"] == "ensemble"]
    alone = [row["flops"] for row in rows if row["kind"] != "ensemble"]
    assert len(set(alone)) == 1
    assert ensemble["flops"] == pytest.approx(2 * alone[0], rel=0.05)


def test_barriers_are_told(season, rows):
    value = {
        row["mixture"]["linf"]: row["value"] for row in rows if row["kind"] != "ensemble"
    }
    below = max(0.0, (value[0.0] + value[1.0]) / 2 - value[0.5])
    text = (season / "first-season.md").read_text()
    assert f"| linf and nominal | {100 * below:.1f} |" in text
    made = [
        Row.of_counts(mixture_case("ab", (a, 1 - a)).identity, "clean", value, 10, 7)
        for a, value in ((1.0, 9), (0.5, 4), (0.0, 7), (1.5, 1), (-0.5, 1))
    ]
    assert "| a and b | 40.0 | 0.5 a |" in barriers(made)


def test_the_lineage_is_recorded(season):
    first, second = rows_of(season / "soup" / "lineage.json")
    assert first["ancestor"] == second["ancestor"] == str(season / "linf")
    assert (first["name"], second["name"]) == ("linf", "nominal")
    assert list(first["threats"]) == ["linf"] and second["threats"] == {}
    assert first["recipe"] != second["recipe"] and len(first["recipe"]) == 12


def test_a_second_call_trains_nothing(season, rows, capsys):
    assert main(["season", *SEASON, f"--workdir={season}", "--grid=1"]) == 0
    assert capsys.readouterr().out.count("finished already") == 2
    again = rows_of(season / "soup" / "evaluation.json")
    assert again == rows


def test_soups_are_selected_on_some_images_and_judged_on_others(season, capsys):
    argv = [f"--workdir={season / 'soup'}", "--labels=10,60", "--draws=3"]
    assert main(["evaluate", argv[0], "--grid=0.5", "--ensemble=linf=0.5,nominal=0.5"]) == 0
    assert main(["select", *argv]) == 0
    assert "| ensemble of 0.5 linf + 0.5 nominal |" in capsys.readouterr().out
    found = rows_of(season / "soup" / "selection.json")["rows"]
    seen = [(row["way"], row["labels"], row["n"], row["draws"]) for row in found]
    assert seen == [
        ("ingredient", 60, 300, 1), ("single", 60, 300, 1),
        ("specific", 10, 300, 3), ("specific", 60, 300, 1), ("ensemble", 0, 300, 1),
    ]  # fmt: skip
    assert found[1]["mixture"] == found[3]["mixture"]  # one suite: all is its own

    assert main(["select", argv[0], "--labels=360"]) == 2
    assert main(["select", argv[0], "--suite=fog-1"]) == 2
    said = capsys.readouterr().err
    assert "from 1 to 359" in said and "unknown suite 'fog-1'" in said


def evaluate_fog(folder, mixtures, *more):
    """{mixture of linf: whether it is right about each image} in light fog, in order."""
    suite = ["--suite=corruptions:brightness", "--severity=1"]
    assert main(["evaluate", f"--workdir={folder}", mixtures, *suite, *more]) == 0
    kept = predictions.read(folder, "evaluation", ["clean", "brightness-1"])
    rights = kept.tables["brightness-1"].right
    return dict(zip((n.mixture["linf"] for n in kept.networks), rights, strict=True))


def test_searches_are_judged_on_the_same_unseen_images(season, capsys):
    folder = season / "soup"
    mixtures = "--mixture=linf=1;nominal=1;linf=0.25,nominal=0.75"
    kept = evaluate_fog(folder, mixtures, "--examples=200")
    argv = [f"--workdir={folder}", "--labels=60", "--by=greedy,learn,entropy"]
    argv += ["--suite=clean,brightness-1"]
    assert main(["select", *argv, "--floor=clean=0.01"]) == 0
    out = capsys.readouterr().out
    rows = {
        row["way"]: row
        for row in rows_of(folder / "selection.json")["rows"]
        if row["suite"] == "brightness-1" and row["way"] in SEARCHES
    }
    assert {way: row["labels"] for way, row in rows.items()} == {
        "greedy": 60, "learn": 60, "entropy": 0
    }  # fmt: skip
    assert "| brightness-1 | learned soup, 60 labels |" in out

    # Each soup, evaluated like others, is right as often on the unseen images.
    shares = {way: row["mixture"]["linf"] for way, row in rows.items()}
    soups_ = sorted({*shares.values(), 0.5})
    mixtures = [f"linf={w},nominal={round(1 - w, 4)}" for w in soups_]
    rights = evaluate_fog(folder, f"--mixture={';'.join(mixtures)}", "--examples=200")
    pool, unseen = soups.split_images(200, 60)
    for way, row in rows.items():
        assert row["value"] == pytest.approx(rights[shares[way]][unseen].mean())
        assert row["low"] < row["value"] < row["high"] and row["n"] == 140
    assert shares["entropy"] in (0.0, 0.25, 1.0) and 0 <= shares["learn"] <= 1
    # The average of two joins what it is averaged with if it is not worse.
    best = max(kept[0.0][pool].mean(), kept[1.0][pool].mean())
    average = rights[0.5][pool].mean()
    assert (shares["greedy"] == 0.5) == (average >= best)

    assert main(["select", *argv, "--floor=clean=1"]) == 2
    assert main(["select", *argv[:2], "--by=greedy", "--floor=clean=1"]) == 2
    err = capsys.readouterr().err
    assert "no candidate has robust accuracy 1.0" in err and "with --by=entropy" in err


def test_learning_looks_at_the_images_that_the_networks_saw(season):
    """Those of a corruption are drawn by the number of the image in the test set."""
    folder = season / "soup"
    suite = ["--suite=corruptions:gaussian_noise", "--severity=5", "--grid=0.5"]
    assert main(["evaluate", f"--workdir={folder}", *suite]) == 0
    kept = predictions.read(folder, "evaluation", ["clean", "gaussian_noise-5"])
    searcher = Searcher(folder, "evaluation", kept, choosing.Labels((60,)))
    numbers = np.array([300, 7, 8, 150])
    images, labels = searcher.images("gaussian_noise-5", numbers)
    opened, variables, _ = searcher.reopened
    networks = [mixture_case(searcher.domains, (w, 1 - w)) for w in (1.0, 0.5, 0.0)]
    for case, identity in zip(networks, kept.networks, strict=True):
        assert case.identity == identity
        logits = opened.run.network.evaluate(
            opened.run.network.at(variables, case.knob), to_float(images)
        )
        table = kept.tables["gaussian_noise-5"]
        row = table.predictions[kept.networks.index(identity)][numbers]
        np.testing.assert_array_equal(np.argmax(logits, axis=1), row)
    np.testing.assert_array_equal(labels, table.labels[numbers])


def test_weights_are_rounded_to_a_soup():
    assert rounded(np.array([0.123456, 0.876544])) == (0.1235, 0.8765)
    for seed in range(20):
        weights = rounded(np.random.default_rng(seed).dirichlet(np.ones(5)))
        assert sum(weights) == pytest.approx(1, abs=1e-12)
        assert all(weight == round(weight, 4) for weight in weights)


def test_statistics_are_estimated_anew(season, tmp_path, capsys):
    argv = [f"--workdir={season / 'soup'}", "--mixture=linf=0.5,nominal=0.5"]
    identity = Identity("soup", {"linf": 0.5, "nominal": 0.5})
    warning = "warning: 0.5 linf + 0.5 nominal: running statistics of batch norm are mixed"
    found = []
    for more, says in (([], {}), (["--statistics=360"], {"statistics": 360})):
        capsys.readouterr()
        assert main(["evaluate", *argv, *more]) == 0
        assert (warning in capsys.readouterr().out) == (not more)
        kept = predictions.read(season / "soup", "evaluation", ["clean"])
        number = kept.networks.index(dataclasses.replace(identity, **says))
        clean = kept.tables["clean"]
        found.append(clean._replace(predictions=clean.predictions[[number]]))
    mixed, fresh = found
    assert (mixed.labels == fresh.labels).all() and len(mixed.labels) == 360
    assert (mixed.predictions != fresh.predictions).any()

    # What is taken out says the same of every image as what was evaluated.
    new = tmp_path / "new"
    assert main(["extract", *argv, f"--output={tmp_path / 'old'}"]) == 0
    assert warning in capsys.readouterr().out
    assert main(["extract", *argv, "--statistics=360", f"--output={new}"]) == 0
    assert main(["evaluate", f"--workdir={new}"]) == 0
    assert "warning" not in capsys.readouterr().out
    assert ancestor(new, workdir.read_config(new)) == str(season / "linf")
    tables = predictions.read(new, "evaluation").tables
    assert (tables["clean"].predictions == fresh.predictions).all()


def test_modes_and_ensembles_are_not_warned_of(season, capsys):
    opened = opening.open_run(workdir.read_config(season / "soup"), season / "soup")
    variables = {"stats": {"shared": {}, "adapters": {"mean": 0}}}
    cases = opened.run.evaluation.cases
    modes = [case for case in cases if case.identity.kind == "mode"]
    ensemble = mixture_case(opened.run.domains, (0.5, 0.5), ensemble=True)
    assert evaluating.settle_statistics(opened, variables, [*modes, ensemble])
    assert capsys.readouterr().out == ""
    evaluating.settle_statistics(opened, variables, cases)
    told = capsys.readouterr().out
    assert "warning: 1.1 linf + -0.1 nominal and 10 more soups: " in told
    nothing = {"stats": {"shared": {}, "adapters": {}}}
    evaluating.settle_statistics(opened, nothing, cases)
    assert capsys.readouterr().out == ""


def test_suites_of_one_name_and_other_settings_are_refused(season, tmp_path, capsys):
    config = json.loads((season / "linf" / "config.json").read_text())
    for name, eps in (("a", 0.1), ("b", 0.2)):
        suite = {"name": "pgd", "norm": "linf", "eps": eps}
        config["evaluation"]["suites"] = {"pgd": suite}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    argv = [f"--ingredients={tmp_path / 'a'},{tmp_path / 'b'}", f"--output={tmp_path}/c"]
    assert main(["soup", *argv]) == 2
    said = capsys.readouterr().err
    assert "both have a suite 'pgd', with eps=0.2 and 0.1: " in said
    assert said.count("\n") == 1 and not (tmp_path / "c").exists()


def test_a_soup_of_strangers_is_warned_of_and_of_other_models_refused(
    season, tmp_path, capsys
):
    other, wide = tmp_path / "other", tmp_path / "wide"
    flags = [*quick("nominal")[1:], "--config.start.workdir="]
    untrained.write(other, "digits_season.py", "nominal", flags)
    flags.append("--config.model.activation=silu")
    untrained.write(wide, "digits_season.py", "nominal", flags)
    capsys.readouterr()
    argv = [f"--ingredients={season / 'linf'},{other}", f"--output={tmp_path / 'mix'}"]
    assert main(["soup", *argv]) == 0
    assert "warning: the ingredients have different ancestors" in capsys.readouterr().out
    assert main(["soup", *argv]) == 2
    assert "holds a run already" in capsys.readouterr().err
    # What was cut short, before or after the checkpoint, is completed.
    mix = tmp_path / "mix"
    kept = (mix / "lineage.json").read_text()
    for part in ((), ("checkpoints",)):
        (mix / "lineage.json").unlink()
        for name in part:
            shutil.rmtree(mix / name)
        assert main(["soup", *argv]) == 0
        assert (mix / "lineage.json").read_text() == kept and any(
            (mix / "checkpoints").iterdir()
        )
    argv = [f"--ingredients={season / 'linf'},{wide}", f"--output={tmp_path / 'no'}"]
    assert main(["soup", *argv]) == 2
    assert "differ in config.model.activation" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "verb, argv, told",
    [
        ("soup", ["--ingredients=SOUP", "--output=NEW"], "two or more different names"),
        ("soup", ["--ingredients=SOUP,LINF", "--output=NEW"], "advadapters extract"),
        ("soup", ["--ingredients=a,b", "--output=NEW"], "holds no run"),
        ("season", ["--variants=linf", "--workdir=NEW"], "two or more different ones"),
        ("evaluate", ["--workdir=SOUP", "--ensemble=linf=2,nominal=-1"], "at least 0"),
        ("evaluate", ["--workdir=LINF", "--ensemble=linf=1"], "several domains"),
        ("evaluate", ["--workdir=SOUP", "--grid=0.3"], "are no multiples of 0.3"),
        ("evaluate", ["--workdir=SOUP", "--mixture=linf=0.5"], "weights must sum to 1"),
        ("evaluate", ["--workdir=SOUP", "--mixture= ; "], "names no mixture"),
        ("evaluate", ["--workdir=SOUP", "--ensemble=linf=0.5"], "weights must sum to 1"),
        ("transfer", ["--workdir=SOUP", "--mixture=linf=nan"], "'nan' is no number"),
        (
            "extract",
            ["--workdir=SOUP", "--width=0.5", "--statistics=9", "--output=NEW"],
            "--statistics goes with --mixture",
        ),
        ("soup", ["--ingredients=a=b,LINF", "--output=NEW"], "'a=b' has '='"),
        ("extract", ["--workdir=SOUP", "--mixture=linf=0.5", "--output=NEW"], "sum to 1"),
        (
            "season",
            ["--variants=linf,nominal", "--workdir=NEW", "--ensemble=linf=1,linf=0"],
            "names 'linf' twice",
        ),
        ("select", ["--workdir=LINF"], "cannot read"),
        ("season", ["--variants=linf,l3", "--workdir=NEW"], "unknown variant 'l3'"),
        ("season", ["--variants=linf,l2", "--workdir=HERE"], "is made of linf, nominal"),
        ("season", ["--variants=linf,l2", "--grid=0.3", "--workdir=NEW"], "multiples of"),
    ],
)
def test_bad_input(season, tmp_path, monkeypatch, capsys, verb, argv, told):
    monkeypatch.chdir(tmp_path)
    paths = {"SOUP": season / "soup", "LINF": season / "linf", "HERE": season}
    for name, path in paths.items():
        argv = [text.replace(name, str(path)) for text in argv]
    config = [QUICK[0]] if verb == "season" else []
    assert main([verb, *config, *argv]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
