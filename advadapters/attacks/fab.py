"""Fast adaptive boundary attack (Croce and Hein 2020): small perturbations, sought first.

Each iteration projects on the linearised decision boundary and the box, from the
current point and from the image, and goes between the two; a misclassified point is
pulled back towards the image. Settings are those of the authors' code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from advadapters import losses, trees
from advadapters.attacks.contract import (
    Outcome,
    Problem,
    Steps,
    checked,
    problem_of,
    rows_where,
)
from advadapters.balls import Ball, flat
from advadapters.shapes import (
    Array,
    Bool,
    Classes,
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

ALPHA_MAX, OVERSHOOT, BACKWARD = 0.1, 1.05, 0.9


class Walk(NamedTuple):
    """What the loop carries.

    nearest: the misclassified points nearest to the images. distance: from the images.
    """

    step: Int[Array, ""]
    points: Images
    nearest: Images
    distance: PerImage


Plane = tuple[PerImage, Images]  # gap, gradient


@checked
def fab(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    key: PRNGKeys,
    *,
    norm: str,
    eps: Number,
    steps: Steps = 100,
) -> Images:
    """Adversarial images [B, H, W, C] inside the ball, the images where none is found."""
    labels = losses.class_of(labels)
    problem = problem_of(logits_fn, images, labels, key, norm=norm, eps=eps)
    return run_fab(problem, steps=steps).points


def run_fab(
    problem: Problem,
    *,
    steps: int = 100,
    targets: Classes | None = None,
    random_start: bool = False,
) -> Outcome:
    """One run of FAB; an image is broken where a misclassified point lies within eps.

    Args:
      problem: what is attacked. The loop ends when all active examples are broken.
      steps: the number of iterations at most.
      targets: [B] classes whose boundary is searched, or None for the nearest boundary
        (which differentiates every logit).
      random_start: begin at a random point half-way to the sphere, not at the image.
    """
    ball, images, eps = problem.ball, problem.images, problem.eps
    logits_fn, labels = problem.logits_fn, problem.labels
    points = images
    if random_start:
        start = jax.vmap(lambda key: ball.sample(key, images.shape[1:], eps))
        points = jnp.clip(images + start(problem.draws("fab")) / 2, 0, 1)
    origin = flat(images)

    def plane(points: Images) -> Plane:
        if targets is None:
            return nearest_plane(logits_fn, points, labels, ball)
        return _targeted_plane(logits_fn, points, labels, targets)

    def inside(distance: PerImage) -> Marks:
        return distance <= eps

    def more(walk: Walk) -> Bool[Array, ""]:
        return (walk.step < steps) & jnp.any(problem.active & ~inside(walk.distance))

    def iterate(walk: Walk) -> Walk:
        gap, weights = trees.finite(plane(walk.points))
        weights, here = flat(weights), flat(walk.points)
        # Both projections in one call: from here, and from the image.
        from_image = trees.finite(gap + jnp.sum(weights * (here - origin), axis=1))
        both = ball.to_plane(
            jnp.concatenate([here, origin]),
            jnp.concatenate([weights, weights]),
            jnp.concatenate([gap, from_image]),
        )
        near, far = (part.reshape(images.shape) for part in jnp.split(both, 2))
        near_norm, far_norm = (jnp.maximum(ball.norm(d), 1e-8) for d in (near, far))
        alpha = jnp.minimum(near_norm / (near_norm + far_norm), ALPHA_MAX)
        alpha = alpha.reshape(-1, *[1] * (images.ndim - 1))
        moved = (1 - alpha) * (walk.points + OVERSHOOT * near)
        moved = jnp.clip(moved + alpha * (images + OVERSHOOT * far), 0, 1)
        wrong = losses.misclassified(logits_fn(moved), labels)
        distance = ball.norm(moved - images)
        # What is inside already stays: else it would depend on the rest of the batch.
        closer = wrong & (distance < walk.distance) & ~inside(walk.distance)
        return Walk(
            step=walk.step + 1,
            points=rows_where(wrong, images + BACKWARD * (moved - images), moved),
            nearest=rows_where(closer, moved, walk.nearest),
            distance=jnp.where(closer, distance, walk.distance),
        )

    far = jnp.full(images.shape[:1], jnp.inf, images.dtype)
    walk = Walk(jnp.zeros((), jnp.int32), points, images, far)
    walk = jax.lax.while_loop(more, iterate, walk)
    broken = inside(walk.distance)
    points = jax.lax.stop_gradient(rows_where(broken, walk.nearest, images))
    return Outcome(points, broken, 2 * walk.step)


def _targeted_plane(
    logits_fn: LogitsFn, points: Images, labels: Classes, targets: Classes
) -> Plane:
    """(gap [B], gradient): how much the target's logit must gain on the label's."""

    def lead(points: Images) -> tuple[Scalar, PerImage]:
        logits = logits_fn(points).astype(jnp.float32)
        rows = jnp.arange(labels.shape[0])
        difference = logits[rows, labels] - logits[rows, targets]
        return jnp.sum(difference), difference

    (_, difference), slope = jax.value_and_grad(lead, has_aux=True)(points)
    return difference, -slope


def nearest_plane(
    logits_fn: LogitsFn,
    points: Images,
    labels: Classes,
    ball: Ball,
) -> Plane:
    """(gap [B], gradient) of the class whose linearised boundary is nearest.

    Class by class, so that memory does not grow with their number: for 1,000 classes and 16
    images of 32 pixels, temporaries take 2.4 MB instead of 398, for as many products.
    """
    logits, pullback = jax.vjp(lambda x: logits_fn(x).astype(jnp.float32), points)
    classes, rows = logits.shape[-1], jnp.arange(labels.shape[0])
    label = losses.one_hot(labels, classes).astype(jnp.float32)

    def nearer(
        nearest: tuple[PerImage, PerImage, Images], number: Int[Array, ""]
    ) -> tuple[tuple[PerImage, PerImage, Images], None]:
        away, gap, weights = nearest
        seed = jax.nn.one_hot(number, classes, dtype=jnp.float32)[None] - label
        slope = trees.finite(pullback(seed)[0])
        lead = logits[rows, labels] - logits[:, number]
        far = jnp.where(
            labels == number, jnp.inf, jnp.abs(lead) / (ball.dual(slope) + 1e-12)
        )
        closer = far < away
        return (
            jnp.where(closer, far, away),
            jnp.where(closer, lead, gap),
            rows_where(closer, slope, weights),
        ), None

    zeros = jnp.zeros_like(logits[:, 0])
    nothing = (zeros + jnp.inf, zeros, jnp.zeros_like(points))
    numbers = jnp.arange(classes, dtype=labels.dtype)
    (_, gap, weights), _ = jax.lax.scan(nearer, nothing, numbers)
    return gap, weights
