"""Losses: (logits [B, L], labels [B] int or [B, L] probabilities) -> [B] float32.

Higher is worse for the network, so an attack climbs them.
"""

import jax
import jax.numpy as jnp

from advadapters.shapes import (
    AnyArray,
    Array,
    Bool,
    Classes,
    Float,
    Labels,
    Logits,
    PerImage,
)


def class_of(labels: Labels) -> Classes:
    """Labels [B] or [B, L] -> class numbers [B]."""
    return labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)


def one_hot(classes: Classes, count: int) -> Bool[Array, "B L"]:
    """Class numbers [B] -> bool [B, count]: which column is the row's class."""
    classes = jnp.asarray(classes)  # in the types that jax has
    return classes[:, None] == jnp.arange(count, dtype=classes.dtype)[None, :]


def misclassified(
    logits: Float[AnyArray, "... B L"], labels: Labels
) -> Bool[AnyArray, "... B"]:
    """bool [B]: another class is the largest, or some logit is not finite.

    Who gives no numbers has not given the label. Evaluation counts the same way, so an
    attack that finds such an image has broken it.
    """
    wrong = jnp.argmax(logits, axis=-1) != class_of(labels)
    return wrong | ~jnp.all(jnp.isfinite(logits), axis=-1)


def cross_entropy(logits: Logits, labels: Labels) -> PerImage:
    """Softmax cross-entropy, in float32."""
    import optax  # here alone, as soups score without it

    logits = logits.astype(jnp.float32)
    if labels.ndim == 1:
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.losses.softmax_cross_entropy(logits, labels)


def label_and_rival(values: Logits, labels: Labels) -> tuple[PerImage, PerImage]:
    """(the label's value [B], the largest of the others [B]) of values [B, L]."""
    label = one_hot(class_of(labels), values.shape[-1])
    first = jnp.max(jnp.where(label, values, -jnp.inf), axis=-1)
    return first, jnp.max(jnp.where(label, -jnp.inf, values), axis=-1)


def margin(logits: Logits, labels: Labels) -> PerImage:
    """Largest other logit minus the label's: positive means misclassified."""
    label, rival = label_and_rival(logits.astype(jnp.float32), labels)
    return rival - label


def probability_margin(logits: Logits, labels: Labels) -> PerImage:
    """The margin of probabilities, in [-1, 1] (Xie et al. 2024, arXiv:2411.15210).

    Its gradient has part in all classes, by their probabilities. It vanishes where the
    network is certain.
    """
    return margin(jax.nn.softmax(logits.astype(jnp.float32)), labels)


def logit_difference(logits: Logits, labels: Labels, targets: Classes) -> PerImage:
    """The target's logit minus the label's: the margin towards one class."""
    logits = logits.astype(jnp.float32)
    rows = jnp.arange(logits.shape[0])
    return logits[rows, targets] - logits[rows, class_of(labels)]


def dlr(logits: Logits, labels: Labels) -> PerImage:
    """Difference of logits ratio (Croce and Hein 2020, Eq. 6): a margin without scale.

    (max other - label) / (largest - third largest). With two classes there is no third
    logit, and the plain margin is returned.
    """
    return margin(logits, labels) / _scale(logits, [2])


def dlr_targeted(logits: Logits, labels: Labels, targets: Classes) -> PerImage:
    """Targeted DLR (Croce and Hein 2020, Eq. 7): towards one class, without scale.

    The divisor is largest - (third + fourth) / 2; with three classes largest - third,
    with two none.
    """
    return logit_difference(logits, labels, targets) / _scale(logits, [2, 3])


def _scale(logits: Logits, ranks: list[int]) -> PerImage:
    """Largest logit minus the mean of those of `ranks` (0 is the largest) that exist."""
    ordered = jnp.sort(logits.astype(jnp.float32), axis=-1)[:, ::-1]
    ranks = [rank for rank in ranks if rank < logits.shape[-1]]
    if not ranks:
        return jnp.ones(logits.shape[0], jnp.float32)
    return ordered[:, 0] - jnp.mean(ordered[:, jnp.array(ranks)], axis=1) + 1e-12


def boosted_cross_entropy(logits: Logits, labels: Labels) -> PerImage:
    """-log p(label) - log(1 - p(most likely other class)): MART (Wang et al. 2020)."""
    logits = logits.astype(jnp.float32)
    classes = logits.shape[-1]
    label = one_hot(class_of(labels), classes)
    rival = jnp.argmax(jnp.where(label, -jnp.inf, logits), axis=-1)
    rest = jnp.where(one_hot(rival, classes), -jnp.inf, logits)
    rest = jax.nn.logsumexp(rest, axis=-1)
    return cross_entropy(logits, labels) + jax.nn.logsumexp(logits, axis=-1) - rest


def kl(logits: Logits, reference: Logits, labels: Labels) -> PerImage:
    """KL(reference's probabilities || the logits' own): TRADES (Zhang et al. 2019)."""
    old = jax.nn.log_softmax(reference.astype(jnp.float32))
    new = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jnp.sum(jnp.exp(old) * (old - new), axis=-1)


def weighted_kl(logits: Logits, reference: Logits, labels: Labels) -> PerImage:
    """`kl` times 1 - p(label) of the reference: MART's second term."""
    label = one_hot(class_of(labels), logits.shape[-1])
    shares = jax.nn.softmax(reference.astype(jnp.float32))
    likely = jnp.sum(jnp.where(label, shares, 0), axis=-1)
    return kl(logits, reference, labels) * (1 - likely)


LOSSES = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "probability_margin": probability_margin,
}
# Losses of training alone; the paired ones compare with the logits of another view.
TRAINING = {"cross_entropy": cross_entropy, "boosted_cross_entropy": boosted_cross_entropy}
PAIRED = {"kl": kl, "weighted_kl": weighted_kl}
TARGETED = {"dlr": dlr_targeted, "logit_difference": logit_difference}
