"""Tables and pictures of many soups, from tables of predictions made by hand."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from advadapters import configs
from advadapters.__main__ import main
from advadapters.commands import season
from advadapters.data.corruptions import COMMON, SEVERITIES
from advadapters.evaluation import (
    accuracy,
    choosing,
    classes,
    pictures,
    published,
    rows,
    shifts,
    tables,
)
from advadapters.evaluation.rows import Row
from advadapters.networks import mixture_case
from advadapters.runs import concluding, predictions
from advadapters.soups import front, simplex

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
DOMAINS = ("clean", "linf", "l2")
CASES = [mixture_case(DOMAINS, mixture) for mixture in simplex(3, 0.5)]
CASES.append(mixture_case(DOMAINS, (0.5, 0.5, 0.0), ensemble=True))
NETWORKS = [case.identity for case in CASES]


def table(right, labels):
    """A table in which these networks [S] are right about these images [N]."""
    labels = np.asarray(labels)
    return accuracy.Table(np.where(right, labels, 9), labels, np.arange(len(labels)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two seeds: clean mode is best on clean images, linf mode when attacked."""
    made, labels = [], np.arange(100) % 4
    for seed in range(2):
        draw = np.random.default_rng(seed).uniform(size=100)
        clean = np.array([case.knob.mixture[0] for case in CASES])[:, None]
        robust = np.array([case.knob.mixture[1] for case in CASES])[:, None]
        found = {
            # What robustness costs is paid by class 2 alone.
            "clean": table((labels != 2) | (draw < 0.2 + 0.8 * clean), labels),
            "pgd": table(draw < 0.3 + 0.5 * robust, labels),
        }
        folder = tmp_path_factory.mktemp("report") / f"run{seed}"
        folder.mkdir()
        settings = {"pgd": {"eps": 0.1}}
        predictions.write(folder / "evaluation.npz", CASES, found, settings)
        made.append(folder)
    return made


def test_the_class_that_pays_comes_first(folders):
    kept = predictions.read(folders[0], "evaluation")
    assert kept.commands == {} and kept.networks == NETWORKS
    changes = classes.changes(kept.networks, kept.tables, "pgd")
    assert changes[0]["class"] == 2 and changes[0]["from"] == "clean mode"
    assert changes[0]["to"] == "linf mode"
    assert changes[0]["clean"][0] == 1.0 and changes[0]["clean"][1] < 0.5
    assert [row["clean"] for row in changes[1:]] == [[1.0, 1.0]] * 3


def test_report_of_two_seeds(folders, capsys):
    assert main(["report", f"--workdir={folders[0]},{folders[1]}"]) == 0
    text = (folders[0] / "report.md").read_text()
    assert "| clean mode | 100.0 ± 0.0 |" in text and "2 seed(s)" in text
    assert text.count("- `advadapters train ...") == 2
    assert "| ensemble of 0.5 clean + 0.5 linf |" in text
    for name in ("fronts", "simplex", "classes"):
        assert (folders[0] / f"report_{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_seeds_under_other_attacks_are_not_put_together(folders, tmp_path, capsys):
    found = predictions.read(folders[0], "evaluation").tables
    for eps, code in ((0.1, 0), (0.2, 2)):
        settings = {"pgd": {"eps": eps}}
        predictions.write(tmp_path / "evaluation.npz", CASES, found, settings)
        argv = [f"--workdir={tmp_path},{folders[0]}", "--labels=10"]
        assert main(["select", *argv]) == code
    assert main(["report", argv[0]]) == 2
    said = capsys.readouterr().err
    assert said.count("(suite 'pgd' is another attack): run the same") == 2


def test_a_greedy_soup_of_kept_soups_needs_no_network(folders, capsys):
    """There is no run in these folders."""
    argv = [f"--workdir={folders[0]}", "--labels=50", "--by=greedy,learn"]
    assert main(["select", *argv, "--suite=pgd"]) == 0
    out = capsys.readouterr().out
    assert "learn is left out in pgd, whose images an attack makes" in out
    assert "| pgd | greedy soup, 50 labels | linf mode |" in out
    rows = json.loads((folders[0] / "selection.json").read_text())["rows"]
    (greedy,) = [row for row in rows if row["way"] == "greedy"]
    (ingredient,) = [row for row in rows if row["way"] == "ingredient"]
    assert greedy | {"way": "ingredient"} == ingredient | {"tied": 0.0}
    assert main(["select", *argv, "--suite=clean"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_the_front_holds_what_nothing_beats():
    across, along = [5, 4, 3, 5, 1, 2], [1, 3, 2, 2, 4, 3]  # the last is beaten by a tie
    assert front(across, along) == [3, 1, 4]


ODD = ("night mode", "0.5 a", "lambda")  # names that look like those of networks


def rows_by(networks, **counts):
    """Result rows of the networks: {suite: how many of 100 images each has right}."""
    return [
        Row.of_counts(network, suite, correct, 100, 7)
        for suite, each in counts.items()
        for network, correct in zip(networks, each, strict=True)
    ]


def test_no_name_is_read_back():
    networks = [mixture_case(ODD, mixture).identity for mixture in simplex(3, 0.5)]
    alone = [n for n, one in enumerate(networks) if 1.0 in one.mixture.values()]
    labels = np.arange(40) % 4
    right = np.random.default_rng(0).uniform(size=(len(networks), 40)) < 0.5
    found = choosing.rows(
        networks, {"clean": table(right, labels)}, labels=choosing.Labels((20,)), draws=1
    )
    assert [r.candidates for r in found if r.way == "ingredient"] == [3]

    # The soup of night mode and 0.5 a is best, of the three alone the last one.
    rows = rows_by(networks, clean=[50, 90, 10, 60, 10, 70], pgd=[5, 9, 1, 6, 1, 7])
    assert (
        season.best(rows)
        .splitlines()[2]
        .startswith(
            "| clean | lambda mode | 70.0 (60.4-78.1) | 0.5 night mode + 0.5 0.5 a | 90.0"
        )
    )
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    tables.draw_against(axes, rows, "pgd", "C0")
    marked = [text.get_text() for text in axes.texts]
    assert marked == [str(networks[n]) for n in alone] and len(marked) == 3
    assert tables.results_table(rows).startswith("| mixture |")


def test_networks_of_one_shown_name_stay_apart():
    near = [(0.33333, 0.66667), (0.33334, 0.66666)]
    networks = [mixture_case("ab", mixture).identity for mixture in near]
    networks += [mixture_case("ab", near[0], ensemble=True).identity]
    networks += [dataclasses.replace(networks[0], statistics=100)]
    lines = tables.results_table(rows_by(networks, clean=[10, 20, 30, 40])).splitlines()[2:]
    assert [line.split("| ")[2][:4] for line in lines] == ["10.0", "20.0", "30.0", "40.0"]


def test_tables_of_before_there_were_kinds(tmp_path):
    old = [{"mixture": network.mixture} for network in NETWORKS]
    old[-1] |= {"ensemble": True}
    said = np.arange(2 * len(old), dtype=np.int32).reshape(len(old), 2)
    with (tmp_path / "a.npz").open("wb") as file:
        arrays = {
            "clean/predictions": said,
            "clean/labels": said[0],
            "clean/index": said[0],
        }
        arrays |= {"networks": np.array(json.dumps(old)), "command": np.array("")}
        np.savez(file, **arrays)
    kept = predictions.read(tmp_path, "a")
    assert kept.networks == NETWORKS and kept.settings == {}
    np.testing.assert_array_equal(kept.tables["clean"].predictions, said)


OLD = """[
 {"mixture": {"clean": 0.9, "linf": 0.1}, "suite": "clean", "metric": "accuracy",
  "value": 0.5, "low": 0.4, "high": 0.6, "correct": 50, "n": 100, "step": 7},
 {"mixture": {"clean": 0.5, "linf": 0.5}, "ensemble": true, "suite": "pgd",
  "metric": "robust_accuracy", "value": 0.2, "low": 0.1, "high": 0.3, "correct": 20,
  "n": 100, "step": 7, "not_finite": 1, "not_attacked": 2, "settings": {"eps": 0.1}},
 {"kind": "lambda", "mixture": {"clean": 1.0}, "lambda": 0.2, "width": 0.5, "seed": 3,
  "flops": 5000000.0, "suite": "mCE", "metric": "mCE", "value": 0.7, "n": 100, "step": 7}
]"""


def test_rows_of_an_old_file_are_read_and_written_with_all_their_fields():
    soup, ensemble, conditioned = found = rows.load(OLD)
    assert [str(row.network) for row in found] == [
        "0.9 clean + 0.1 linf",
        "ensemble of 0.5 clean + 0.5 linf",
        "lambda 0.2, width 0.5",
    ]
    assert soup.network == mixture_case(("clean", "linf"), (0.9, 0.1)).identity
    assert (soup.value, soup.low, soup.correct, soup.not_finite) == (0.5, 0.4, 50, 0)
    assert ensemble.network.kind == "ensemble" and ensemble.not_attacked == 2
    assert conditioned.low is None and conditioned.correct is None
    assert conditioned.flops == 5e6 and conditioned.more == {"seed": 3}
    for old, new in zip(json.loads(OLD), json.loads(rows.dump(found)), strict=True):
        old.pop("ensemble", None)
        assert new.items() >= old.items()
    assert rows.load(rows.dump(found)) == found
    assert "| 0.9 clean + 0.1 linf | 50.0 (40.0-60.0) |" in tables.results_table(found)
    for text in ("{}", "[1]", '[{"suite": "clean"}]', "["):
        with pytest.raises(ValueError):
            rows.load(text)


def test_the_best_of_equals_is_best_on_the_other_axis():
    """One definition in report's table and picture, season's table and select."""
    networks = [mixture_case("abc", mixture).identity for mixture in simplex(3, 0.5)[:4]]
    clean, robust = [60, 80, 80, 20], [40, 10, 30, 40]
    labels = np.zeros(100, int)
    found = {
        suite: table(np.arange(100) < np.array(counts)[:, None], labels)
        for suite, counts in (("clean", clean), ("pgd", robust))
    }
    assert classes.extremes(networks, found, "pgd") == (2, 0)
    ends = front(clean, robust)
    assert (ends[0], ends[-1]) == (2, 0)
    best = season.best(rows_by(networks, clean=clean, pgd=robust))
    for row, n in zip(best.splitlines()[2:], (2, 0), strict=True):
        assert f"| {networks[n]} |" in row
    chosen = choosing.rows(networks, found, labels=choosing.Labels((50,)), draws=1)
    specific = {r.suite: r.network.mixture for r in chosen if r.way == "specific"}
    assert specific == {"clean": networks[2].mixture, "pgd": networks[0].mixture}


def test_corners_and_faces():
    np.testing.assert_allclose(pictures.corners([[0, 0, 1], [0.5, 0.5, 0]]),
                               [[0.5, 3**0.5 / 2], [0.5, 0]])  # fmt: skip
    (face,) = pictures.faces(NETWORKS).items()
    assert face[0] == DOMAINS and len(face[1]) == 6
    four = [mixture_case("abcd", m).identity for m in simplex(4, 0.5)]
    assert [len(inside) for inside in pictures.faces(four).values()] == [6] * 4
    assert not pictures.faces([mixture_case("ab", m).identity for m in simplex(2, 0.1)])


def test_the_published_means_are_the_posters():
    # The poster's own column of means; the last is the paper's headline for soups.
    means = [55.84, 56.09, 57.23, 60.14, 58.86, 58.99, 60.02, 59.46, 64.24]
    found = [np.mean(values) for _, values in published.ROWS.values()]
    np.testing.assert_allclose(found, means, atol=0.006)


def images_of(percent, images):
    """Counts of right images that two digits behind the point may stand for."""
    counts = np.arange(images + 1)
    return counts[np.round(100 * counts / images, 2) == percent].tolist()


def test_the_published_numbers_tell_the_images_that_they_are_of():
    """Conflict Stimuli: all 1,280, not the 1,200 whose cues conflict; soups that 1,000
    labels chose: all images of a set, not those that are left."""
    number = list(published.COLUMNS).index("Conflict")
    for _, values in published.ROWS.values():
        assert images_of(values[number], 1280) and not images_of(values[number], 1200)
    own = published.ROWS["Dataset-specific soups"][1]
    assert images_of(own[number], 1280) == [858] and not images_of(own[number], 280)
    on_a = own[list(published.COLUMNS).index("A")]
    assert images_of(on_a, 7500) == [2870] and not images_of(on_a, 6500)


def test_our_rows_stand_below_the_papers(tmp_path, capsys):
    results = [
        Row.of_counts(mixture_case("a", (1.0,)).identity, suite, correct, 1000, 7)
        for suite, correct in (("imagenet", 800), ("imagenet_a", 300))
    ]
    for seed in range(2):
        (tmp_path / f"n{seed}").mkdir()
        results[0] = dataclasses.replace(results[0], value=0.80 + 0.02 * seed)
        (tmp_path / f"n{seed}" / "evaluation.json").write_text(rows.dump(results))
    chosen = [
        {
            "way": "single",
            "suite": suite,
            "value": 0.5,
            "whole": 0.6,
            "workdir": str(tmp_path / "n0"),
        }
        for (*_, suite) in published.COLUMNS.values()
    ]
    (tmp_path / "n0" / "selection.json").write_text(json.dumps({"rows": chosen}))
    papers = (
        f"Nominal training={tmp_path / 'n0'},{tmp_path / 'n1'};"
        f"Single soup={tmp_path / 'n0'}@single"
    )
    output = tmp_path / "papers.md"
    assert main(["report", f"--papers={papers}", f"--output={output}"]) == 0
    lines = output.read_text().splitlines()
    assert lines[2].startswith("| Nominal training, published | 1 | 82.64 |")
    # 12.7062 is Student's 97.5% quantile with one degree of freedom.
    half = 12.7062 * np.std([80, 82], ddof=1) / 2**0.5
    assert lines[3].startswith(
        f"| Nominal training, ours |  | 81.00 ± {half:.2f} |  |  | 30.00 ± 0.00 |  |"
    )
    assert lines[3].split("|")[11].strip() == ""  # no mean of a part
    for kind, mean in (("whole sets", "60.00"), ("unseen images", "50.00")):
        (single,) = (line for line in lines if f"| Single soup, ours, {kind} |" in line)
        assert single.split("|")[11].strip() == mean
    for way, told in (
        ("single", "cannot read"),
        ("best", "unknown way of choosing 'best'"),
    ):
        assert main(["report", f"--papers=x={tmp_path}@{way}", f"--output={output}"]) == 2
        assert told in capsys.readouterr().err


NINE = [*published.ROWS]
SUITES = [
    "clean" if title == "IN" else suites[0] for title, suites in published.COLUMNS.items()
]


def evaluated(folder, networks, suites, draw):
    """A folder with the tables of networks on suites, C as 75 corruptions."""
    folder.mkdir()
    for name in suites:
        parts = {name: {}}
        if name == "imagenet_c":
            parts = {
                f"imagenet_c/{s}": of for s, of in shifts.about(COMMON, SEVERITIES).items()
            }
        for suite, about in parts.items():
            right = draw.uniform(size=(len(networks), 30)) < 0.6
            made = table(right, np.arange(30) % 4)
            listed = [
                Row.of_counts(network, suite, int(marks.sum()), 30, 7, **about)
                for network, marks in zip(networks, right, strict=True)
            ]
            settings = {"suite": suite, **about}
            predictions.add(
                folder, "evaluation", settings, networks, listed, {suite: made}, ""
            )
    config = configs.parse([f"--config={CONFIGS}/imagenet_vit_b16.py"], {})[0].to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    concluding.conclude(folder, "evaluation", [], [], True, "evaluate")


def test_all_cells_of_the_poster_are_filled_and_empty_only_where_a_step_was_not_run(
    tmp_path, capsys
):
    """Nine rows of eight columns and their mean, from runs of five kinds."""
    draw = np.random.default_rng(0)
    modes = [case.identity for case in CASES if case.identity.kind == "mode"]
    places = {name: tmp_path / f"run{n}" for n, name in enumerate(NINE[:6])}
    for name, folder in places.items():
        networks = NETWORKS[-1:] if "ensemble" in name else modes[:1]
        evaluated(folder, [*modes[:1], *networks][-2:], SUITES, draw)
    evaluated(tmp_path / "soup", NETWORKS, SUITES, draw)
    suites = ",".join(SUITES)
    argv = [f"--workdir={tmp_path / 'soup'}", "--labels=10", f"--suite={suites}"]
    assert main(["select", *argv]) == 0
    ways = {
        NINE[5]: "@ensemble",
        NINE[6]: "@ensemble",
        NINE[7]: "@single",
        NINE[8]: "@specific",
    }
    papers = {
        name: f"{places.get(name, tmp_path / 'soup')}{ways.get(name, '')}" for name in NINE
    }

    def report():
        text = ";".join(f"{name}={where}" for name, where in papers.items())
        output = tmp_path / "papers.md"
        assert main(["report", f"--papers={text}", f"--output={output}"]) == 0
        lines = [
            line.split("|") for line in output.read_text().splitlines() if ", ours" in line
        ]
        cells = {line[1].strip(): [cell.strip() for cell in line[3:12]] for line in lines}
        return cells, output.read_text()

    cells, text = report()
    assert len(cells) == 7 + 2 * 2 and "Empty cells" not in text
    assert all(all(row) for row in cells.values())
    for row in cells.values():
        assert float(row[8]) == pytest.approx(
            np.mean([float(c) for c in row[:8]]), abs=0.01
        )
    # A suite that was not evaluated, one of the 75 sets, and a run that was not given.
    for pattern in ("imagenet_v2-*", "imagenet_c_fog-3-*"):
        for file in (places[NINE[0]] / "evaluation").glob(pattern):
            file.unlink()
    concluding.conclude(places[NINE[0]], "evaluation", [], [], True, "evaluate")
    del papers[NINE[1]]
    again, text = report()
    nominal = again.pop(f"{NINE[0]}, ours")
    assert [n for n, cell in enumerate(nominal) if not cell] == [2, 7, 8]
    assert set(again.pop(f"{NINE[1]}, ours")) == {""}
    assert again == {k: v for k, v in cells.items() if k in again}
    assert f"* {NINE[0]}: not evaluated on imagenet_v2, imagenet_c" in text
    assert f"* {NINE[1]}: no run was given" in text and text.count("\n* ") == 2
