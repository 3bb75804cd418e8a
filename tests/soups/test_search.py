"""Successive halving against brute force."""

import numpy as np
import pytest

from advadapters import soups

GRID = np.array(soups.simplex(4, 0.1))


def problem(seed, images=1000):
    """right [286, images]: candidates near each other err on the same images.

    An image's margin is its own ease, plus the soup of four ingredients' margins, plus a
    bonus for mixing, plus a little noise of each candidate.
    """
    draw = np.random.default_rng(seed)
    ease = draw.normal(1.0, 1.5, size=images)
    ingredients = draw.normal(size=(4, 1)) * 0.3 + draw.normal(size=(4, images))
    bonus = draw.uniform(0, 0.8) * (1 - np.square(GRID).sum(axis=1, keepdims=True))
    noise = 0.2 * draw.normal(size=(len(GRID), images))
    return GRID @ ingredients + ease + bonus + noise > 0


def scorer(right):
    """(score, list of what it was asked for) of a table of the whole grid."""
    row, asked = {tuple(mixture): s for s, mixture in enumerate(GRID)}, []

    def score(candidates, images):
        rows = [row[tuple(mixture)] for mixture in candidates]
        asked.extend((s, n) for s in rows for n in range(*images.indices(right.shape[1])))
        return right[rows, images]

    return score, asked


def test_halving_finds_the_winner_for_a_quarter():
    same = equal = 0
    for seed in range(20):
        right = problem(seed)
        score, asked = scorer(right)
        found, whole = soups.halving(score, GRID, 1000), soups.select(right)
        assert found.passes == len(asked) == len(set(asked)) <= right.size / 4
        assert whole.tied[found.winner]
        assert found.winner == found.finalists[found.choice.winner]
        # Finalists have seen all images.
        np.testing.assert_allclose(
            found.choice.accuracy, whole.accuracy[found.finalists], atol=1e-12
        )
        same += found.winner == whole.winner
        equal += whole.accuracy[found.winner] == whole.accuracy.max()
    assert (same, equal) == (20, 20)


def test_halving_for_an_eighth_may_miss_by_a_little():
    missed, loss = 0, []
    for seed in range(20):
        right = problem(seed)
        found = soups.halving(scorer(right)[0], GRID, 1000, budget=1 / 8)
        whole = soups.select(right)
        assert found.passes <= right.size / 8 and whole.tied[found.winner]
        missed += found.winner != whole.winner
        loss.append(whole.accuracy.max() - whole.accuracy[found.winner])
    assert missed <= 8 and max(loss) < 0.02


@pytest.mark.parametrize("count, images", [(1, 100), (2, 7), (3, 64), (17, 33), (286, 50)])
def test_halving_keeps_its_budget_whatever_the_sizes(count, images):
    right = problem(0, images)[:count]
    score, asked = scorer(right)
    found = soups.halving(score, GRID[:count], images)
    assert found.passes == len(asked) <= count * images / 4
    assert soups.select(right).tied[found.winner]


def test_halving_stops_when_one_is_left():
    right = np.zeros((286, 1000), bool)
    right[7] = True
    found = soups.halving(scorer(right)[0], GRID, 1000)
    assert found.winner == 7 and found.finalists.tolist() == [7]
    assert found.passes == 286 * 32


def test_halving_refuses_what_the_budget_cannot_start():
    with pytest.raises(ValueError, match="double more often"):
        soups.halving(scorer(problem(0, 8))[0], GRID, 8, budget=0.1, doublings=2)
