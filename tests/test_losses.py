"""Losses against hand-computed values."""

import jax.numpy as jnp
import numpy as np

from advadapters import losses

LOGITS = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])


def test_cross_entropy_with_numbers_and_probabilities():
    log_sums = np.log(np.exp(LOGITS).sum(axis=1))
    hard = losses.cross_entropy(LOGITS, jnp.array([0, 2]))
    np.testing.assert_allclose(hard, log_sums - np.array([2.0, 1.0]), rtol=1e-6)
    soft = losses.cross_entropy(LOGITS, jnp.array([[0.5, 0.5, 0], [0, 0.25, 0.75]]))
    np.testing.assert_allclose(soft, log_sums - np.array([1.5, 1.5]), rtol=1e-6)


def test_margin_is_positive_when_misclassified():
    np.testing.assert_allclose(losses.margin(LOGITS, jnp.array([0, 2])), [-1.0, 2.0])
    np.testing.assert_allclose(
        losses.margin(LOGITS, jnp.array([[0.9, 0.1, 0], [0.1, 0, 0.9]])), [-1.0, 2.0]
    )


def test_logits_that_are_not_finite_are_misclassified():
    """The label's logit is the largest in each row but the last."""
    inf, nan = np.inf, np.nan
    logits = jnp.array([[2.0, 1], [2, nan], [2, -inf], [inf, 1], [nan, nan], [1, 2]])
    found = losses.misclassified(logits, jnp.zeros(6, int))
    assert found.tolist() == [False, True, True, True, True, True]


def test_losses_are_float32_whatever_the_logits():
    for loss in losses.LOSSES.values():
        assert loss(LOGITS.astype(jnp.bfloat16), jnp.array([0, 1])).dtype == jnp.float32


def test_dlr_against_the_papers_formulas():
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    labels, targets = np.array([0, 1, 2, 3, 4, 0]), np.array([1, 2, 3, 4, 0, 3])
    ordered = np.sort(logits, axis=1)[:, ::-1]
    rows = np.arange(6)
    others = logits.copy()
    others[rows, labels] = -np.inf
    expected = -(logits[rows, labels] - others.max(1)) / (ordered[:, 0] - ordered[:, 2])
    np.testing.assert_allclose(losses.dlr(logits, labels), expected, rtol=1e-4)
    gap = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    expected = -(logits[rows, labels] - logits[rows, targets]) / gap
    np.testing.assert_allclose(
        losses.dlr_targeted(logits, labels, targets), expected, rtol=1e-4
    )
    for scale in (1e-3, 1e3):
        again = losses.dlr_targeted(scale * logits, labels, targets)
        np.testing.assert_allclose(again, expected, rtol=1e-3)


def test_dlr_with_few_classes():
    logits = jnp.array([[1.0, 3.0, 0.0]])
    labels, targets = jnp.array([0]), jnp.array([2])
    np.testing.assert_allclose(losses.dlr(logits, labels), [2 / 3], rtol=1e-5)
    np.testing.assert_allclose(
        losses.dlr_targeted(logits, labels, targets), [-1 / 3], rtol=1e-5
    )
    two = logits[:, :2]
    np.testing.assert_allclose(losses.dlr(two, labels), [2.0])
    np.testing.assert_allclose(losses.dlr_targeted(two, labels, jnp.array([1])), [2.0])
