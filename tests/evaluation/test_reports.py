"""Tables and pictures of many soups, from tables of predictions made by hand."""

import json

import numpy as np
import pytest

from advadapters.__main__ import main
from advadapters.commands import season
from advadapters.evaluation import accuracy, choosing, classes, pictures, published, tables
from advadapters.networks import mixture_case
from advadapters.runs import workdir
from advadapters.soups import front, simplex

DOMAINS = ("clean", "linf", "l2")
CASES = [mixture_case(DOMAINS, mixture) for mixture in simplex(3, 0.5)]
CASES.append(mixture_case(DOMAINS, (0.5, 0.5, 0.0), ensemble=True))
TOLD = [case.told for case in CASES]


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
        file = folder / "evaluation.npz"
        workdir.write_tables(file, CASES, found, "advadapters me", settings)
        made.append(folder)
    return made


def test_the_class_that_pays_comes_first(folders):
    told, found, command = workdir.read_tables(folders[0] / "evaluation.npz")
    assert command == "advadapters me" and told == TOLD
    rows = classes.changes(told, found, "pgd")
    assert rows[0]["class"] == 2 and rows[0]["from"] == "clean mode"
    assert rows[0]["to"] == "linf mode"
    assert rows[0]["clean"][0] == 1.0 and rows[0]["clean"][1] < 0.5
    assert [row["clean"] for row in rows[1:]] == [[1.0, 1.0]] * 3


def test_report_of_two_seeds(folders, capsys):
    assert main(["report", f"--workdir={folders[0]},{folders[1]}"]) == 0
    text = (folders[0] / "report.md").read_text()
    assert "| clean mode | 100.0 ± 0.0 |" in text and "2 seed(s)" in text
    assert text.count("- `advadapters me`") == 2
    assert "| ensemble of 0.5 clean + 0.5 linf |" in text
    for name in ("fronts", "simplex", "classes"):
        assert (folders[0] / f"report_{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_seeds_under_other_attacks_are_not_put_together(folders, tmp_path, capsys):
    told, found, _ = workdir.read_tables(folders[0] / "evaluation.npz")
    for eps, code in ((0.1, 0), (0.2, 2)):
        settings = {"pgd": {"eps": eps}}
        workdir.write_tables(tmp_path / "evaluation.npz", CASES, found, "", settings)
        argv = [f"--workdir={tmp_path},{folders[0]}", "--labels=10"]
        assert main(["select", *argv]) == code
    assert main(["report", argv[0]]) == 2
    said = capsys.readouterr().err
    assert said.count("(suite 'pgd' is another attack): run the same") == 2


def test_the_front_holds_what_nothing_beats():
    across, along = [5, 4, 3, 5, 1, 2], [1, 3, 2, 2, 4, 3]  # the last is beaten by a tie
    assert front(across, along) == [3, 1, 4]


ODD = ("night mode", "0.5 a", "lambda")  # names that look like those of networks


def rows_by(told, **counts):
    """Result rows of the networks: {suite: how many of 100 images each has right}."""
    return [
        accuracy.row(one, suite, correct, 100, 7)
        for suite, each in counts.items()
        for one, correct in zip(told, each, strict=True)
    ]


def test_no_name_is_read_back():
    told = [mixture_case(ODD, mixture).told for mixture in simplex(3, 0.5)]
    alone = [n for n, one in enumerate(told) if 1.0 in one["mixture"].values()]
    labels = np.arange(40) % 4
    right = np.random.default_rng(0).uniform(size=(len(told), 40)) < 0.5
    found = choosing.rows(told, {"clean": table(right, labels)}, labels=[20], draws=1)
    assert [r["candidates"] for r in found if r["way"] == "ingredient"] == [3]

    # The soup of night mode and 0.5 a is best, of the three alone the last one.
    rows = rows_by(told, clean=[50, 90, 10, 60, 10, 70], pgd=[5, 9, 1, 6, 1, 7])
    assert (
        season.best(rows)
        .splitlines()[2]
        .startswith(
            "| clean | lambda mode | 70.0 (60.4-78.1) | 0.5 night mode + 0.5 0.5 a | 90.0"
        )
    )
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    tables.draw_against(axes, tables.by_network(rows), "pgd", "C0")
    marked = [text.get_text() for text in axes.texts]
    assert marked == [tables.name_of(told[n]) for n in alone] and len(marked) == 3
    assert tables.markdown(rows).startswith("| mixture |")


def test_networks_of_one_shown_name_stay_apart():
    near = [(0.33333, 0.66667), (0.33334, 0.66666)]
    told = [mixture_case("ab", mixture).told for mixture in near]
    told += [mixture_case("ab", near[0], ensemble=True).told]
    told += [told[0] | {"statistics": 100}]
    lines = tables.markdown(rows_by(told, clean=[10, 20, 30, 40])).splitlines()[2:]
    assert [line.split("| ")[2][:4] for line in lines] == ["10.0", "20.0", "30.0", "40.0"]


def test_tables_of_before_there_were_kinds(tmp_path):
    cases = [case._replace(told={"mixture": case.told["mixture"]}) for case in CASES]
    cases[-1] = cases[-1]._replace(told=cases[-1].told | {"ensemble": True})
    workdir.write_tables(tmp_path / "a.npz", cases, {})
    told, _, _ = workdir.read_tables(tmp_path / "a.npz")
    assert [one["kind"] for one in told] == [one["kind"] for one in TOLD]


def test_the_best_of_equals_is_best_on_the_other_axis():
    """One definition in report's table and picture, season's table and select."""
    told = [mixture_case("abc", mixture).told for mixture in simplex(3, 0.5)[:4]]
    clean, robust = [60, 80, 80, 20], [40, 10, 30, 40]
    labels = np.zeros(100, int)
    found = {
        suite: table(np.arange(100) < np.array(counts)[:, None], labels)
        for suite, counts in (("clean", clean), ("pgd", robust))
    }
    assert classes.extremes(told, found, "pgd") == (2, 0)
    ends = front(clean, robust)
    assert (ends[0], ends[-1]) == (2, 0)
    for row, n in zip(season.best(rows_by(told, clean=clean, pgd=robust)).splitlines()[2:],
                      (2, 0), strict=True):  # fmt: skip
        assert f"| {tables.name_of(told[n])} |" in row
    chosen = choosing.rows(told, found, labels=[50], draws=1)
    specific = {r["suite"]: r["mixture"] for r in chosen if r["way"] == "specific"}
    assert specific == {"clean": told[2]["mixture"], "pgd": told[0]["mixture"]}


def test_corners_and_faces():
    np.testing.assert_allclose(pictures.corners([[0, 0, 1], [0.5, 0.5, 0]]),
                               [[0.5, 3**0.5 / 2], [0.5, 0]])  # fmt: skip
    (face,) = pictures.faces(TOLD).items()
    assert face[0] == DOMAINS and len(face[1]) == 6
    four = [mixture_case("abcd", m).told for m in simplex(4, 0.5)]
    assert [len(inside) for inside in pictures.faces(four).values()] == [6] * 4
    assert not pictures.faces([mixture_case("ab", m).told for m in simplex(2, 0.1)])


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
    rows = [
        accuracy.row(mixture_case("a", (1.0,)).told, suite, correct, 1000, 7)
        for suite, correct in (("imagenet", 800), ("imagenet_a", 300))
    ]
    for seed in range(2):
        (tmp_path / f"n{seed}").mkdir()
        rows[0]["value"] = 0.80 + 0.02 * seed
        (tmp_path / f"n{seed}" / "evaluation.json").write_text(json.dumps(rows))
    chosen = [
        {
            "way": "single",
            "suite": suite,
            "value": 0.5,
            "whole": 0.6,
            "workdir": str(tmp_path / "n0"),
        }
        for suite in published.COLUMNS.values()
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
    assert main(["report", f"--papers=x={tmp_path}@best", f"--output={output}"]) == 2
    assert "cannot read" in capsys.readouterr().err
