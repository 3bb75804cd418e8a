"""Projected gradient descent (Madry et al. 2018); FGSM is one step from zero."""

import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from advadapters import losses, rng, schema, trees
from advadapters.attacks import checks
from advadapters.attacks.contract import (
    Loss,
    Restarts,
    Steps,
    Target,
    ascent,
    checked,
    rows_where,
)
from advadapters.balls import BALLS

ADAM_RATE = 0.1


def step_size_rule(eps, steps):
    """2.5 eps / steps (Madry et al. 2018), but never more than eps."""
    return min(2.5 / steps, 1.0) * eps


def own_step_size(*, eps, steps, step_size=0.0, optimizer="steepest", **_):
    """The step size of these settings of `pgd`; a traced one is taken as it is."""
    if not checks.concrete(step_size) or step_size:
        return step_size
    return ADAM_RATE if optimizer == "adam" else step_size_rule(eps, steps)


def spread(step, steps, size):
    """Over how many of `size` coordinates an L1 step goes: from 5% of them down to 1.

    With a fixed number the iterates never get sparser than that, and part of what an
    L1 ball allows is out of reach.
    """
    return jnp.maximum((0.05 * size) ** (1 - step / max(steps - 1, 1)), 1.0)


StepSize = Annotated[
    float, schema.Between(low=0.0), "0 stands for min(2.5 / steps, 1) * eps"
]
RandomStart = Annotated[bool, schema.Between(), "start uniformly in the ball"]
Keep = Annotated[str, schema.OneOf(("last", "best")), "which iterate is returned"]
Optimizer = Annotated[
    str, schema.OneOf(("steepest", "adam")), "steepest ascent in the norm, or Adam"
]


@checked
def pgd(
    logits_fn,
    images,
    labels,
    key,
    *,
    norm,
    eps,
    steps: Steps,
    step_size: StepSize = 0.0,
    random_start: RandomStart = True,
    restarts: Restarts = 1,
    loss: Loss = "cross_entropy",
    target: Target = "",
    targets=None,
    keep: Keep = "last",
    optimizer: Optimizer = "steepest",
    vary=None,
):
    """Adversarial images [B, H, W, C], inside the ball and [0, 1].

    Args:
      logits_fn: images [B, H, W, C] float32 in [0, 1] -> logits [B, L].
      images: [B, H, W, C], float32 in [0, 1] or uint8.
      labels: [B] int, or [B, L] probabilities.
      key: one key, or one per example [B]: then an image's result does not depend
        on the batch that it is in.
      norm: a name in BALLS.
      eps: radius in pixel units of [0, 1]; may be traced.
      steps: gradient steps per start.
      step_size: in the ball's norm; 0 asks for `step_size_rule`. A traced one does not.
      random_start: start uniformly in the ball (projected on the box) or at the image.
      restarts: independent starts; with more than one the best result is kept.
      loss: a name in LOSSES, climbed.
      target: "" to climb the loss of the labels, "random" (uniform over the other
        classes, as AdvProp does) or "least_likely" to descend the loss of a target.
      targets: [B] classes; `loss` is then a name in TARGETED, climbed.
      keep: "last" iterate, or "best" so far: misclassified before not, then by loss.
        "best" looks at the start and at every iterate, one forward pass more.
      optimizer: "steepest" steps of the ball, or "adam" (see `adam_rate`; step_size 0
        asks for 0.1 there).
      vary: (points, turn) -> (points, logits_fn), called before each gradient, whose
        number over all starts turn (int32 []) is: where it is taken, through what.
        The points it returns must lie in the ball.

    No gradient flows through the result. One trace, whatever the number of steps.
    """
    ball = BALLS[norm]
    keys = rng.per_example(key, images.shape[0])
    keep_best = keep == "best" or restarts > 1
    images = jax.lax.stop_gradient(images)
    step_size = own_step_size(
        eps=eps, steps=steps, step_size=step_size, optimizer=optimizer
    )
    move, moments = mover(ball, optimizer, images, steps, step_size)
    if targets is None:
        goal, sign = choose_goal(logits_fn, images, labels, keys, target)
        function = lambda logits: sign * losses.LOSSES[loss](logits, goal)  # noqa: E731
    else:
        function = lambda logits: losses.TARGETED[loss](logits, labels, targets)  # noqa: E731

    def objective(points, network):
        logits = network(points)
        return function(logits), losses.misclassified(logits, labels)

    def climb(restart, step, carry):
        points, best, memory = carry
        network = logits_fn
        if vary:
            points, network = vary(points, restart * steps + step)
        rows, wrong, slope = look(points, network)
        best = better(best, (points, rows, wrong)) if keep_best else best
        points, memory = move(points, slope, step, memory)
        return ball.project(points, images, eps), best, memory

    look = ascent(objective)
    worst = jnp.full(images.shape[:1], -jnp.inf, jnp.float32)
    nothing = (images, worst, jnp.zeros(images.shape[:1], bool))

    def attempt(best, restart):
        points = images
        if random_start:
            start = sample(ball, keys, restart, images.shape[1:], eps)
            points = ball.project(images + start, images, eps)
        ascent = functools.partial(climb, restart)
        points, best, _ = jax.lax.fori_loop(0, steps, ascent, (points, best, moments))
        if keep_best:
            return better(best, (points, *objective(points, logits_fn))), None
        return (points, *best[1:]), None

    (points, _, _), _ = jax.lax.scan(attempt, nothing, jnp.arange(restarts))
    return jax.lax.stop_gradient(points)


def mover(ball, optimizer, images, steps, step_size):
    """(move, memory): move(points, slope, step, memory) -> (points, memory)."""
    if optimizer == "adam":
        adam = optax.scale_by_adam()

        def climb(points, slope, step, memory):
            with jax.numpy_dtype_promotion("standard"):  # optax mixes types
                direction, memory = adam.update(slope, memory)
            direction = trees.finite(direction)  # moments of huge slopes overflow
            return points + adam_rate(step, steps, step_size) * direction, memory

        return climb, adam.init(images)

    def move(points, slope, step, memory):
        count = spread(step, steps, images[0].size)
        count = jnp.full(len(images), count, jnp.float32)
        return ball.step(points, slope, step_size, count), memory

    return move, ()


def adam_rate(step, steps, step_size=ADAM_RATE):
    """0.1, or step_size, a tenth of it from half-way, a hundredth from three quarters.

    The evaluation attack of Gowal et al.'s public code: 40 steps, margin loss, drops
    after 20 and 30.
    """
    rates = jnp.array([1.0, 0.1, 0.01], jnp.float32) * step_size
    return rates[jnp.int32(step >= steps // 2) + jnp.int32(step >= 3 * steps // 4)]


def choose_goal(logits_fn, images, labels, keys, target):
    """(labels or target classes [B], +1 to climb or -1 to descend their loss)."""
    if not target:
        return labels, 1.0
    own = losses.class_of(labels)
    logits = jax.eval_shape(logits_fn, images)
    classes = logits.shape[-1]
    if target == "random":
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 1, classes))
        shift = draw(jax.vmap(lambda key: rng.fold(key, "target"))(keys))
        return (own + shift) % classes, -1.0
    label = losses.one_hot(own, classes)
    return jnp.argmin(jnp.where(label, jnp.inf, logits_fn(images)), axis=-1), -1.0


def sample(ball, keys, restart, shape, eps):
    """Random perturbations [B, *shape], each from its own key."""

    def one(key):
        return ball.sample(rng.fold(key, "start", restart), shape, eps)

    return jax.vmap(one)(keys)


def better(first, second):
    """Row by row the better of two (points, loss, misclassified)."""
    points, rows, wrong = first
    new_points, new_rows, new_wrong = second
    win = (new_wrong & ~wrong) | ((new_wrong == wrong) & (new_rows > rows))
    return (
        rows_where(win, new_points, points),
        jnp.where(win, new_rows, rows),
        jnp.where(win, new_wrong, wrong),
    )
