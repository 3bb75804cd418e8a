"""MALT (Melamed et al. 2024, arXiv:2407.02240): APGD towards the classes that are nearest.

The attack goes, one after the other, for the classes whose boundaries a linear network
with the same gradients would reach first: those with the least difference of logits over
the dual norm of its gradient. From the paper and its authors' code: that score at the
clean image, of the 100 likeliest other classes, the 9 best, targeted APGD with DLR on
each, for Linf and L2. Ours: L1, which the dual norm suggests as well; a class without a
gradient comes last, not first; any misclassification is a success, not the target alone.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from advadapters import losses, schema, trees
from advadapters.attacks.apgd import run_apgd
from advadapters.attacks.contract import Steps, checked, problem_of, rows_where
from advadapters.balls import BALLS, divisor
from advadapters.shapes import (
    Array,
    Classes,
    Images,
    Int,
    Labels,
    LogitsFn,
    Number,
    PerImage,
    PRNGKeys,
)

NEAREST, CANDIDATES = 9, 100


Nearest = Annotated[int, schema.Between(low=1), "classes that are gone for"]
Candidates = Annotated[int, schema.Between(low=1), "likeliest classes they are among"]
Best = tuple[Images, PerImage]  # points, their margin, infinite where misclassified


@checked
def malt(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    key: PRNGKeys,
    *,
    norm: str,
    eps: Number,
    steps: Steps = 100,
    nearest: Nearest = NEAREST,
    candidates: Candidates = CANDIDATES,
) -> Images:
    """Adversarial images [B, H, W, C]; where none is found, those with the largest margin.

    nearest: how many classes are gone for, steps each, of so many likeliest candidates;
    fewer where the network has fewer. One trace, whatever their number.
    """
    labels = losses.class_of(labels)
    counts = dict(nearest=nearest, candidates=candidates)
    targets = nearest_classes(logits_fn, images, labels, norm=norm, **counts)
    problem = problem_of(logits_fn, images, labels, key, norm=norm, eps=eps)

    def attempt(best: Best, numbered: tuple[Int[Array, ""], Classes]) -> tuple[Best, None]:
        points, score = best
        number, classes = numbered
        keys, active = problem.draws("malt", number), score < jnp.inf
        again = dataclasses.replace(problem, keys=keys, active=active)
        run = run_apgd(again, steps=steps, loss="dlr", targets=classes)
        margin = losses.margin(logits_fn(run.points), labels)
        new = jnp.where(run.broken, jnp.inf, margin)
        points = rows_where(new > score, run.points, points)
        return (points, jnp.fmax(score, new)), None

    nothing = (problem.images, jnp.full(len(images), -jnp.inf, jnp.float32))
    numbered = (jnp.arange(len(targets)), targets)
    (points, _), _ = jax.lax.scan(attempt, nothing, numbered)
    return jax.lax.stop_gradient(points)


def nearest_classes(
    logits_fn: LogitsFn,
    images: Images,
    labels: Classes,
    *,
    norm: str,
    nearest: int = NEAREST,
    candidates: int = CANDIDATES,
) -> Int[Array, "nearest B"]:
    """Other classes [nearest, B] by the distance of their linearised boundaries.

    Of the likeliest candidates alone. Their gradients are taken one by one, so that memory
    does not grow with their number; each costs what a gradient in an attack does, less
    the forward pass, which they share.
    """
    logits, pullback = jax.vjp(lambda x: jnp.asarray(logits_fn(x), jnp.float32), images)
    rows, classes = jnp.arange(len(labels)), logits.shape[1]
    label = losses.one_hot(labels, classes)
    likely = jnp.where(jnp.isfinite(logits), logits, jnp.finfo(jnp.float32).min)
    likely = jnp.where(label, -jnp.inf, likely)
    candidates = min(candidates, classes - 1)
    numbers = jax.lax.top_k(likely, candidates)[1].T  # [candidates, B]

    def distance(numbers: Classes) -> PerImage:
        seed = jax.nn.one_hot(numbers, classes, dtype=jnp.float32)
        seed = seed - label.astype(jnp.float32)
        size = BALLS[norm].dual(trees.finite(pullback(seed)[0]))
        lead = logits[rows, labels] - logits[rows, numbers]
        known = (divisor(size) == size) & jnp.isfinite(lead)
        return jnp.where(known, lead / divisor(size), jnp.inf)

    distances = jax.lax.map(distance, numbers)  # [candidates, B]
    order = jnp.argsort(distances, axis=0, stable=True)[: min(nearest, candidates)]
    return jnp.take_along_axis(numbers, order, axis=0)
