"""Fast adaptive boundary attack (Croce and Hein 2020): small perturbations, sought first.

Each iteration projects on the linearised decision boundary and the box, from the
current point and from the image, and goes between the two; a misclassified point is
pulled back towards the image. Settings are those of the authors' code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from advadapters import losses, rng, trees
from advadapters.attacks.apgd import Found
from advadapters.attacks.contract import Steps, checked, rows_where
from advadapters.balls import BALLS, flat

ALPHA_MAX, OVERSHOOT, BACKWARD = 0.1, 1.05, 0.9


class Walk(NamedTuple):
    """What the loop carries."""

    step: Any
    points: Any
    nearest: Any  # the misclassified point nearest to the image, and its distance [B]
    distance: Any


@checked
def fab(logits_fn, images, labels, key, *, norm, eps, steps: Steps = 100):
    """Adversarial images [B, H, W, C] inside the ball, the images where none is found."""
    labels = losses.class_of(labels)
    return run_fab(logits_fn, images, labels, key, norm=norm, eps=eps, steps=steps).points


def run_fab(
    logits_fn,
    images,
    labels,
    key,
    *,
    norm,
    eps,
    steps=100,
    targets=None,
    random_start=False,
    active=None,
):
    """One run of FAB -> Found; broken where a misclassified point lies within eps.

    Args:
      targets: [B] classes whose boundary is searched, or None for the nearest boundary
        (which differentiates every logit).
      random_start: begin at a random point half-way to the sphere, not at the image.
      active: bool [B], the examples that matter; the loop ends when all are broken.
    """
    ball = BALLS[norm]
    images = jax.lax.stop_gradient(images)
    active = jnp.ones(images.shape[0], bool) if active is None else active
    points = images
    if random_start:
        keys = rng.per_example(key, images.shape[0])
        start = jax.vmap(lambda k: ball.sample(rng.fold(k, "fab"), images.shape[1:], eps))
        points = jnp.clip(images + start(keys) / 2, 0, 1)
    plane = targeted_plane if targets is not None else nearest_plane
    origin = flat(images)

    def inside(distance):
        return distance <= eps

    def more(walk):
        return (walk.step < steps) & jnp.any(active & ~inside(walk.distance))

    def iterate(walk):
        gap, weights = trees.finite(plane(logits_fn, walk.points, labels, targets, ball))
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
    found = jax.lax.stop_gradient(rows_where(broken, walk.nearest, images))
    return Found(found, broken, 2 * walk.step)


def targeted_plane(logits_fn, points, labels, targets, ball):
    """(gap [B], gradient): how much the target's logit must gain on the label's."""

    def lead(points):
        logits = logits_fn(points).astype(jnp.float32)
        rows = jnp.arange(labels.shape[0])
        difference = logits[rows, labels] - logits[rows, targets]
        return jnp.sum(difference), difference

    (_, difference), slope = jax.value_and_grad(lead, has_aux=True)(points)
    return difference, -slope


def nearest_plane(logits_fn, points, labels, targets, ball):
    """(gap [B], gradient) of the class whose linearised boundary is nearest.

    Class by class, so that memory does not grow with their number.
    """
    logits, pullback = jax.vjp(lambda x: logits_fn(x).astype(jnp.float32), points)
    classes, rows = logits.shape[-1], jnp.arange(labels.shape[0])
    label = losses.one_hot(labels, classes).astype(jnp.float32)

    def nearer(nearest, number):
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
