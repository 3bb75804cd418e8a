"""Losses: (logits [B, L], labels [B] int or [B, L] probabilities) -> [B] float32.

Higher is worse for the network, so an attack climbs them.
"""

import jax.numpy as jnp
import optax


def class_of(labels):
    """Labels [B] or [B, L] -> class numbers [B]."""
    return labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)


def cross_entropy(logits, labels):
    """Softmax cross-entropy, in float32."""
    logits = logits.astype(jnp.float32)
    if labels.ndim == 1:
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.losses.softmax_cross_entropy(logits, labels)


def margin(logits, labels):
    """Largest other logit minus the label's: positive means misclassified."""
    logits = logits.astype(jnp.float32)
    one_hot = jnp.arange(logits.shape[-1]) == class_of(labels)[:, None]
    own = jnp.max(jnp.where(one_hot, logits, -jnp.inf), axis=-1)
    other = jnp.max(jnp.where(one_hot, -jnp.inf, logits), axis=-1)
    return other - own


LOSSES = {"cross_entropy": cross_entropy, "margin": margin}
