"""Probability margin attack (PMA; Xie et al. 2024, arXiv:2411.15210), PGD in two phases.

The probability margin is the largest other probability less the label's. The first half
of the steps climbs one of its two terms alone, the second half both. From the paper and
its authors' code: Linf, 100 steps, a uniform random start, step sizes that fall from 2 eps
to 0 along a cosine in each half, and one run for each of the two terms; also that the
first step of all goes the wrong way and raises the label's probability. Ours: L2 and L1,
by the steps of their balls, and where nothing is found the point with the largest margin.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses, rng
from advadapters.attacks.ascent import Ascent, ascend, spread, within
from advadapters.attacks.contract import Outcome, Restarts, Steps, checked, rows_where
from advadapters.attacks.pgd import sample
from advadapters.balls import BALLS
from advadapters.shapes import (
    AnyArray,
    Array,
    Bool,
    Classes,
    Float,
    Images,
    Int,
    Labels,
    LogitsFn,
    Marks,
    Number,
    PerImage,
    PRNGKey,
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
    climb = functools.partial(_climb, norm=norm, eps=eps, steps=steps)

    def attempt(best: Best, number: Int[Array, ""]) -> tuple[Best, None]:
        keys = jax.vmap(lambda k: rng.fold(k, number))(rng.per_example(key, len(images)))
        terms = 1 - number % 2, number % 2
        active = best.score < jnp.inf
        run = climb(logits_fn, images, labels, keys, terms, active)
        return _keep_best(best, run.kept.points, None, run.kept.score), None

    nothing = Best(images, jnp.full(len(images), -jnp.inf, jnp.float32))
    best, _ = jax.lax.scan(attempt, nothing, jnp.arange(2 * restarts))
    return jax.lax.stop_gradient(best.points)


def run_pma(
    logits_fn: LogitsFn,
    images: Images,
    labels: Classes,
    key: PRNGKey | PRNGKeys,
    *,
    norm: str,
    eps: Number,
    steps: int = 100,
    first: str = "own",
    active: Marks | None = None,
) -> Outcome:
    """One run of PMA, from one random start.

    Args:
      first: what the first half of the steps climbs, "own": less of the label's
        probability, or "rival": more of the largest other one.
      active: bool [B], the examples that matter; the loop ends when all are broken.
    """
    terms = {"own": (1, 0), "rival": (0, 1)}[first]
    climb = functools.partial(_climb, norm=norm, eps=eps, steps=steps)
    keys = rng.per_example(key, len(images))
    active = jnp.ones(len(images), bool) if active is None else active
    run = climb(logits_fn, images, labels, keys, terms, active)
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


def _climb(
    logits_fn: LogitsFn,
    images: Images,
    labels: Classes,
    keys: PRNGKeys,
    terms: tuple[Weight, Weight],
    active: Marks,
    *,
    norm: str,
    eps: Number,
    steps: int,
) -> Ascent:
    """The loop; what it keeps is the Best of all points, the last ones included.

    terms: (weight of the label's falling probability, of its rival's rising) in the first
    half of the steps; they may be traced.
    """
    ball, images = BALLS[norm], jax.lax.stop_gradient(images)
    phases, sizes = map(jnp.asarray, schedule(steps))
    weights = jnp.array([(-1, 0), terms, (1, 1)], jnp.float32)  # of each phase

    def objective(points: Images, step: Int[Array, ""]) -> tuple[PerImage, PerImage]:
        logits, weight = logits_fn(points), weights[phases[step]]
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
        return ~jnp.any(active & (state.kept.score < jnp.inf))

    project = within(ball, images, eps)
    start = jax.vmap(lambda k: rng.fold(k, "pma"))(keys)
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
