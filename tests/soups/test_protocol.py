"""Choosing on some images and judging on others, on tables whose best soup is known."""

import numpy as np
import pytest

from advadapters import soups
from advadapters.errors import UsageError
from advadapters.evaluation import accuracy, choosing, means
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
    rows = choosing.rows(NETWORKS, TABLES, choosing.Labels((10, 200)), draws=5)
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
    before = choosing.rows(
        NETWORKS, {"fog-1": TABLES["fog-1"]}, choosing.Labels((200,)), draws=1
    )
    after = choosing.rows(NETWORKS, other, choosing.Labels((200,)), draws=1)
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
    labels = choosing.Labels((200,))
    runs = [choosing.rows(NETWORKS, {"fog-1": table((0.95, 0.8, 0.3), s)}, labels, 1)
            for s in (1, 2, 3)]  # fmt: skip
    values = [100 * of(rows, "fog-1", "specific").value for rows in runs]
    # Student's 97.5% quantile with two degrees of freedom is 4.3027.
    half = 4.3027 * np.std(values, ddof=1) / np.sqrt(3)
    lines = choosing.selection_table(runs).splitlines()
    wholes = [100 * of(rows, "fog-1", "specific").whole for rows in runs]
    other = 4.3027 * np.std(wholes, ddof=1) / np.sqrt(3)
    title = "accuracy, %: unseen images / all images, those that chose included"
    assert lines[0].startswith(f"| {title} |") and wholes != values
    both = f"{np.mean(values):.1f} ± {half:.1f} / {np.mean(wholes):.1f} ± {other:.1f}"
    assert f"| {both} |" in lines[2]
    assert lines[2].endswith("| 1 of 3 |") and lines[3].startswith("| mean |")


def test_a_small_suite_caps_its_own_labels_only():
    small = TABLES["snow-1"]
    small = small._replace(
        predictions=small.predictions[:, :60], labels=small.labels[:60],
        index=small.index[:60],
    )  # fmt: skip
    tables = {"fog-1": TABLES["fog-1"], "snow-1": small}
    rows = choosing.rows(NETWORKS, tables, choosing.Labels((10, 200)), draws=2)
    assert (of(rows, "fog-1", "specific").used, of(rows, "fog-1", "specific").n) == (
        200,
        200,
    )
    assert (of(rows, "snow-1", "specific").used, of(rows, "snow-1", "specific").n) == (
        30,
        30,
    )
    assert of(rows, "snow-1", "specific", 10).used == 10
    # The choice is that of 30 labels alone.
    alone = choosing.rows(NETWORKS, {"snow-1": small}, choosing.Labels((30,)), draws=2)
    assert of(alone, "snow-1", "specific", 30).value == of(rows, "snow-1", "specific").value
    text = choosing.selection_table([rows])
    assert text.endswith("fewer labels than 200 where a suite is small: 30 in snow-1")
    half = choosing.Labels((10, 200), least_unseen=0.5)
    assert [half.used(n, 60) for n in (10, 30, 31)] == [10, 30, 30]


def test_a_mean_of_corruptions_is_chosen_on_one_form_and_judged_on_all():
    shares = {"fog-1": (0.9, 0.5, 0.2), "fog-2": (0.8, 0.6, 0.2), "snow-1": (0.1, 0.7, 0.2)}
    tables = {name: table(share, n) for n, (name, share) in enumerate(shares.items())}
    tables["imagenet_c/fog-1"] = TABLES["snow-1"]
    read = means.read(tables, ["corruptions", "fog-1", "imagenet_c"])
    assert list(read) == ["corruptions mean", "fog-1", "imagenet_c"]
    mean, rights = read["corruptions mean"], [t.right for t in tables.values()][:3]
    np.testing.assert_allclose(mean.share, np.mean(rights, axis=0), rtol=1e-6)
    # Each labelled image is one of the three, and all of them occur.
    same = np.array([(mean.right == right).all(axis=0) for right in rights])
    assert same.any(axis=0).all() and (same.mean(axis=1) > 0.2).all()
    rows = choosing.rows(NETWORKS, {"c": mean}, choosing.Labels((200,)), draws=1)
    best = of(rows, "c", "specific")
    assert best.network == NETWORKS[0] or best.network == NETWORKS[1]
    number = NETWORKS.index(best.network)
    unseen = soups.split_images(IMAGES, 200)[1]
    assert best.value == pytest.approx(np.mean([r[number, unseen] for r in rights]))
    assert best.whole == pytest.approx(np.mean([r[number] for r in rights]))
    assert set(means.read(tables)) == set(tables)
    other = tables["fog-2"]._replace(index=np.arange(IMAGES) + 1)
    with pytest.raises(UsageError, match="'corruptions mean': not all of its 3 parts"):
        means.read(tables | {"fog-2": other}, ["corruptions"])
