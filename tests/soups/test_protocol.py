"""Choosing on some images and judging on others, on tables whose best soup is known."""

import numpy as np
import pytest

from advadapters import soups
from advadapters.evaluation import accuracy, choosing
from advadapters.networks import mixture_case

IMAGES = 400
NETWORKS = [mixture_case("ab", (a, 1 - a)).identity for a in (1.0, 0.5, 0.0)]


def table(shares, seed=0):
    """A table in which network s is right on about shares[s] of the images."""
    draw = np.random.default_rng(seed)
    right = draw.uniform(size=(len(shares), IMAGES)) < np.array(shares)[:, None]
    return accuracy.Table(np.where(right, 3, 4), np.full(IMAGES, 3), np.arange(IMAGES))


TABLES = {"fog-1": table((0.95, 0.8, 0.3), 1), "snow-1": table((0.3, 0.8, 0.9), 2)}


def of(rows, suite, way, labels=200):
    (row,) = [
        row for row in rows if (row.suite, row.way, row.labels) == (suite, way, labels)
    ]
    return row


def test_each_shift_has_its_own_soup_and_all_have_a_compromise():
    rows = choosing.rows(NETWORKS, TABLES, [10, 200], draws=5)
    own = [of(rows, suite, "specific").network.mixture["a"] for suite in TABLES]
    assert own == [1.0, 0.0]
    for suite in TABLES:
        assert of(rows, suite, "single").network.mixture["a"] == 0.5
        assert (
            of(rows, suite, "ingredient").network.mixture
            == of(rows, suite, "specific").network.mixture
        )
        unseen = soups.split_images(IMAGES, 200)[1]
        right = TABLES[suite].right[[0, 2][suite == "snow-1"], unseen].mean()
        assert of(rows, suite, "specific").value == pytest.approx(right)
        whole = TABLES[suite].right[[0, 2][suite == "snow-1"]].mean()
        assert of(rows, suite, "specific").whole == pytest.approx(whole)
    assert of(rows, "fog-1", "specific", 10).draws == 5
    assert of(rows, "fog-1", "specific", 10).tied > of(rows, "fog-1", "specific").tied


def test_what_is_judged_on_is_not_chosen_on():
    _, unseen = soups.split_images(IMAGES, 200)
    turned = TABLES["fog-1"].predictions.copy()
    turned[:, unseen] = 7 - turned[:, unseen]  # right becomes wrong, wrong right
    other = {"fog-1": TABLES["fog-1"]._replace(predictions=turned)}
    before = choosing.rows(NETWORKS, {"fog-1": TABLES["fog-1"]}, [200], draws=1)
    after = choosing.rows(NETWORKS, other, [200], draws=1)
    for one, two in zip(before, after, strict=True):
        assert one.network.mixture == two.network.mixture
        assert one.value == pytest.approx(1 - two.value)


def test_draws_are_different_parts_of_the_pool():
    pool, unseen = soups.split_images(IMAGES, 100)
    assert sorted([*pool, *unseen]) == list(range(IMAGES))
    drawn = soups.draws_of(pool, 10, 7)
    assert drawn.shape == (7, 10) and set(drawn.ravel()) <= set(pool)
    assert all(len(set(one)) == 10 for one in drawn.tolist())
    assert len({tuple(sorted(one)) for one in drawn.tolist()}) == 7
    np.testing.assert_array_equal(soups.draws_of(pool, 100, 7), pool[None])
    with pytest.raises(ValueError, match="have unseen"):
        soups.split_images(100, 100)


def test_several_runs_are_told_with_their_spread():
    runs = [choosing.rows(NETWORKS, {"fog-1": table((0.95, 0.8, 0.3), s)}, [200], 1)
            for s in (1, 2, 3)]  # fmt: skip
    values = [100 * of(rows, "fog-1", "specific").value for rows in runs]
    # Student's 97.5% quantile with two degrees of freedom is 4.3027.
    half = 4.3027 * np.std(values, ddof=1) / np.sqrt(3)
    lines = choosing.selection_table(runs).splitlines()
    assert f"| {np.mean(values):.1f} ± {half:.1f} | " in lines[2]
    assert lines[2].endswith("| 1 of 3 |") and lines[3].startswith("| mean |")
    wholes = [100 * of(rows, "fog-1", "specific").whole for rows in runs]
    half = 4.3027 * np.std(wholes, ddof=1) / np.sqrt(3)
    assert lines[5].startswith("| accuracy on all images, those that chose included, % |")
    assert f"| {np.mean(wholes):.1f} ± {half:.1f} | " in lines[7] and wholes != values
