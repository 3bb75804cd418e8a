"""What the soups of many mixtures make of images, as tables."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses, trees
from advadapters.shapes import AnyArray, Bool, Float, PyTree, Shaped
from advadapters.soups.learned import ApplyFn, MeasureFn, MixFn
from advadapters.soups.mixtures import check

Rows = Shaped[AnyArray, "N ..."] | Sequence[Any]  # one for each image


def right(
    logits: Float[AnyArray, "N L"], labels: Shaped[AnyArray, "N ..."]
) -> Bool[AnyArray, " N"]:
    """Whether each prediction [N] is right; logits that are not finite are wrong.

    >>> soups.right(np.array([[1.0, 2.0], [np.nan, 2.0]]), np.array([1, 1])).tolist()
    [True, False]
    """
    return ~losses.misclassified(logits, labels)


def entropy(logits: Float[AnyArray, "N L"], labels: Any = None) -> Float[AnyArray, " N"]:
    """The entropy [N] of each prediction, in nats.

    It is a `measure` of `make_scorer`, and so it takes labels, but it does not use them.

    >>> round(float(soups.entropy(np.array([[0.0, 0.0]]))[0]), 4)  # log(2)
    0.6931
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def make_scorer(
    apply: ApplyFn,
    at: MixFn,
    ingredients: PyTree,
    *,
    at_once: int | None = None,
    batch: int = 128,
    measure: MeasureFn = right,
) -> Callable[..., np.ndarray]:
    """Makes a function that scores soups on images.

    It is compiled once, for `at_once` soups on `batch` images, and pads where there are
    fewer. That many soups are mixed on the device at once.

    Args:
      apply: (network, images) -> logits [N, L].
      at: (ingredients, weights [K]) -> network: `trees.mix` for whole networks that
        `stack` put together, `trees.plain` for shared parameters and adapters.
      ingredients: the first argument of `at`.
      at_once: how many soups one call takes. By default 8, but 1 on CPUs, where products
        with weights that are mapped over cost several times as much.
      batch: how many images one call takes.
      measure: (logits, labels) -> [N], by default whether each prediction is right.

    Returns:
      score(mixtures [S, K], images [N, ...], labels [N, ...], mask=None) -> table [S, N].
      Where the mask [N] is False the table is 0. It raises ValueError for a mixture that
      is no soup (see `check`).

    >>> score = soups.make_scorer(
    ...     lambda network, images: images * network["scale"], trees.mix,
    ...     {"scale": np.eye(2)}, batch=2,
    ... )
    >>> score([(1, 0), (0.5, 0.5)], np.array([[1.0, 2.0]]), np.array([1])).tolist()
    [[False], [True]]
    """
    if at_once is None:
        at_once = 1 if jax.default_backend() == "cpu" else 8

    @jax.jit
    def mix_all(ingredients: PyTree, weights: Float[AnyArray, "s K"]) -> PyTree:
        return trees.each(lambda row: at(ingredients, row), weights)

    @jax.jit
    def measure_all(
        plains: PyTree, images: Shaped[AnyArray, "n ..."], labels: Shaped[AnyArray, "n ..."]
    ) -> Shaped[AnyArray, "s n"]:
        return trees.each(lambda plain: measure(apply(plain, images), labels), plains)

    def score(
        mixtures: Sequence[Iterable[Any]] | Float[AnyArray, "S K"],
        images: Rows,
        labels: Rows,
        mask: Bool[AnyArray, " N"] | None = None,
    ) -> Shaped[np.ndarray, "S N"]:
        weights = np.array([check(mixture) for mixture in mixtures], np.float32)
        images, labels = np.asarray(images), np.asarray(labels)
        rows = []
        for group in padded(at_once, weights):
            plains = mix_all(ingredients, *group)
            parts = [measure_all(plains, *part) for part in padded(batch, images, labels)]
            rows.append(np.concatenate(parts, axis=1))
        table = np.concatenate(rows)[: len(weights), : len(images)]
        return table if mask is None else np.where(mask, table, table.dtype.type(0))

    return score


def padded(
    size: int, *arrays: Shaped[np.ndarray, "_ ..."]
) -> Iterator[list[Shaped[np.ndarray, "_ ..."]]]:
    """Parts of `size` rows of all arrays; the last part is filled with its first row."""
    for start in range(0, len(arrays[0]), size):
        parts = [array[start : start + size] for array in arrays]
        short = size - len(parts[0])
        yield [np.concatenate([part, np.repeat(part[:1], short, 0)]) for part in parts]
