"""Choices from tables, against exact fractions, published examples and simulation."""

import math
from fractions import Fraction

import numpy as np
import pytest

from advadapters import soups
from advadapters.soups.selection import holm, sign_test


def test_sign_test_is_the_binomial_sum():
    pairs = [(0, 0), (1, 0), (3, 3), (0, 6), (10, 2), (7, 30), (400, 500), (0, 2000)]
    found = sign_test(*np.array(pairs).T)
    for (a, b), p in zip(pairs, found, strict=True):
        tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
        exact = min(Fraction(2 * tail, 2 ** (a + b)), Fraction(1))
        assert p == pytest.approx(float(exact), rel=1e-9), (a, b)


def test_holm_by_hand():
    # Sorted: 0.01 * 4, 0.02 * 3, then 0.03 * 2 and 0.04 * 1, which may not fall below.
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])


def test_select_compares_pairs_of_images():
    right = np.zeros((4, 100), bool)
    right[0, :60] = True  # the winner
    right[1, :52] = True  # 8 discordant images, all against it
    right[2, 10:69] = True  # 10 against 9
    right[3, :60] = True  # equal
    choice = soups.select(right)
    assert choice.winner == 0 and choice.tied.tolist() == [True, False, True, True]
    np.testing.assert_allclose(choice.accuracy, [0.6, 0.52, 0.59, 0.6])
    assert choice.p[1] == pytest.approx(3 * 2 * 0.5**8) and choice.p[0] == 1
    assert soups.select(right, level=0.01).tied.all()
    assert soups.select(right[:1]).tied.tolist() == [True]


def draws(images, skills):
    """200 tables of candidates of these skills, which share their images' ease."""
    draw = np.random.default_rng(images)
    for _ in range(200):
        noise = draw.normal(size=images) + 0.5 * draw.normal(size=(len(skills), images))
        yield skills[:, None] + noise > 0


@pytest.mark.parametrize("images", [10, 50, 100, 500, 1000])
def test_the_best_candidate_is_rarely_excluded(images):
    """Although the same images choose the winner: of 20 unequal and of 20 equal ones."""
    for skills in (np.linspace(0.0, 0.6, 20), np.zeros(20)):
        choices = [soups.select(right) for right in draws(images, skills)]
        assert sum(not choice.tied[-1] for choice in choices) <= 0.02 * 200
        if skills.any():
            tied = np.mean([choice.tied.sum() for choice in choices])
    # More labels tell more: all look alike on ten images, few do on a thousand.
    expected = {10: 20.0, 50: 17.0, 100: 12.1, 500: 5.0, 1000: 3.5}[images]
    assert tied == pytest.approx(expected, abs=1.0)


def test_lowest_entropy_needs_the_floor():
    entropy, robust = [0.1, 0.5, 0.3, np.nan], [0.2, 0.6, 0.5, 0.1]
    assert soups.lowest_entropy(entropy[:3], robust[:3], 0.0) == 0
    assert soups.lowest_entropy(entropy, robust, 0.5) == 2
    assert soups.lowest_entropy(entropy, robust, 0.55) == 1
    with pytest.raises(ValueError, match="robust accuracy 0.9; the highest is 0.6"):
        soups.lowest_entropy(entropy, robust, 0.9)


def test_greedy_soup_is_the_published_loop():
    """On random scores of subsets: the loop of Wortsman et al. (2022), written out."""
    for seed in range(20):
        draw = np.random.default_rng(seed)
        # Coarse, so that there are equal scores.
        table = {bits: draw.integers(6) for bits in range(1, 16)}

        def value(members, table=table):
            return table[sum(1 << k for k in members)]

        def score(mixtures, value=value):
            return [value([k for k, w in enumerate(m) if w]) for m in mixtures]

        members = []
        for k in sorted(range(4), key=lambda k: (-value([k]), k)):
            if not members or value([*members, k]) >= value(members):
                members.append(k)
        assert soups.greedy(score, 4) == (soups.average(4, members), value(members))
        assert value(members) >= max(value([k]) for k in range(4))


def test_the_best_is_never_dominated(rng):
    for values in rng.integers(0, 3, (300, 3, 6)):  # few values: many ties
        for axis in range(3):
            others = np.delete(values, axis, axis=0)
            n = soups.best(values[axis], *others)
            assert values[axis, n] == values[axis].max()
            as_good = (values >= values[:, [n]]).all(axis=0)
            assert (values[:, as_good] == values[:, [n]]).all()
        ends = soups.front(values[0], values[1])
        for end, pair in ((ends[0], values[:2]), (ends[-1], values[1::-1])):
            np.testing.assert_array_equal(pair[:, end], pair[:, soups.best(*pair)])


def test_select_tells_equals_apart_by_other_axes():
    right = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0]], bool)
    assert soups.select(right).winner == 0
    assert soups.select(right, others=[[0.1, 0.2, 0.9]]).winner == 1
