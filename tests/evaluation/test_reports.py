"""Tables and pictures of many soups, from tables of predictions made by hand."""

import json

import numpy as np
import pytest

from advadapters.__main__ import main
from advadapters.commands import workdir
from advadapters.evaluation import accuracy, classes, pictures, published
from advadapters.networks import mixture_case
from advadapters.soups import simplex

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
        workdir.write_tables(folder / "evaluation.npz", CASES, found, "advadapters me")
        made.append(folder)
    return made


def test_the_class_that_pays_comes_first(folders):
    told, tables, command = workdir.read_tables(folders[0] / "evaluation.npz")
    assert command == "advadapters me" and told == TOLD
    rows = classes.changes(told, tables, "pgd")
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


def test_the_front_holds_what_nothing_beats():
    across, along = [5, 4, 3, 5, 1, 2], [1, 3, 2, 2, 4, 3]  # the last is beaten by a tie
    assert pictures.front(across, along) == [3, 1, 4]


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
        accuracy.row({"mixture": {"a": 1.0}}, suite, correct, 1000, 7)
        for suite, correct in (("imagenet", 800), ("imagenet_a", 300))
    ]
    for seed in range(2):
        (tmp_path / f"n{seed}").mkdir()
        rows[0]["value"] = 0.80 + 0.02 * seed
        (tmp_path / f"n{seed}" / "evaluation.json").write_text(json.dumps(rows))
    chosen = [
        {"way": "single", "suite": suite, "value": 0.5, "workdir": str(tmp_path / "n0")}
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
    single = next(line for line in lines if line.startswith("| Single soup, ours"))
    assert single.split("|")[11].strip() == "50.00"
    assert main(["report", f"--papers=x={tmp_path}@best", f"--output={output}"]) == 2
    assert "cannot read" in capsys.readouterr().err
