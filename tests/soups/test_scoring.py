"""Tables of soups of real networks, one by one and in the search."""

import jax
import numpy as np
import pytest
import tiny

from advadapters import soups, trees

NET = tiny.network()
COUNT = 200


@pytest.fixture(scope="module")
def kitchen():
    """(stacked networks [4, ...], images, labels that one of their soups gets right)."""
    stacked = tiny.relatives(NET, 4)
    images = tiny.batch(COUNT)["images"]
    soup = trees.mix(stacked, (0.2, 0.1, 0.3, 0.4))
    labels = np.array(np.argmax(jax.jit(NET.apply)(soup, images), axis=1))
    # A third is labelled at random: no soup is perfect. The order must be random.
    draw = np.random.default_rng(0)
    some = draw.permutation(COUNT)[: COUNT // 3]
    labels[some] = draw.integers(5, size=len(some))
    return stacked, np.asarray(images), labels


def test_table_is_that_of_each_soup_alone(kitchen):
    stacked, images, labels = kitchen
    mixtures = [
        (1, 0, 0, 0),
        (0.25,) * 4,
        (1.5, -0.5, 0, 0),
        (0, 0.5, 0.5, 0),
        (0, 0, 0, 1),
    ]
    traces = []

    def apply(plain, images):
        traces.append(images.shape)
        return NET.apply(plain, images)

    score = soups.make_scorer(apply, trees.mix, stacked, at_once=2, batch=64)
    uncertain = soups.make_scorer(
        NET.apply, trees.mix, stacked, at_once=3, measure=soups.entropy
    )
    mask = np.arange(COUNT) % 7 > 0
    table, masked = (score(mixtures, images, labels, m) for m in (None, mask))
    entropies = uncertain(mixtures, images, labels, mask)
    alone = jax.jit(NET.apply)
    for row, entropy, mixture in zip(table, entropies, mixtures, strict=True):
        logits = alone(trees.mix(stacked, mixture), images)
        np.testing.assert_array_equal(row, np.argmax(logits, axis=1) == labels)
        p = np.asarray(jax.nn.softmax(logits), np.float64)
        by_hand = np.where(mask, -np.sum(p * np.log(p), axis=1), 0)
        np.testing.assert_allclose(entropy, by_hand, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(masked, table & mask)
    best = soups.make_scorer(NET.apply, trees.mix, stacked)
    np.testing.assert_array_equal(table, best(mixtures, images, labels))
    assert table.dtype == bool and 0 < table.mean() < 1
    # Other numbers of mixtures and images: nothing is compiled again.
    score(mixtures[:1], images[:9], labels[:9])
    assert traces == [(64, 8, 8, 1)]


def test_logits_that_are_not_finite_are_wrong():
    logits = np.array([[1.0, 2.0], [1.0, np.inf], [np.nan, 2.0], [2.0, 1.0]])
    np.testing.assert_array_equal(
        soups.right(logits, np.ones(4, int)), [True, False, False, False]
    )


def test_halving_of_real_soups(kitchen):
    stacked, images, labels = kitchen
    grid = np.array(soups.simplex(4, 0.25))
    score = soups.make_scorer(NET.apply, trees.mix, stacked, at_once=12, batch=50)
    whole = soups.select(score(grid, images, labels))
    found = soups.halving(
        lambda part, where: score(part, images[where], labels[where]), grid, COUNT,
        doublings=4,
    )  # fmt: skip
    assert found.passes <= grid.shape[0] * COUNT / 4
    assert whole.tied[found.winner] and not whole.tied.all()
    assert whole.accuracy[found.winner] >= whole.accuracy.max() - 0.02
