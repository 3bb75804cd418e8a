"""A training method as a list of views: nominal, adversarial, co-training, TRADES, ...

A view looks at the batch through one mixture of the adapters, after one attack or none, and
has one weight in the loss. Eq. 2 of Rebuffi et al. (2023) is two views: alpha times the
clean loss under the clean adapters, and 1 - alpha times the attacked loss under the
adversarial ones. TRADES is a clean view and one that is compared with it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from advadapters import losses, rng, trees
from advadapters.errors import UsageError
from advadapters.networks import Network, Variables, mixture_case
from advadapters.shapes import (
    AnyArray,
    Float,
    Images,
    Int,
    Labels,
    Logits,
    Mixture,
    PerImage,
    PRNGKey,
    Scalar,
)
from advadapters.training import radius, states, tricks
from advadapters.training.method import (
    Batch,
    Check,
    Facts,
    Loss,
    Method,
    Metrics,
    Outcome,
)
from advadapters.training.radius import Attack, TrainingAttack
from advadapters.training.states import Tree

AllImages = Float[AnyArray, "V B H W C"]  # of V views
AllLogits = Float[AnyArray, "V B L"]
AllMixtures = Float[AnyArray, "V K"]
PerView = Float[AnyArray, " V"]
# The trained branches -> the total loss, and what else came out.
Objective = Callable[[Tree], tuple[Scalar, Any]]

ERROR_DECAY = 0.9  # of the running robust errors by which attacks are drawn


class View(NamedTuple):
    """What one part of the loss looks at.

    Attributes:
      name: that of the view, by which its metrics and its random numbers go.
      mixture: weights [K] of the domains.
      weight: that of the view in the loss. A view of weight 0 still takes part in the batch
        statistics, which the views that are compared with it need.
      attacks: none, one, or several. Of several, each batch draws one, with probabilities
        proportional to their running robust errors (E-AT, Croce and Hein 2022). Those whose
        radius grows (`radius.Growing`) need "step" in the batch.
      train_mode: whether the attack sees training behaviour (drop path, statistics of the
        batch) in place of evaluation behaviour. It always sees the view's own mixture.
      against: "labels", or "predictions". With the latter, the attack climbs the loss of
        the network's own probabilities on the clean images (TRADES).
      losses: ((name in `losses.TRAINING` or `losses.PAIRED`, factor), ...), which are
        summed.
      reference: the number of the view with whose logits the paired losses compare.
      alarm: an attack of more steps, or None, see `runs.evaluating.validation`.
      tricks: names in `tricks.TRICKS` that change the attack in the first `warmup` steps.
        The batch then needs "step".
      warmup: the number of steps over which the tricks fade out.
    """

    name: str
    mixture: tuple[float, ...]
    weight: float
    attacks: tuple[TrainingAttack, ...] = ()
    train_mode: bool = False
    against: str = "labels"
    losses: tuple[tuple[str, float], ...] = (("cross_entropy", 1.0),)
    reference: int | None = None
    alarm: Attack | None = None
    tricks: tuple[str, ...] = ()
    warmup: float = 0.0


@dataclasses.dataclass(frozen=True)
class Views(Method):
    """A list of views as a training method.

    Attributes:
      names: those of the domains.
      views: what the loss looks at.
      pooled: whether batch statistics are taken over all views together.
      perturbation: the size of the adversarial weight perturbation, 0 for none.
    """

    names: tuple[str, ...]
    views: Sequence[View]
    pooled: bool
    perturbation: float

    def domains(self) -> tuple[str, ...]:
        """The names of the domains, as the config has them."""
        return self.names

    def loss(self, networks: Mapping[float, Network], axis: str | None = None) -> Loss:
        """Makes loss(variables, batch, key), see `views_loss`."""
        return views_loss(
            networks[1.0],
            self.views,
            pooled=self.pooled,
            perturbation=self.perturbation,
            axis=axis,
        )

    def attacks(self) -> tuple[TrainingAttack, ...]:
        """The attacks of all views."""
        return tuple(attack for view in self.views for attack in view.attacks)

    def need(self, facts: Facts) -> None:
        """Raises UsageError where weights are to be perturbed and layers are one stack."""
        if self.perturbation and facts.scanned:
            raise UsageError(
                "config.weight_perturbation goes by layer, and with config.model.scan=True "
                "all blocks are one: set scan=False"
            )

    def running_errors(self) -> dict[str, Any]:
        """For each view that draws its attack, ones [attacks]."""
        drawing = [view for view in self.views if len(view.attacks) > 1]
        return {view.name: jnp.ones(len(view.attacks)) for view in drawing}

    def checks(self) -> list[Check]:
        """What validation looks at: each view under its attacks."""
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

    def describe(self) -> list[str]:
        """Says what each view looks at, in a line for each."""
        return [describe(view, self.names) for view in self.views]


def views_loss(
    network: Network,
    views: Sequence[View],
    *,
    pooled: bool = True,
    perturbation: float = 0.0,
    axis: str | None = None,
) -> Loss:
    """The weighted sum of the views' losses, in one forward pass over the view axis.

    Args:
      network: a `networks.Network`, of which only apply, train and patch are used.
      views: all over the same K domains.
      pooled: whether batch statistics are taken over all views together.
      perturbation: the size of the adversarial weight perturbation, 0 for none; see
        `perturb`.
      axis: the name of the mapped axis over devices, None outside such a map.

    Returns:
      loss(variables, batch, key) -> (loss, (new statistics, metrics)), the one signature
      that the training step knows.
    """
    mixtures = jnp.array([view.mixture for view in views])  # [V, K]
    weights = jnp.array([view.weight for view in views])  # [V]

    def loss(variables: Variables, batch: Batch, key: PRNGKey) -> Outcome:
        pairs = [show(network, view, variables, batch, key) for view in views]
        images = jnp.stack([points for points, _ in pairs])  # [V, B, H, W, C]

        def objective(trained: Tree) -> tuple[Scalar, tuple[PerView, AllLogits, Tree]]:
            logits, stats = forward(
                network, {**variables, **trained}, mixtures, images, batch, key, pooled
            )
            rows = [
                losses_of(view, view_logits, logits, batch["labels"])
                for view, view_logits in zip(views, logits, strict=True)
            ]
            per_view = jnp.mean(jnp.stack(rows), axis=1)  # [V]
            return jnp.sum(weights * per_view), (per_view, logits, stats)

        trained = states.trained(variables)
        if perturbation:
            trained = perturb(objective, trained, perturbation, axis)
        total, (per_view, logits, stats) = objective(trained)
        right = ~losses.misclassified(logits, batch["labels"])
        right = jnp.mean(right.astype(jnp.float32), axis=1)  # [V]
        stats = move_statistics(variables["stats"], mixtures, stats)
        drawing = [v for v, view in enumerate(views) if len(view.attacks) > 1]
        # Only what is drawn must be the same on all devices: the step averages metrics.
        mean = jax.lax.pmean(right, axis) if drawing and axis is not None else right
        stats["errors"] = {
            views[v].name: _move_error(variables, views[v], pairs[v][1], 1 - mean[v])
            for v in drawing
        }
        return total, (stats, {"loss": total} | _by_name(views, per_view, right))

    return loss


@jax.named_scope("attack")
def show(
    network: Network, view: View, variables: Variables, batch: Batch, key: PRNGKey
) -> tuple[Images, int | Int[AnyArray, ""]]:
    """(the view's images [B, H, W, C], the number of the attack that made them)."""
    if not view.attacks:
        return batch["images"], 0
    key = rng.fold(key, "attack", view.name)
    plain = jax.lax.stop_gradient(trees.plain(variables, view.mixture))
    forward_key = rng.fold(key, "forward") if view.train_mode else None

    def logits_fn(images: Images, **settings: Any) -> Logits:
        return network.apply(plain, images, forward_key, batch["index"], **settings)

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


def forward(
    network: Network,
    variables: Variables,
    mixtures: AllMixtures,
    images: AllImages,
    batch: Batch,
    key: PRNGKey,
    pooled: bool,
) -> tuple[AllLogits, Tree]:
    """(logits [V, B, L], new statistics [V, ...]) of all views in training behaviour.

    A single view is not mapped over, because CPUs sum twice as slowly where a leading axis
    is 1.
    """

    def train(
        mixture: Mixture, images: Images, key: PRNGKey, pooled: bool = pooled
    ) -> tuple[Logits, Tree]:
        plain = trees.plain(variables, mixture)
        return network.train(plain, images, key, batch["index"], pooled)

    keys = jax.random.split(rng.fold(key, "forward"), len(mixtures))
    if len(mixtures) == 1:
        outputs = train(mixtures[0], images[0], keys[0], pooled=False)
        return jax.tree.map(lambda leaf: leaf[None], outputs)
    return jax.vmap(train, axis_name="views")(mixtures, images, keys)


def losses_of(
    view: View, logits: Logits, all_logits: AllLogits, labels: Labels
) -> PerImage:
    """A view's loss [B] of each image.

    Args:
      view: whose losses are summed.
      logits: those of the view.
      all_logits: those of all views, among which is the reference of paired losses.
      labels: class numbers or probabilities.
    """
    total = jnp.zeros(logits.shape[0])
    for name, factor in view.losses:
        if name in losses.PAIRED:
            reference = all_logits[view.reference]
            total += factor * losses.PAIRED[name](logits, reference, labels)
        else:
            total += factor * losses.TRAINING[name](logits, labels)
    return total


def move_statistics(
    stats: Mapping[str, Any], mixtures: AllMixtures, updates: Mapping[str, Any]
) -> Tree:
    """The running statistics after a step.

    Those that the domains share become the mean over the views. Domain k moves by the moves
    of the views, each with its weight on k, so a one-hot view moves its own domain as if it
    were alone.

    Args:
      stats: {"shared", "adapters" [K, ...]} before the step.
      mixtures: those of the views.
      updates: what each view's pass made of the statistics of its mixture [V, ...].
    """
    flat = trees.flatten(updates)
    shared, specific = trees.flatten(stats["shared"]), trees.flatten(stats["adapters"])
    before = jax.vmap(trees.mix, in_axes=(None, 0))(specific, mixtures)  # [V, ...]
    moves = {path: flat[path] - before[path] for path in specific}
    shares = mixtures / jnp.maximum(jnp.sum(mixtures, axis=0), 1.0)  # [V, K]
    moves = jax.vmap(trees.mix, in_axes=(None, 1))(moves, shares)  # [K, ...]
    after = {path: specific[path] + moves[path] for path in specific}
    return {
        "shared": trees.unflatten({path: jnp.mean(flat[path], axis=0) for path in shared}),
        "adapters": trees.unflatten(after),
    }


def _move_error(
    variables: Variables, view: View, drawn: int | Int[AnyArray, ""], error: Scalar
) -> Float[AnyArray, " attacks"]:
    """The view's running robust errors after a batch on which attack `drawn` was used."""
    errors = variables["stats"]["errors"][view.name]
    return errors.at[drawn].set(ERROR_DECAY * errors[drawn] + (1 - ERROR_DECAY) * error)


def perturb(objective: Objective, trained: Tree, size: float, axis: str | None) -> Tree:
    """Adversarial weight perturbation (AWP, Wu et al. 2020), one step uphill.

    Each weight of two or more axes (those of each domain by itself, for adapters) moves
    along its gradient by `size` times its own norm. No gradient flows through the move, so
    the gradient that follows is taken at the moved weights and applied to those before.

    Args:
      objective: whose first output is climbed.
      trained: the weights.
      size: that of the step, relative to each weight's norm.
      axis: the name of the mapped axis over devices, None outside such a map.
    """
    slopes = jax.grad(lambda tree: objective(tree)[0])(trained)
    if axis is not None:
        slopes = jax.lax.pmean(slopes, axis)

    def move(weight: Float[AnyArray, "..."], slope: Float[AnyArray, "..."]) -> AnyArray:
        if weight.ndim < 2:
            return weight
        norm = jnp.linalg.norm(weight.reshape(-1))
        slope = slope / (jnp.linalg.norm(slope.reshape(-1)) + 1e-12)
        return weight + jax.lax.stop_gradient(size * norm * slope)

    return {
        "shared": jax.tree.map(move, trained["shared"], slopes["shared"]),
        "adapters": jax.tree.map(jax.vmap(move), trained["adapters"], slopes["adapters"]),
    }


def _by_name(views: Sequence[View], per_view: PerView, right: PerView) -> Metrics:
    """{"loss/NAME": [], "accuracy/NAME": []} for every view."""
    return {
        f"{metric}/{view.name}": values[v]
        for metric, values in (("loss", per_view), ("accuracy", right))
        for v, view in enumerate(views)
    }


def describe(view: View, domains: Sequence[str]) -> str:
    """Says what the view looks at and how it attacks, in a line for the log."""
    mixture = ", ".join(
        f"{name}={weight:g}"
        for name, weight in zip(domains, view.mixture, strict=True)
        if weight
    )
    mode = "train mode" if view.train_mode else "eval mode (no drop path, fixed statistics)"
    several = len(view.attacks) > 1
    choice = f", one of {len(view.attacks)} drawn per batch" if several else ""
    fading = ""
    if view.tricks:
        names = " and ".join(tricks.TRICKS[trick] for trick in view.tricks)
        fading = f", with {names} fading out over the first {view.warmup:.0f} steps"
    target = (
        f"attacks its own mixture in {mode} against the {view.against}{choice}{fading}"
        f"{radius.describe(view.attacks)}"
        if view.attacks
        else "no attack"
    )
    terms = " + ".join(f"{factor:g} {name}" for name, factor in view.losses)
    terms = "" if terms == "1 cross_entropy" else f"loss {terms}, "
    return f"view {view.name}: weight {view.weight:g}, {terms}mixture {mixture}; {target}"
