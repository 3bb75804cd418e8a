"""Grids and averages of weights against counting."""

import math
from fractions import Fraction

import numpy as np
import pytest

from advadapters import soups


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "step, extrapolation", [(0.1, 0), (0.25, 0.5), (1 / 3, 1 / 3), (1, 0)]
)
def test_simplex_has_every_mixture_once(count, step, extrapolation):
    grid = soups.simplex(count, step, extrapolation)
    n, m = round(1 / step), round(extrapolation / step)
    assert len(grid) == len(set(grid)) == math.comb(n + count * m + count - 1, count - 1)
    for mixture in grid:
        shares = [Fraction(w).limit_denominator(n) for w in mixture]
        assert sum(shares) == 1 and [float(s) for s in shares] == list(mixture)
        assert min(shares) >= -Fraction(m, n)
    assert math.isclose(max(map(max, grid)), 1 + (count - 1) * m / n)
    assert {soups.one_hot(count, k) for k in range(count)} <= set(grid)


def test_simplex_contains_the_line():
    weights = np.arange(13) / 10 - 0.1
    line = {tuple(np.round(m, 9)) for m in soups.line(2, 0, 1, weights)}
    assert line == {tuple(np.round(m, 9)) for m in soups.simplex(2, 0.1, 0.1)}


@pytest.mark.parametrize(
    "arguments", [(2, 0.3), (2, 0.1, 0.05), (2, 0), (2, 2), (2, 0.5, -1)]
)
def test_simplex_refuses_a_grid_without_the_corners(arguments):
    with pytest.raises(ValueError, match="no multiples|a grid of step"):
        soups.simplex(*arguments)


def test_average_is_uniform_over_its_members():
    assert soups.average(3, range(3)) == (1 / 3, 1 / 3, 1 / 3)
    assert soups.average(4, [2, 0]) == (0.5, 0.0, 0.5, 0.0)
    assert soups.average(3, [1]) == soups.one_hot(3, 1)
