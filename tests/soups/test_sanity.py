"""Barriers of known losses; distances of related and unrelated networks."""

import numpy as np
import pytest

from advadapters import soups


def test_barrier_of_a_known_loss():
    # Along beta: a line from 1 to 3, and a parabola of height 2 on top of it.
    score = lambda mixtures: [1 + 2 * m[1] + 8 * m[1] * m[2] for m in mixtures]  # noqa: E731
    found = soups.barrier(score, 3, 1, 2)
    assert found.height == pytest.approx(2) and found.at == pytest.approx(0.5)
    assert found.losses[0] == pytest.approx(1) and found.losses[-1] == pytest.approx(3)
    # A convex loss has none.
    assert soups.barrier(lambda ms: [m[0] ** 2 for m in ms], 2, 0, 1).height == 0


def test_distances_tell_relatives_from_strangers():
    draw = np.random.default_rng(0)
    kernels = draw.normal(size=(2, 300, 300))
    distances = soups.relative_distances({"kernel": kernels, "scale": np.ones((2, 300))})
    np.testing.assert_allclose(np.diag(distances), 0)
    assert distances[0, 1] == distances[1, 0] == pytest.approx(np.sqrt(2), rel=0.01)
    related = {"kernel": kernels[:1] + 0.1 * draw.normal(size=(3, 300, 300))}
    assert soups.ancestor_warning(related) == ""
    strange = {"kernel": np.concatenate([related["kernel"][:2], kernels[1:]])}
    warning = soups.ancestor_warning(strange)
    assert "ingredients 0 and 2" in warning or "ingredients 1 and 2" in warning
    assert "\n" not in warning
    with pytest.raises(ValueError, match="no leaf has two"):
        soups.relative_distances({"scale": np.ones((2, 3))})
