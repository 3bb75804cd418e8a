"""Probability margin attack (PMA; Xie et al. 2024, arXiv:2411.15210), PGD in two phases.

The probability margin is the largest other probability less the label's. The first half
of the steps climbs one of its two terms alone, the second half both. From the paper and
its authors' code: Linf, 100 steps, a uniform random start, step sizes that fall from 2 eps
to 0 along a cosine in each half, and one run for each of the two terms; also that the
first step of all goes the wrong way and raises the label's probability. Ours: L2 and L1,
by the steps of their balls, and where nothing is found the point with the largest margin.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses
from advadapters.attacks.ascent import Ascent, ascend, spread, within
from advadapters.attacks.contract import (
    Outcome,
    Problem,
    Restarts,
    Steps,
    checked,
    problem_of,
    rows_where,
)
from advadapters.attacks.pgd import sample
from advadapters.shapes import (
    AnyArray,
    Array,
    Bool,
    Float,
    Images,
    Int,
    Labels,
    LogitsFn,
    Number,
    PerImage,
    PRNGKeys,
)

Weight = Int[Array, ""] | int


class Best(NamedTuple):
    """The first misclassified points, else those with the largest margin.

    score: that margin [B], infinite where the points are misclassified.
    """

    points: Images
    score: PerImage


@checked
def pma(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    key: PRNGKeys,
    *,
    norm: str,
    eps: Number,
    steps: Steps = 100,
    restarts: Restarts = 1,
) -> Images:
    """Adversarial images [B, H, W, C]; where none is found, those with the largest margin.

    restarts: each is two runs of so many steps, one for each term of the margin.
    """
    labels = losses.class_of(labels)
    problem = problem_of(logits_fn, images, labels, key, norm=norm, eps=eps)

    def attempt(best: Best, number: Int[Array, ""]) -> tuple[Best, None]:
        terms, active = (1 - number % 2, number % 2), best.score < jnp.inf
        again = dataclasses.replace(problem, keys=problem.draws(number), active=active)
        run = _climb(again, terms, steps)
        return _keep_best(best, run.kept.points, None, run.kept.score), None

    nothing = Best(images, jnp.full(len(images), -jnp.inf, jnp.float32))
    best, _ = jax.lax.scan(attempt, nothing, jnp.arange(2 * restarts))
    return jax.lax.stop_gradient(best.points)


def run_pma(problem: Problem, *, steps: int = 100, first: str = "own") -> Outcome:
    """One run of PMA, from one random start.

    Args:
      problem: what is attacked. The loop ends when all active examples are broken.
      steps: the number of iterations at most.
      first: what the first half of the steps climbs, "own": less of the label's
        probability, or "rival": more of the largest other one.
    """
    run = _climb(problem, {"own": (1, 0), "rival": (0, 1)}[first], steps)
    return Outcome(run.kept.points, run.kept.score == jnp.inf, run.step + 1)


def schedule(
    steps: int,
) -> tuple[Int[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """(phase int32 [steps], sizes float32 [steps] in eps): what a step climbs, how far.

    Phase 0 is the first step, 1 the first half, 2 the second. Offsets by one are those of
    the authors' code.
    """
    number, half = np.arange(steps), steps / 2
    offset = np.where(number > half, number - half, number) - 1
    sizes = 1 + np.cos(offset / (steps - half) * np.pi)
    phases = np.where(number == 0, 0, np.where(number < half, 1, 2))
    return phases.astype(np.int32), sizes.astype(np.float32)


def _climb(problem: Problem, terms: tuple[Weight, Weight], steps: int) -> Ascent:
    """The loop; what it keeps is the Best of all points, the last ones included.

    terms: (weight of the label's falling probability, of its rival's rising) in the first
    half of the steps; they may be traced.
    """
    ball, images, eps = problem.ball, problem.images, problem.eps
    phases, sizes = map(jnp.asarray, schedule(steps))
    weights = jnp.array([(-1, 0), terms, (1, 1)], jnp.float32)  # of each phase

    def objective(points: Images, step: Int[Array, ""]) -> tuple[PerImage, PerImage]:
        logits, weight = problem.logits_fn(points), weights[phases[step]]
        labels = problem.labels
        shares = jax.nn.softmax(logits.astype(jnp.float32))
        label, rival = losses.label_and_rival(shares, labels)
        wrong = losses.misclassified(logits, labels)
        score = jnp.where(wrong, jnp.inf, rival - label)
        return weight[1] * rival - weight[0] * label, score

    def move(points: Images, slope: Images, step: Int[Array, ""]) -> Images:
        count = spread(step, steps, images[0].size)
        count = count * jnp.ones(len(images), jnp.float32)
        return ball.step(points, slope, eps * sizes[step], count)

    def broken(state: Ascent) -> Bool[AnyArray, ""]:
        return ~jnp.any(problem.active & (state.kept.score < jnp.inf))

    project = within(ball, images, eps)
    start = problem.draws("pma")
    start = project(images + sample(ball, start, 0, images.shape[1:], eps))
    nothing = Best(images, jnp.full(len(images), -jnp.inf, jnp.float32))
    state = ascend(
        objective, start, move=move, project=project, steps=steps, keep=_keep_best,
        kept=nothing, until=broken, has_aux=True,
    )  # fmt: skip
    last = objective(state.points, state.step)
    kept = _keep_best(state.kept, state.points, *last)
    return state._replace(kept=jax.lax.stop_gradient(kept))


def _keep_best(best: Best, points: Images, loss: PerImage | None, score: PerImage) -> Best:
    """The best of those so far and of these points; the loss does not matter."""
    higher = score > best.score
    points = rows_where(higher, points, best.points)
    return Best(points, jnp.where(higher, score, best.score))
