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


def test_losses_are_float32_whatever_the_logits():
    for loss in losses.LOSSES.values():
        assert loss(LOGITS.astype(jnp.bfloat16), jnp.array([0, 1])).dtype == jnp.float32
