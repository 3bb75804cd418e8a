"""A training method as a list of views: nominal, adversarial and co-training.

A view looks at the batch through one mixture of the adapters, after one attack (or
none), with one weight in the loss. Eq. 2 of Rebuffi et al. (2023) is two views:
alpha of the clean loss under the clean adapters, 1 - alpha of the attacked loss
under the adversarial ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advadapters import losses, rng, trees


class View(NamedTuple):
    """mixture: weights [K]; attack: an Attack or None; train_mode: what it attacks.

    The attack sees the view's own mixture, in evaluation behaviour (no drop path)
    unless train_mode asks for training behaviour.
    """

    name: str
    mixture: tuple[float, ...]
    weight: float
    attack: Callable | None = None
    train_mode: bool = False


def views_loss(apply, views, criterion, keep_batched=lambda tree, axis: tree):
    """The weighted sum of the views' losses, one forward pass over the view axis.

    Args:
      apply: (params, images, key=None) -> logits; a key asks for training behaviour.
      views: a list of View over the same K domains.
      criterion: (logits [B, L], labels) -> [B].
      keep_batched: (tree, axis) -> tree, tells the compiler where the batch axis is.

    Returns:
      loss(variables, batch, key) -> (float32 [], metrics), the one signature that
      the training step knows.
    """
    mixtures = jnp.array([view.mixture for view in views])  # [V, K]
    weights = jnp.array([view.weight for view in views])  # [V]

    def loss(variables, batch, key):
        shared = variables["shared"]
        adapters = jax.vmap(trees.mix, in_axes=(None, 0))(
            variables["adapters"], mixtures
        )  # [V, ...]
        images = jnp.stack(
            [
                attacked(apply, view, trees.plain(variables, mixture), batch, key)
                for view, mixture in zip(views, mixtures, strict=True)
            ]
        )  # [V, B, H, W, C]
        images = keep_batched(images, 1)

        def forward(adapter, images, key):
            return apply(trees.merge(shared, adapter), images, key)

        # The first row's number tells the parts of an accumulated batch apart.
        keys = rng.fold(key, "forward", batch["index"][0])
        keys = jax.random.split(keys, len(views))
        logits = jax.vmap(forward)(adapters, images, keys)  # [V, B, L]
        rows = jax.vmap(criterion, in_axes=(0, None))(logits, batch["labels"])
        right = jnp.argmax(logits, -1) == losses.class_of(batch["labels"])
        per_view = jnp.mean(rows, axis=1)  # [V]
        total = jnp.sum(weights * per_view)
        return total, {"loss": total} | by_name(views, per_view, right)

    return loss


def attacked(apply, view, params, batch, key):
    """The view's images [B, H, W, C]."""
    if view.attack is None:
        return batch["images"]
    key = rng.fold(key, "attack", view.name)
    params = jax.lax.stop_gradient(params)
    first = batch["index"][0]
    forward_key = rng.fold(key, "forward", first) if view.train_mode else None
    keys = rng.by_index(rng.fold(key, "start"), batch["index"])
    return view.attack(
        lambda images: apply(params, images, forward_key),
        batch["images"],
        batch["labels"],
        keys,
    )


def by_name(views, per_view, right):
    """{"loss/NAME": [], "accuracy/NAME": []} for every view."""
    accuracy = jnp.mean(right.astype(jnp.float32), axis=1)
    return {
        f"{metric}/{view.name}": values[v]
        for metric, values in (("loss", per_view), ("accuracy", accuracy))
        for v, view in enumerate(views)
    }


def describe(view, domains):
    """What the view attacks, in words for the log."""
    mixture = ", ".join(
        f"{name}={weight:g}"
        for name, weight in zip(domains, view.mixture, strict=True)
        if weight
    )
    mode = "train mode" if view.train_mode else "eval mode (no drop path)"
    target = f"attacks its own mixture in {mode}" if view.attack else "no attack"
    return f"view {view.name}: weight {view.weight:g}, mixture {mixture}; {target}"
