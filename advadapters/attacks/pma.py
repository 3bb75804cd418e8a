"""Probability margin attack (PMA; Xie et al. 2024, arXiv:2411.15210), PGD in two phases.

The probability margin is the largest other probability less the label's. The first half
of the steps climbs one of its two terms alone, the second half both. From the paper and
its authors' code: Linf, 100 steps, a uniform random start, step sizes that fall from 2 eps
to 0 along a cosine in each half, and one run for each of the two terms; also that the
first step of all goes the wrong way and raises the label's probability. Ours: L2 and L1,
by the steps of their balls, and where nothing is found the point with the largest margin.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses, rng
from advadapters.attacks.apgd import Found
from advadapters.attacks.contract import Restarts, Steps, ascent, checked, rows_where
from advadapters.attacks.pgd import sample, spread
from advadapters.balls import BALLS


class Climb(NamedTuple):
    """What the loop carries; rows are examples [B]."""

    step: Any  # [] iterations done
    points: Any
    best: Any  # the first misclassified point, else the one with the largest margin ...
    score: Any  # ... and that margin, infinite where it is misclassified


@checked
def pma(
    logits_fn, images, labels, key, *, norm, eps, steps: Steps = 100, restarts: Restarts = 1
):
    """Adversarial images [B, H, W, C]; where none is found, those with the largest margin.

    restarts: each is two runs of so many steps, one for each term of the margin.
    """
    labels = losses.class_of(labels)
    settings = dict(norm=norm, eps=eps, steps=steps)

    def attempt(best, number):
        keys = jax.vmap(lambda k: rng.fold(k, number))(rng.per_example(key, len(images)))
        own, rival = 1 - number % 2, number % 2
        active = best[1] < jnp.inf
        done = climb(logits_fn, images, labels, keys, (own, rival), active, **settings)
        better = done.score > best[1]
        points = rows_where(better, done.best, best[0])
        return (points, jnp.where(better, done.score, best[1])), None

    nothing = (images, jnp.full(len(images), -jnp.inf, jnp.float32))
    (points, _), _ = jax.lax.scan(attempt, nothing, jnp.arange(2 * restarts))
    return jax.lax.stop_gradient(points)


def run_pma(
    logits_fn, images, labels, key, *, norm, eps, steps=100, first="own", active=None
):
    """One run of PMA, from one random start -> Found.

    Args:
      first: what the first half of the steps climbs, "own": less of the label's
        probability, or "rival": more of the largest other one.
      active: bool [B], the examples that matter; the loop ends when all are broken.
    """
    terms = {"own": (1, 0), "rival": (0, 1)}[first]
    settings = dict(norm=norm, eps=eps, steps=steps)
    keys = rng.per_example(key, len(images))
    active = jnp.ones(len(images), bool) if active is None else active
    done = climb(logits_fn, images, labels, keys, terms, active, **settings)
    return Found(done.best, done.score == jnp.inf, done.step + 1)


def schedule(steps):
    """(phase int32 [steps], sizes float32 [steps] in eps): what a step climbs, how far.

    Phase 0 is the first step, 1 the first half, 2 the second. Offsets by one are those of
    the authors' code.
    """
    number, half = np.arange(steps), steps / 2
    within = np.where(number > half, number - half, number) - 1
    sizes = 1 + np.cos(within / (steps - half) * np.pi)
    phases = np.where(number == 0, 0, np.where(number < half, 1, 2))
    return phases.astype(np.int32), sizes.astype(np.float32)


def climb(logits_fn, images, labels, keys, terms, active, *, norm, eps, steps):
    """The loop -> Climb.

    terms: (weight of the label's falling probability, of its rival's rising) in the first
    half of the steps; they may be traced.
    """
    ball, images = BALLS[norm], jax.lax.stop_gradient(images)
    phases, sizes = map(jnp.asarray, schedule(steps))
    weights = jnp.array([(-1, 0), terms, (1, 1)], jnp.float32)  # of each phase

    def objective(points, weights):
        logits = logits_fn(points)
        shares = jax.nn.softmax(logits.astype(jnp.float32))
        own, rival = losses.own_and_rival(shares, labels)
        wrong = losses.misclassified(logits, labels)
        score = jnp.where(wrong, jnp.inf, rival - own)
        return weights[1] * rival - weights[0] * own, score

    def record(state, score):
        higher = score > state.score
        best = rows_where(higher, state.points, state.best)
        return state._replace(best=best, score=jnp.where(higher, score, state.score))

    look = ascent(objective)

    def more(state):
        return (state.step < steps) & jnp.any(active & (state.score < jnp.inf))

    def iterate(state):
        _, score, slope = look(state.points, weights[phases[state.step]])
        state = record(state, score)
        count = spread(state.step, steps, images[0].size) * jnp.ones_like(score)
        moved = ball.step(state.points, slope, eps * sizes[state.step], count)
        points = ball.project(moved, images, eps)
        return state._replace(step=state.step + 1, points=points)

    start = jax.vmap(lambda k: rng.fold(k, "pma"))(keys)
    start = sample(ball, start, 0, images.shape[1:], eps)
    worst = jnp.full(len(images), -jnp.inf, jnp.float32)
    start = ball.project(images + start, images, eps)
    state = Climb(jnp.zeros((), jnp.int32), start, images, worst)
    state = jax.lax.while_loop(more, iterate, state)
    state = record(state, objective(state.points, weights[2])[1])
    return state._replace(best=jax.lax.stop_gradient(state.best))
