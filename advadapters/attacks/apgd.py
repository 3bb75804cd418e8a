"""Auto-PGD (Croce and Hein 2020; L1: Croce and Hein 2021): PGD without a step size to set.

It follows the authors' code where that is known: checkpoints, momentum, halving on
oscillation, restart from the best point, and for L1 the adaptive sparsity and the
schedule of shrinking radii. Deviations: projections on ball and box are exact (the
original projects on the L2 ball and then clips), and each example draws from its own
key.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advadapters import losses, rng
from advadapters.attacks.ascent import with_slopes
from advadapters.attacks.contract import (
    Loss,
    Outcome,
    Problem,
    Steps,
    checked,
    problem_of,
    rows_where,
)
from advadapters.balls import Ball
from advadapters.shapes import (
    Array,
    Bool,
    Classes,
    Float,
    Images,
    Int,
    Key,
    Labels,
    LogitsFn,
    Marks,
    Number,
    PerImage,
    PRNGKeys,
)

MOMENTUM = 0.75
OSCILLATION = 0.75  # rho: fewer increases than this share halve the step
L1_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius / eps, share of the steps
L1_SHRINK, L1_SMALLEST, L1_SPARSER = 1.5, 10.0, 0.95


class Climb(NamedTuple):
    """What the loop carries; all rows are examples [B].

    step: iterations done. points: where the climb is, before: where it was an iteration
    ago, slope: the gradient at the points. size: the step size. count: over how many
    coordinates an L1 step goes. best: the points with the highest loss, with that loss and
    their gradient. rises: how often the loss rose since the last checkpoint. check_loss,
    check_cut, check_count: the best loss, whether the step was cut, and the sparsity at the
    last checkpoint. wrong: the share of draws that are misclassified at the worst iterate,
    worst: that iterate.
    """

    step: Int[Array, ""]
    points: Images
    before: Images
    slope: Images
    size: PerImage
    count: PerImage
    best: Images
    best_loss: PerImage
    best_slope: Images
    last_loss: PerImage
    rises: PerImage
    check_loss: PerImage
    check_cut: Marks
    check_count: PerImage
    wrong: PerImage
    worst: Images


Schedule = tuple[Bool[Array, " steps"], Float[Array, " steps"]]  # see `checkpoints`
# (points, step) -> (loss [B], share of draws misclassified [B], slope)
Draw = Key[Array, ""]
Sums = tuple[PerImage, PerImage, Images]  # over draws
Look = Callable[[Images, Int[Array, ""] | int], tuple[PerImage, PerImage, Images]]


def checkpoints(steps: int) -> Schedule:
    """When step sizes are looked at, in Linf and L2: (whether, over how many steps)."""
    window, smallest, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    due, windows, left = [], [], window
    for _ in range(steps):
        left -= 1
        due.append(left == 0)
        windows.append(window)
        if left == 0:
            window = left = max(window - shrink, smallest)
    return jnp.array(due), jnp.array(windows, jnp.float32)


@checked
def apgd(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    key: PRNGKeys,
    *,
    norm: str,
    eps: Number,
    steps: Steps = 100,
    loss: Loss = "cross_entropy",
) -> Images:
    """Adversarial images [B, H, W, C]; where none is found, those with the highest loss."""
    labels = losses.class_of(labels)
    problem = problem_of(logits_fn, images, labels, key, norm=norm, eps=eps)
    return run_apgd(problem, steps=steps, loss=loss).points


def run_apgd(
    problem: Problem,
    *,
    steps: int = 100,
    loss: str = "cross_entropy",
    targets: Classes | None = None,
    expectation: int = 1,
) -> Outcome:
    """One run of APGD, from one random start.

    Args:
      problem: what is attacked; with expectation > 1 its network is a random one. The loop
        ends when all active examples are broken, in every draw.
      steps: the number of iterations at most.
      loss: a name in LOSSES, or with targets [B] a name in TARGETED.
      targets: classes to go for, None for any but the label.
      expectation: gradients are means over that many draws of a random network.
    """
    ball, images, eps = problem.ball, problem.images, problem.eps
    look = _looker(problem, loss, targets, expectation)
    start = jax.vmap(lambda key: ball.outward(key, images.shape[1:], eps))(
        problem.draws("apgd")
    )
    if problem.norm != "l1":
        points = ball.project(images + start, images, eps)
        return _outcome(_climb(problem, look, points, steps, checkpoints(steps)))
    shares = [math.ceil(share * steps) for _, share in L1_STAGES[:-1]]
    lengths = jnp.array([*shares, steps - sum(shares)], jnp.int32)
    radii = eps * jnp.array([radius for radius, _ in L1_STAGES], jnp.float32)
    always = (jnp.ones(steps, bool), jnp.ones(steps, jnp.float32))

    def stage(
        points: Images, radius_and_length: tuple[Float[Array, ""], Int[Array, ""]]
    ) -> tuple[Images, Climb]:
        radius, length = radius_and_length
        points = ball.project(points, images, radius)
        # Points outside the real ball count for nothing, so earlier stages run on.
        last = radius == radii[-1]
        watched = jnp.where(last, problem.active, True)
        staged = dataclasses.replace(problem, eps=radius, active=watched)
        done = _climb(staged, look, points, length, always, last)
        return done.best, done

    start = jnp.asarray(images + start)
    _, stages = jax.lax.scan(stage, start, (jnp.asarray(radii), lengths))
    done = jax.tree.map(lambda leaf: leaf[-1], stages)
    return _outcome(done)._replace(forwards=jnp.sum(stages.step + 1))


def _outcome(done: Climb) -> Outcome:
    """What a climb that has ended leads to."""
    broken = done.wrong > 0
    points = rows_where(broken, done.worst, done.best)
    return Outcome(jax.lax.stop_gradient(points), broken, done.step + 1)


def _looker(problem: Problem, loss: str, targets: Classes | None, expectation: int) -> Look:
    """The function that looks at points: the means over all draws of a random network."""
    logits_fn, labels = problem.logits_fn, problem.labels
    function = losses.LOSSES[loss] if targets is None else losses.TARGETED[loss]
    extra = () if targets is None else (targets,)

    def objective(points: Images, draw: Draw | None) -> tuple[PerImage, Marks]:
        logits = logits_fn(points) if expectation == 1 else logits_fn(points, draw)
        return function(logits, labels, *extra), losses.misclassified(logits, labels)

    once = with_slopes(objective, has_aux=True)

    def look(
        points: Images, step: Int[Array, ""] | int
    ) -> tuple[PerImage, PerImage, Images]:
        if expectation == 1:
            rows, wrong, slope = once(points, None)
            return rows, wrong.astype(rows.dtype), slope
        draws = jax.random.split(rng.fold(problem.keys[0], "draws", step), expectation)

        def add(total: Sums, draw: Draw) -> tuple[Sums, None]:
            rows, wrong, slope = once(points, draw)
            return (
                total[0] + rows,
                total[1] + wrong.astype(jnp.float32),
                total[2] + slope,
            ), None

        none = jnp.zeros(labels.shape, jnp.float32)
        zeros = (none, none, jnp.zeros_like(points))
        (rows, wrong, slope), _ = jax.lax.scan(add, zeros, draws)
        return rows / expectation, wrong / expectation, slope / expectation

    return look


def _climb(
    problem: Problem,
    look: Look,
    points: Images,
    steps: int | Int[Array, ""],
    schedule: Schedule,
    valid: bool | Bool[Array, ""] = True,
) -> Climb:
    """The loop: at most `steps` iterations, fewer when all active rows are broken.

    valid: whether misclassified points count (they do not outside the real ball).
    """
    ball, images, eps = problem.ball, problem.images, problem.eps
    sparse = problem.norm == "l1"
    rows, wrong, slope = look(points, 0)
    first = eps if sparse else 2.0 * eps
    sparsity = _density(points, images)
    ones = jnp.ones_like(rows)
    state = Climb(
        step=jnp.zeros((), jnp.int32),
        points=points,
        before=points,
        slope=slope,
        size=first * ones,
        count=sparsity / 1.5,
        best=points,
        best_loss=rows,
        best_slope=slope,
        # The original compares the first loss with an array's last, still empty row.
        last_loss=0 * rows,
        rises=0 * rows,
        check_loss=rows,
        check_cut=ones > 0,
        check_count=sparsity,
        wrong=jnp.where(valid, wrong, 0),
        worst=points,
    )
    due, windows = schedule

    def more(state: Climb) -> Bool[Array, ""]:
        return (state.step < steps) & jnp.any(problem.active & (state.wrong < 1))

    def iterate(state: Climb) -> Climb:
        if sparse:
            moved = _sparse_move(ball, state, images, eps, valid)
        else:
            moved = _momentum_move(ball, state, images, eps)
        rows, wrong, slope = look(moved, state.step + 1)
        state = _record(state, moved, rows, jnp.where(valid, wrong, 0), slope)
        check = due[state.step]
        if sparse:
            restarted = _check_sparsity(state, images, first)
        else:
            restarted = _check_oscillation(state, windows[state.step])
        state = jax.tree.map(lambda new, old: jnp.where(check, new, old), restarted, state)
        return state._replace(step=state.step + 1)

    return jax.lax.while_loop(more, iterate, state)


def _density(points: Images, images: Images) -> PerImage:
    """How many coordinates differ, float [B]."""
    differs = (points != images).reshape(images.shape[0], -1)
    return jnp.sum(differs.astype(jnp.float32), axis=1)


def _momentum_move(ball: Ball, state: Climb, images: Images, eps: Number) -> Images:
    """A projected step, blended with the last move (Eq. 1 of the paper)."""
    ahead = ball.project(
        ball.step(state.points, state.slope, state.size, state.count), images, eps
    )
    share = jnp.where(state.step > 0, MOMENTUM, 1.0)
    blend = (
        state.points
        + share * (ahead - state.points)
        + (1 - share) * (state.points - state.before)
    )
    return ball.project(blend, images, eps)


def _sparse_move(
    ball: Ball, state: Climb, images: Images, eps: Number, last: bool | Bool[Array, ""]
) -> Images:
    """An L1 step over the current number of coordinates, projected; no momentum.

    In the larger balls no budget is lost at the box; in the last one steps are those of
    the original, which hold on to the coordinates that are at the box.
    """
    # Each of the two alone leaves 0.3 points more robust on the reference network.
    settings = dict(walls=jnp.logical_not(last))
    ahead = ball.step(state.points, state.slope, state.size, state.count, **settings)
    return ball.project(ahead, images, eps)


def _record(
    state: Climb, moved: Images, rows: PerImage, wrong: PerImage, slope: Images
) -> Climb:
    """The state after an iteration, before any checkpoint."""
    higher = rows > state.best_loss
    return state._replace(
        points=moved,
        before=state.points,
        slope=slope,
        best=rows_where(higher, moved, state.best),
        best_loss=jnp.where(higher, rows, state.best_loss),
        best_slope=rows_where(higher, slope, state.best_slope),
        rises=state.rises + (rows > state.last_loss).astype(jnp.float32),
        last_loss=rows,
        wrong=jnp.maximum(state.wrong, wrong),
        # The first such points: later ones would depend on how long others keep going.
        worst=rows_where(wrong > state.wrong, moved, state.worst),
    )


def _check_oscillation(state: Climb, window: Float[Array, ""]) -> Climb:
    """Halves the step and goes back to the best point where the loss rose too rarely.

    Also where the last checkpoint did not halve it and the best loss is still the same.
    """
    cut = state.rises <= OSCILLATION * window
    cut |= ~state.check_cut & (state.check_loss >= state.best_loss)
    return state._replace(
        size=jnp.where(cut, state.size / 2, state.size),
        points=rows_where(cut, state.best, state.points),
        slope=rows_where(cut, state.best_slope, state.slope),
        rises=0 * state.rises,
        check_loss=state.best_loss,
        check_cut=cut,
    )


def _check_sparsity(state: Climb, images: Images, first: Number) -> Climb:
    """L1: where the best point got sparser, start again from it with large steps."""
    sparsity = _density(state.best, images)
    sparser = sparsity / jnp.maximum(state.check_count, 1) < L1_SPARSER
    shrunk = jnp.maximum(state.size / L1_SHRINK, first / L1_SMALLEST)
    return state._replace(
        size=jnp.where(sparser, first, shrunk),
        count=sparsity / 1.5,
        points=rows_where(sparser, state.best, state.points),
        slope=rows_where(sparser, state.best_slope, state.slope),
        check_count=sparsity,
    )
