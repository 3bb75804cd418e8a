"""A training method as a list of views: nominal, adversarial, co-training, TRADES, ...

A view looks at the batch through one mixture of the adapters, after one attack (or
none), with one weight in the loss. Eq. 2 of Rebuffi et al. (2023) is two views:
alpha of the clean loss under the clean adapters, 1 - alpha of the attacked loss
under the adversarial ones. TRADES is a clean view and one that is compared with it.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advadapters import losses, rng, trees
from advadapters.errors import UsageError
from advadapters.networks import mixture_case
from advadapters.training import radius, states, tricks
from advadapters.training.method import Check, Method

ERROR_DECAY = 0.9  # of the running robust errors by which attacks are drawn


class View(NamedTuple):
    """What one part of the loss looks at.

    mixture: weights [K]. weight: of the view in the loss; a view of weight 0 still takes
      part in the batch statistics, as what it is a reference for needs.
    attacks: none, one, or several of which each batch draws one, with probabilities
      proportional to their running robust errors (E-AT, Croce and Hein 2022). Those whose
      radius grows (`radius.Growing`) need "step" in the batch.
    train_mode: whether the attack sees training behaviour (drop path, statistics of
      the batch) instead of evaluation behaviour. It sees the view's own mixture.
    against: "labels", or "predictions": the attack climbs the loss of the network's own
      probabilities on the clean images (TRADES), not that of the labels.
    losses: ((name in TRAINING or PAIRED, factor), ...), summed.
    reference: number of the view whose logits the paired losses compare with.
    alarm: an attack of more steps, or None: see `runs.evaluating.validation`.
    tricks: names in `tricks.TRICKS` that change the attack in the first `warmup` steps;
      the batch then needs "step".
    """

    name: str
    mixture: tuple[float, ...]
    weight: float
    attacks: tuple[Callable, ...] = ()
    train_mode: bool = False
    against: str = "labels"
    losses: tuple[tuple[str, float], ...] = (("cross_entropy", 1.0),)
    reference: int | None = None
    alarm: Callable | None = None
    tricks: tuple[str, ...] = ()
    warmup: float = 0.0


@dataclasses.dataclass(frozen=True)
class Views(Method):
    """A list of views as a method (see `method`); names: of the domains."""

    names: tuple[str, ...]
    views: list[View]
    pooled: bool
    perturbation: float

    def domains(self):
        """As the config names them."""
        return self.names

    def loss(self, networks, axis=None):
        """See `views_loss`."""
        return views_loss(
            networks[1.0],
            self.views,
            pooled=self.pooled,
            perturbation=self.perturbation,
            axis=axis,
        )

    def attacks(self):
        """Those of all views."""
        return tuple(attack for view in self.views for attack in view.attacks)

    def need(self, facts):
        """Layers to perturb, where weights are perturbed."""
        if self.perturbation and facts.scanned:
            raise UsageError(
                "config.weight_perturbation goes by layer, and with config.model.scan=True "
                "all blocks are one: set scan=False"
            )

    def running_errors(self):
        """Ones, for views that draw their attack."""
        many = [view for view in self.views if len(view.attacks) > 1]
        return {view.name: jnp.ones(len(view.attacks)) for view in many}

    def checks(self):
        """Each view under its attacks."""
        return [
            Check(
                view.name,
                view.weight,
                mixture_case(self.names, view.mixture),
                tuple(map(radius.full, view.attacks)),
                view.alarm,
            )
            for view in self.views
        ]

    def describe(self):
        """A line per view."""
        return [describe(view, self.names) for view in self.views]


def views_loss(network, views, *, pooled=True, perturbation=0.0, axis=None):
    """The weighted sum of the views' losses, one forward pass over the view axis.

    Args:
      network: with apply(plain, images, key, index) -> logits (a key asks for training
        behaviour) and train(plain, images, key, index, pooled) -> (logits, statistics).
      views: a list of View over the same K domains.
      pooled: whether batch statistics are taken over all views together.
      perturbation: size of the adversarial weight perturbation, 0 for none; see
        `perturbed`.
      axis: name of the mapped axis over devices, None outside such a map.

    Returns:
      loss(variables, batch, key) -> (float32 [], (stats, metrics)), the one signature
      that the training step knows.
    """
    mixtures = jnp.array([view.mixture for view in views])  # [V, K]
    weights = jnp.array([view.weight for view in views])  # [V]

    def loss(variables, batch, key):
        shown = [show(network, view, variables, batch, key) for view in views]
        images = jnp.stack([points for points, _ in shown])  # [V, B, H, W, C]

        def objective(trained):
            logits, stats = forward(
                network, variables | trained, mixtures, images, batch, key, pooled
            )
            rows = [
                losses_of(view, own, logits, batch["labels"])
                for view, own in zip(views, logits, strict=True)
            ]
            per_view = jnp.mean(jnp.stack(rows), axis=1)  # [V]
            return jnp.sum(weights * per_view), (per_view, logits, stats)

        trained = states.trained(variables)
        if perturbation:
            trained = perturbed(objective, trained, perturbation, axis)
        total, (per_view, logits, stats) = objective(trained)
        right = ~losses.misclassified(logits, batch["labels"])
        right = jnp.mean(right.astype(jnp.float32), axis=1)  # [V]
        stats = running(variables["stats"], mixtures, stats)
        many = [v for v, view in enumerate(views) if len(view.attacks) > 1]
        # Only what is drawn must be the same on all devices: the step averages metrics.
        over = jax.lax.pmean(right, axis) if many and axis is not None else right
        stats["errors"] = {
            views[v].name: drawn_error(variables, views[v], shown[v][1], 1 - over[v])
            for v in many
        }
        return total, (stats, {"loss": total} | by_name(views, per_view, right))

    return loss


@jax.named_scope("attack")
def show(network, view, variables, batch, key):
    """(the view's images [B, H, W, C], number of the attack drawn)."""
    if not view.attacks:
        return batch["images"], 0
    key = rng.fold(key, "attack", view.name)
    plain = jax.lax.stop_gradient(trees.plain(variables, view.mixture))
    forward_key = rng.fold(key, "forward") if view.train_mode else None

    def logits_fn(images, **more):
        return network.apply(plain, images, forward_key, batch["index"], **more)

    labels = batch["labels"]
    if view.against == "predictions":
        labels = jax.lax.stop_gradient(jax.nn.softmax(logits_fn(batch["images"])))
    keys = rng.by_index(rng.fold(key, "start"), batch["index"])
    settings = {}
    if view.tricks:
        keep = tricks.keep(batch["step"], view.warmup)
        settings["vary"] = tricks.vary(
            view.tricks, logits_fn, batch, keep, rng.fold(key, "tricks"), network.patch
        )
    runs = [
        lambda images, run=run: run(logits_fn, images, labels, keys, **settings)
        for run in (radius.at(attack, batch) for attack in view.attacks)
    ]
    if len(runs) == 1:
        return runs[0](batch["images"]), 0
    errors = variables["stats"]["errors"][view.name]
    drawn = jax.random.categorical(rng.fold(key, "which"), jnp.log(errors + 1e-6))
    return jax.lax.switch(drawn, runs, batch["images"]), drawn


def forward(network, variables, mixtures, images, batch, key, pooled):
    """(logits [V, B, L], new statistics [V, ...]) of all views in training behaviour.

    One view is not mapped over: CPUs sum twice as slowly where a leading axis is 1.
    """

    def one(mixture, images, key, pooled=pooled):
        plain = trees.plain(variables, mixture)
        return network.train(plain, images, key, batch["index"], pooled)

    keys = jax.random.split(rng.fold(key, "forward"), len(mixtures))
    if len(mixtures) == 1:
        found = one(mixtures[0], images[0], keys[0], pooled=False)
        return jax.tree.map(lambda leaf: leaf[None], found)
    return jax.vmap(one, axis_name="views")(mixtures, images, keys)


def losses_of(view, logits, all_logits, labels):
    """A view's loss [B]; all_logits [V, B, L] are what a reference is taken from."""
    total = jnp.zeros(logits.shape[0])
    for name, factor in view.losses:
        if name in losses.PAIRED:
            reference = all_logits[view.reference]
            total += factor * losses.PAIRED[name](logits, reference, labels)
        else:
            total += factor * losses.TRAINING[name](logits, labels)
    return total


def running(stats, mixtures, seen):
    """Running statistics after a step in which view v made [v] of `seen`.

    Shared ones take the views' mean. Domain k moves by the moves of the views, each with
    its weight on k: a one-hot view moves its own domain as if it were alone.
    """
    flat = trees.flatten(seen)
    one, many = trees.flatten(stats["shared"]), trees.flatten(stats["adapters"])
    started = jax.vmap(trees.mix, in_axes=(None, 0))(many, mixtures)  # [V, ...]
    moves = {path: flat[path] - started[path] for path in many}
    shares = mixtures / jnp.maximum(jnp.sum(mixtures, axis=0), 1.0)  # [V, K]
    moved = jax.vmap(trees.mix, in_axes=(None, 1))(moves, shares)  # [K, ...]
    return {
        "shared": trees.unflatten({path: jnp.mean(flat[path], axis=0) for path in one}),
        "adapters": trees.unflatten({path: many[path] + moved[path] for path in many}),
    }


def drawn_error(variables, view, drawn, error):
    """The view's running robust errors after a batch in which `drawn` was used."""
    errors = variables["stats"]["errors"][view.name]
    return errors.at[drawn].set(ERROR_DECAY * errors[drawn] + (1 - ERROR_DECAY) * error)


def perturbed(objective, trained, size, axis):
    """Adversarial weight perturbation (AWP, Wu et al. 2020), one step uphill.

    Each weight of two or more axes (per domain, for adapters) moves along its gradient
    by `size` times its own norm. No gradient flows through the move, so the gradient
    that follows is taken at the moved weights and applied to those before.
    """
    slopes = jax.grad(lambda tree: objective(tree)[0])(trained)
    if axis is not None:
        slopes = jax.lax.pmean(slopes, axis)

    def move(weight, slope):
        if weight.ndim < 2:
            return weight
        norm = jnp.linalg.norm(weight.reshape(-1))
        slope = slope / (jnp.linalg.norm(slope.reshape(-1)) + 1e-12)
        return weight + jax.lax.stop_gradient(size * norm * slope)

    return {
        "shared": jax.tree.map(move, trained["shared"], slopes["shared"]),
        "adapters": jax.tree.map(jax.vmap(move), trained["adapters"], slopes["adapters"]),
    }


def by_name(views, per_view, right):
    """{"loss/NAME": [], "accuracy/NAME": []} for every view."""
    return {
        f"{metric}/{view.name}": values[v]
        for metric, values in (("loss", per_view), ("accuracy", right))
        for v, view in enumerate(views)
    }


def describe(view, domains):
    """What the view attacks, in words for the log."""
    mixture = ", ".join(
        f"{name}={weight:g}"
        for name, weight in zip(domains, view.mixture, strict=True)
        if weight
    )
    mode = "train mode" if view.train_mode else "eval mode (no drop path, fixed statistics)"
    many = len(view.attacks) > 1
    drawn = f", one of {len(view.attacks)} drawn per batch" if many else ""
    faded = ""
    if view.tricks:
        names = " and ".join(tricks.TRICKS[trick] for trick in view.tricks)
        faded = f", with {names} fading out over the first {view.warmup:.0f} steps"
    target = (
        f"attacks its own mixture in {mode} against the {view.against}{drawn}{faded}"
        f"{radius.describe(view.attacks)}"
        if view.attacks
        else "no attack"
    )
    terms = " + ".join(f"{factor:g} {name}" for name, factor in view.losses)
    terms = "" if terms == "1 cross_entropy" else f"loss {terms}, "
    return f"view {view.name}: weight {view.weight:g}, {terms}mixture {mixture}; {target}"
