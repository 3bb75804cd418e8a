"""Projected gradient descent (Madry et al. 2018); FGSM is one step from zero."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from advadapters import losses, rng, schema
from advadapters.attacks import checks
from advadapters.attacks.ascent import Move, ascend, steepest, within
from advadapters.attacks.contract import (
    Loss,
    Restarts,
    Steps,
    Target,
    checked,
    rows_where,
)
from advadapters.balls import BALLS, Ball
from advadapters.shapes import (
    AnyArray,
    Array,
    Classes,
    Float,
    Images,
    Int,
    Labels,
    LogitsFn,
    Marks,
    Number,
    PerImage,
    PRNGKeys,
    Scalar,
)

ADAM_RATE = 0.1

StepSize = Annotated[
    float, schema.Between(low=0.0), "0 stands for min(2.5 / steps, 1) * eps"
]
RandomStart = Annotated[bool, schema.Between(), "start uniformly in the ball"]
Keep = Annotated[str, schema.OneOf(("last", "best")), "which iterate is returned"]
Optimizer = Annotated[
    str, schema.OneOf(("steepest", "adam")), "steepest ascent in the norm, or Adam"
]
# (points, turn) -> (points, logits_fn)
Vary = Callable[[Images, Int[Array, ""]], tuple[Images, LogitsFn]]
Attempt = tuple[Images, PerImage, Marks]  # points, their loss, whether misclassified


@checked
def pgd(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    key: PRNGKeys,
    *,
    norm: str,
    eps: Number,
    steps: Steps,
    step_size: StepSize | Scalar = 0.0,
    random_start: RandomStart = True,
    restarts: Restarts = 1,
    loss: Loss = "cross_entropy",
    target: Target = "",
    targets: Classes | None = None,
    keep: Keep = "last",
    optimizer: Optimizer = "steepest",
    vary: Vary | None = None,
) -> Images:
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
    ball, images = BALLS[norm], jax.lax.stop_gradient(images)
    keys = rng.per_example(key, images.shape[0])
    keep_best = keep == "best" or restarts > 1
    size = default_step_size(eps=eps, steps=steps, step_size=step_size, optimizer=optimizer)
    move, transform = _step_rule(ball, optimizer, size, steps)
    project = within(ball, images, eps)
    rows = _rows(logits_fn, images, labels, keys, loss, target, targets)

    def objective(points: Images, network: LogitsFn) -> tuple[PerImage, Marks]:
        logits = network(points)
        return rows(logits), losses.misclassified(logits, labels)

    def attempt(best: Attempt, restart: Int[Array, ""]) -> tuple[Attempt, None]:
        def varied(points: Images, step: Int[Array, ""]) -> tuple[Images, LogitsFn]:
            if vary is None:
                return points, logits_fn
            return vary(points, restart * steps + step)

        start = images
        if random_start:
            start = project(images + sample(ball, keys, restart, images.shape[1:], eps))
        climbed = ascend(
            objective, start, move=move, project=project, steps=steps,
            transform=transform, vary=varied, keep=_keep_best if keep_best else None,
            kept=best, has_aux=True,
        )  # fmt: skip
        points = climbed.points
        if keep_best:
            last = objective(points, logits_fn)
            return _keep_best(climbed.kept, points, *last), None
        return (points, *best[1:]), None

    worst = jnp.full(images.shape[:1], -jnp.inf, jnp.float32)
    nothing = (images, worst, jnp.zeros(images.shape[:1], bool))
    numbers = jnp.arange(restarts, dtype=jnp.int32)
    (points, _, _), _ = jax.lax.scan(attempt, nothing, numbers)
    return jax.lax.stop_gradient(points)


def step_size_rule(eps: Number, steps: int) -> Number:
    """2.5 eps / steps (Madry et al. 2018), but never more than eps."""
    return min(2.5 / steps, 1.0) * eps


def default_step_size(
    *,
    eps: Number,
    steps: int,
    step_size: Number = 0.0,
    optimizer: str = "steepest",
    **_: Any,
) -> Number:
    """The step size of these settings of `pgd`; a traced one is taken as it is."""
    if not checks.concrete(step_size) or step_size:
        return step_size
    return ADAM_RATE if optimizer == "adam" else step_size_rule(eps, steps)


def _step_rule(
    ball: Ball, optimizer: str, size: Number, steps: int
) -> tuple[Move, optax.GradientTransformation | None]:
    """What `ascend` takes as `move` and `transform`, by the optimizer's name."""
    if optimizer == "steepest":
        return steepest(ball, size, steps), None

    def move(points: Images, direction: Images, step: Int[Array, ""]) -> Images:
        return points + adam_rate(step, steps, size) * direction

    return move, optax.scale_by_adam()


def adam_rate(
    step: Int[Array, ""] | int, steps: int, step_size: Number = ADAM_RATE
) -> Float[Array, ""]:
    """0.1, or step_size, a tenth of it from half-way, a hundredth from three quarters.

    The evaluation attack of Gowal et al.'s public code: 40 steps, margin loss, drops
    after 20 and 30.
    """
    rates = jnp.array([1.0, 0.1, 0.01], jnp.float32) * step_size
    return rates[jnp.int32(step >= steps // 2) + jnp.int32(step >= 3 * steps // 4)]


def _rows(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    keys: PRNGKeys,
    loss: str,
    target: str,
    targets: Classes | None,
) -> Callable[[Float[AnyArray, "B L"]], PerImage]:
    """The function of logits that is climbed, [B, L] -> [B]."""
    if targets is not None:
        return lambda logits: losses.TARGETED[loss](logits, labels, targets)
    goal, sign = choose_goal(logits_fn, images, labels, keys, target)
    return lambda logits: sign * losses.LOSSES[loss](logits, goal)


def choose_goal(
    logits_fn: LogitsFn, images: Images, labels: Labels, keys: PRNGKeys, target: str
) -> tuple[Labels, float]:
    """(labels or target classes [B], +1 to climb or -1 to descend their loss)."""
    if not target:
        return labels, 1.0
    true = losses.class_of(labels)
    logits = jax.eval_shape(logits_fn, images)
    classes = logits.shape[-1]
    if target == "random":
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 1, classes))
        shift = draw(jax.vmap(lambda key: rng.fold(key, "target"))(keys))
        return (true + shift) % classes, -1.0
    label = losses.one_hot(true, classes)
    return jnp.argmin(jnp.where(label, jnp.inf, logits_fn(images)), axis=-1), -1.0


def sample(
    ball: Ball,
    keys: PRNGKeys,
    restart: Int[Array, ""] | int,
    shape: tuple[int, ...],
    eps: Number,
) -> Images:
    """Random perturbations [B, *shape], each from its own key."""
    draw = jax.vmap(lambda key: ball.sample(rng.fold(key, "start", restart), shape, eps))
    return draw(keys)


def _keep_best(best: Attempt, points: Images, loss: PerImage, wrong: Marks) -> Attempt:
    """Row by row the better: misclassified points before others, then by their loss."""
    best_points, best_loss, best_wrong = best
    win = (wrong & ~best_wrong) | ((wrong == best_wrong) & (loss > best_loss))
    return (
        rows_where(win, points, best_points),
        jnp.where(win, loss, best_loss),
        jnp.where(win, wrong, best_wrong),
    )
