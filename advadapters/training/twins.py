"""TWINS (Liu et al. 2023): fine-tuning a robust network with two wings.

The wings share convolutions and dense layers. The frozen wing always normalises with the
statistics of pretraining, the adaptive one with those of the batch. Each wing has its own
scale and offset, and both are trained. In terms of `trees`, the norms are adapters of two
domains. The adaptive wing is what is deployed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from advadapters import losses, rng
from advadapters.errors import UsageError
from advadapters.networks import Knob, Network, Plain, Variables, mixture_case
from advadapters.shapes import Images, Logits, PRNGKey, Scalar
from advadapters.training import radius, states
from advadapters.training.method import (
    Batch,
    Check,
    Facts,
    Loss,
    Method,
    Metrics,
    Outcome,
    need_apart,
    need_rows,
)
from advadapters.training.oat import accuracy, write_statistics
from advadapters.training.radius import TrainingAttack
from advadapters.training.states import Tree

DOMAINS = ("frozen", "adaptive")
FROZEN, ADAPTIVE = 0, 1

# The trained branches -> the total loss, and (each wing's loss, each wing's logits of
# attacked images, the statistics after both).
Objective = Callable[[Tree], tuple[Scalar, tuple[Any, Any, Tree]]]


@dataclasses.dataclass(frozen=True)
class TWINS(Method):
    """TWINS-AT, or TWINS-TRADES where beta is above 0.

    Attributes:
      weight: that of the frozen wing's loss (lambda in the paper).
      attack: sees the adaptive wing in evaluation mode.
      beta: with 0, attacked images alone are trained on (TWINS-AT). Above 0, clean images
        are, and beta times the KL divergence of attacked from clean predictions is added
        (TWINS-TRADES).
      keep_norms: whether the frozen wing's scale and offset stay as they were, too. Without
        batch norm, where the wings differ in nothing else, this is our analogue of TWINS.
      gradient_norms: whether each wing's gradient norm is logged, for one more pass.
    """

    weight: float
    attack: TrainingAttack
    beta: float = 0.0
    keep_norms: bool = False
    gradient_norms: bool = False

    def domains(self) -> tuple[str, ...]:
        """The names of the domains, in order."""
        return DOMAINS

    def loss(self, networks: Mapping[float, Network], axis: str | None = None) -> Loss:
        """Makes loss(variables, batch, key), see `twins_loss`."""
        return twins_loss(networks[1.0], self, axis)

    def attacks(self) -> tuple[TrainingAttack, ...]:
        """The one attack."""
        return (self.attack,)

    def need(self, facts: Facts) -> None:
        """Raises UsageError unless the run fits.

        TWINS needs rows in two halves, something to freeze, and a network to start from.
        """
        half = "an even number, half for each wing"
        need_rows(self, facts, facts.rows % 2 == 0, half)
        need_apart(self, facts)
        if not facts.statistics and not self.keep_norms:
            raise UsageError(
                "TWINS freezes batch statistics, and this network has none: give a model "
                "with norm='batch', or set config.twins.keep_norms=True to freeze scale "
                "and offset"
            )
        if facts.start is None:
            raise UsageError(
                "TWINS fine-tunes a robust network: name it in config.start.workdir or "
                "config.start.weights"
            )

    def checks(self) -> list[Check]:
        """The adaptive wing on clean and on attacked images, of which the latter count."""
        case = mixture_case(DOMAINS, (0.0, 1.0))
        return [
            Check("clean", 0.0, case),
            Check("attacked", 1.0, case, (radius.full(self.attack),)),
        ]

    def describe(self) -> list[str]:
        """Says what is trained, in lines for the log."""
        kind = f"TWINS-TRADES, beta {self.beta:g}" if self.beta else "TWINS-AT"
        return [
            f"{kind}: frozen wing with weight {self.weight:g} on one half of the batch, "
            "adaptive wing on the other; attacks the adaptive wing in eval mode (no drop "
            f"path, fixed statistics){radius.describe([self.attack])}"
        ]


def twins_loss(network: Network, method: TWINS, axis: str | None = None) -> Loss:
    """Makes loss(variables, batch, key) -> (loss, (statistics, metrics)) of TWINS.

    Rows 0, 2, ... go through the frozen wing and the others through the adaptive one. (The
    published code halves the batch. This way, it does not matter on how many devices it
    is.) As there, the KL divergence is divided by the whole batch, so it counts half, and
    the attack climbs cross-entropy in TWINS-TRADES too.

    Args:
      network: that of both wings.
      method: the values of the method.
      axis: the name of the mapped axis over devices, None outside such a map.
    """

    def loss(variables: Variables, batch: Batch, key: PRNGKey) -> Outcome:
        attacked = attack(network, method, variables, batch, key)
        halves = [{name: rows[wing::2] for name, rows in batch.items()} for wing in (0, 1)]

        def objective(trained: Tree) -> tuple[Scalar, tuple[list, list, Tree]]:
            tree, wing_losses, wing_logits = {**variables, **trained}, [], []
            for wing in (FROZEN, ADAPTIVE):
                half = halves[wing] | {"attacked": attacked[wing::2]}
                value, stats, logits = wing_loss(network, method, tree, wing, half, key)
                tree = tree | {"stats": stats}
                wing_losses.append(value)
                wing_logits.append(logits)
            total = method.weight * wing_losses[FROZEN] + wing_losses[ADAPTIVE]
            return total, (wing_losses, wing_logits, tree["stats"])

        trained = states.trained(variables)
        total, (wing_losses, wing_logits, stats) = objective(trained)
        metrics = {"loss": total}
        for wing, name in enumerate(DOMAINS):
            metrics[f"loss/{name}"] = wing_losses[wing]
            labels = halves[wing]["labels"]
            metrics[f"accuracy/{name}"] = accuracy(wing_logits[wing], labels)
        if method.gradient_norms:
            metrics |= _wing_norms(objective, trained, axis)
        return total, (stats, metrics)

    return loss


def plain_of(network: Network, method: TWINS, variables: Variables, wing: int) -> Plain:
    """The network of a wing, as an ordinary one."""
    if wing == FROZEN and method.keep_norms:
        adapters = jax.lax.stop_gradient(variables["adapters"])
        variables = {**variables, "adapters": adapters}
    return network.at(variables, Knob(jax.nn.one_hot(wing, len(DOMAINS))))


@jax.named_scope("attack")
def attack(
    network: Network, method: TWINS, variables: Variables, batch: Batch, key: PRNGKey
) -> Images:
    """The batch's images [B, H, W, C], attacked through the adaptive wing."""
    plain = jax.lax.stop_gradient(plain_of(network, method, variables, ADAPTIVE))
    keys = rng.by_index(rng.fold(key, "attack", "start"), batch["index"])
    return radius.at(method.attack, batch)(
        lambda images: network.apply(plain, images), batch["images"], batch["labels"], keys
    )


def wing_loss(
    network: Network,
    method: TWINS,
    variables: Variables,
    wing: int,
    half: Batch,
    key: PRNGKey,
) -> tuple[Scalar, Tree, Logits]:
    """(the loss, the statistics after it, logits of the attacked images) of one wing.

    The attacked pass comes before the clean one, as in the published code, so the clean
    images move the running statistics last.

    Args:
      network: that of both wings.
      method: the values of the method.
      variables: with the statistics before this wing's passes.
      wing: FROZEN or ADAPTIVE.
      half: the wing's half of the batch, with its "attacked" images.
      key: of this step.
    """

    def forward(images: Images, stats: Tree, name: str) -> tuple[Logits, Tree]:
        plain = plain_of(network, method, {**variables, "stats": stats}, wing)
        if wing == FROZEN:
            return network.apply(plain, images), stats
        draws = rng.fold(key, "forward", name)
        logits, updates = network.train(plain, images, draws, half["index"], False)
        return logits, write_statistics(stats, wing, updates)

    labels = half["labels"]
    logits, stats = forward(half["attacked"], variables["stats"], "attacked")
    if not method.beta:
        return jnp.mean(losses.cross_entropy(logits, labels)), stats, logits
    clean, stats = forward(half["images"], stats, "clean")
    divergence = losses.PAIRED["kl"](logits, clean, labels)
    clean = jnp.mean(losses.cross_entropy(clean, labels))
    return clean + method.beta * jnp.mean(divergence) / 2, stats, logits


def _wing_norms(objective: Objective, trained: Tree, axis: str | None) -> Metrics:
    """{"gradient_norm/WING": []} of each wing's loss by itself."""
    norms = {}
    for wing, name in enumerate(DOMAINS):
        slopes = jax.grad(lambda tree, wing=wing: objective(tree)[1][0][wing])(trained)
        if axis is not None:
            slopes = jax.lax.pmean(slopes, axis)
        norms[f"gradient_norm/{name}"] = optax.tree.norm(slopes)
    return norms
