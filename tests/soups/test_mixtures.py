"""Grids and averages of weights against counting."""

import math
from fractions import Fraction

import numpy as np
import pytest

from advadapters import networks, soups, trees


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
    line = {tuple(np.round(m, 9)) for m in soups.line_between(2, 0, 1, weights)}
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


@pytest.mark.parametrize(
    "text, weights",
    [
        ("clean=0.9,linf=0.1", (0.9, 0.1, 0.0)),
        (" l2 = 1/4 , clean= 3/4 ", (0.75, 0.0, 0.25)),
        ("clean=1/3,linf=1/3,l2=1/3", (1 / 3, 1 / 3, 1 / 3)),
        ("clean=0.33,linf=0.33,l2=0.34", (0.33, 0.33, 0.34)),
        ("clean=1.2,linf=-0.2", (1.2, -0.2, 0.0)),
        ("clean=0.3333333,linf=0.3333333,l2=0.3333333", (0.3333333,) * 3),
    ],
)
def test_a_mixture_in_words(text, weights):
    assert soups.parse(text, ("clean", "linf", "l2")) == weights


@pytest.mark.parametrize(
    "text, told",
    [
        ("clean=0.5", "weights must sum to 1, got 0.5, 0, 0 with the sum 0.5"),
        ("clean=0.333,linf=0.333,l2=0.333", "the sum 0.999; thirds are exact as 1/3"),
        ("clean=nan,linf=1", "'nan' is no number like 0.5 and no fraction like 1/3"),
        ("clean=inf,linf=-inf", "'inf' is no number"),
        ("clean=1e999", "'1e999' is no number"),
        ("clean=1/0", "'1/0' is no number"),
        ("clean=0.5,clean=0.5", "names 'clean' twice"),
        ("clean=0.5, clean =0.5", "names 'clean' twice"),
        ("clean=0.5,l3=0.5", "unknown domain 'l3'; there are: clean, linf, l2"),
        ("clean", "'clean' is no DOMAIN=WEIGHT"),
        ("clean=1,", "'' is no DOMAIN=WEIGHT"),
        ("", "'' is no DOMAIN=WEIGHT"),
    ],
)
def test_what_is_no_mixture_is_refused(text, told):
    with pytest.raises(ValueError, match="(?s).*") as error:
        soups.parse(text, ("clean", "linf", "l2"))
    assert told in str(error.value)


def test_probabilities_are_not_extrapolated():
    assert soups.check((1.5, -0.5)) == (1.5, -0.5)
    for refused in (
        lambda: soups.parse("a=1.5,b=-0.5", "ab", convex=True),
        lambda: networks.mixture_case("ab", (1.5, -0.5), ensemble=True),
    ):
        with pytest.raises(ValueError, match="at least 0, got 1.5, -0.5"):
            refused()


NOT_SUMS = ((0.5, 0.0), (np.nan, 1.0), (np.inf, -np.inf), (1.0, 1.0))


@pytest.mark.parametrize("weights", NOT_SUMS)
def test_python_takes_no_other_weights_either(weights, tmp_path):
    for name in "ab":
        soups.write_leaves(tmp_path / name, {"x": np.ones(2)})
    stacked = {"x": np.ones((2, 2), np.float32)}
    network = (lambda p, x: x * p["x"]), trees.mix, stacked
    score, batch = soups.make_scorer(*network), (np.ones((1, 2)), np.zeros(1, int))
    for taken in (
        lambda: networks.mixture_case("ab", weights),
        lambda: soups.mix_files([tmp_path / "a", tmp_path / "b"], weights),
        lambda: soups.mix_by_path(stacked, {"x": weights}),
        lambda: score([weights], *batch),
        lambda: soups.learn(*network, *batch, weights),
        lambda: soups.line_between(2, 0, 1, [1.0, np.nan]),
        lambda: soups.simplex(2, 0.5, np.inf),
    ):
        with pytest.raises(ValueError, match="weights must|a grid of step"):
            taken()
