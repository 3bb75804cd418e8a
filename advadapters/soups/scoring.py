"""What mixtures make of images: whole tables, batched over the mixtures."""

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses, trees
from advadapters.soups.mixtures import check


def right(logits, labels):
    """Whether each prediction [N] is right; logits that are not finite are wrong."""
    return ~losses.misclassified(logits, labels)


def entropy(logits, labels):
    """The entropy [N] of each prediction, in nats; the labels are not looked at."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def make_scorer(apply, at, ingredients, *, at_once=None, batch=128, measure=right):
    """score: (mixtures [S, K], images, labels [N], mask [N] or None) -> table [S, N].

    at: (ingredients, weights [K]) -> plain, `trees.mix` for K whole networks stacked in one
    tree, `trees.plain` for shared parameters and adapters. apply: (plain, images) -> logits
    [N, L]. measure: (logits, labels) -> [N]; 0 where the mask is False. Mixtures that are
    none raise ValueError, see `check`.

    Compiled once: `at_once` soups on `batch` images a call, padded where there are fewer.
    That many soups are mixed on the device at once. None stands for 8, and for 1 on CPUs,
    where products with weights mapped over cost several times as much.
    """
    if at_once is None:
        at_once = 1 if jax.default_backend() == "cpu" else 8

    @jax.jit
    def mixed(ingredients, weights):
        return trees.each(lambda w: at(ingredients, w), weights)

    @jax.jit
    def block(plains, images, labels):
        return trees.each(lambda plain: measure(apply(plain, images), labels), plains)

    def score(mixtures, images, labels, mask=None):
        mixtures = np.array([check(mixture) for mixture in mixtures], np.float32)
        images, labels = np.asarray(images), np.asarray(labels)
        rows = []
        for group in padded(at_once, mixtures):
            plains = mixed(ingredients, *group)
            parts = [block(plains, *part) for part in padded(batch, images, labels)]
            rows.append(np.concatenate(parts, axis=1))
        table = np.concatenate(rows)[: len(mixtures), : len(images)]
        return table if mask is None else np.where(mask, table, table.dtype.type(0))

    return score


def padded(size, *arrays):
    """Parts of `size` rows of all arrays, the last one filled with its first row."""
    for start in range(0, len(arrays[0]), size):
        parts = [array[start : start + size] for array in arrays]
        short = size - len(parts[0])
        yield [np.concatenate([part, np.repeat(part[:1], short, 0)]) for part in parts]
