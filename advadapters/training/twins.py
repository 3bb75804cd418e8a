"""TWINS (Liu et al. 2023): fine-tuning a robust network with two wings.

The wings share convolutions and dense layers. The frozen wing normalises with the
statistics of pretraining, always; the adaptive one with those of the batch. Scale and
offset are each wing's own, and both are trained. In terms of `trees`: the norms are
adapters of two domains. The adaptive wing is what is deployed.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from advadapters import losses, rng
from advadapters import networks as nets
from advadapters.errors import UsageError
from advadapters.training import radius, states
from advadapters.training.method import Check, Method, need_apart, need_rows
from advadapters.training.oat import accuracy, written

DOMAINS = ("frozen", "adaptive")
FROZEN, ADAPTIVE = 0, 1


@dataclasses.dataclass(frozen=True)
class TWINS(Method):
    """The method's values.

    weight: of the frozen wing's loss (lambda in the paper). attack: sees the adaptive wing
      in evaluation mode.
    beta: 0 trains on attacked images alone (TWINS-AT); above 0, on clean images, and by
      beta on the KL divergence of attacked from clean predictions (TWINS-TRADES).
    keep_norms: the frozen wing's scale and offset stay as they were too. Without batch
      norm, where the wings differ in nothing else, this is our analogue of TWINS.
    gradient_norms: log each wing's gradient norm, for one more pass.
    """

    weight: float
    attack: Callable
    beta: float = 0.0
    keep_norms: bool = False
    gradient_norms: bool = False

    def domains(self):
        """Names of the domains, in order."""
        return DOMAINS

    def loss(self, networks, axis=None):
        """The method's loss(variables, batch, key), see `twins_loss`."""
        return twins_loss(networks[1.0], self, axis)

    def attacks(self):
        """The one attack."""
        return (self.attack,)

    def need(self, facts):
        """Halves of the rows, something to freeze, and a network to start from."""
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

    def checks(self):
        """The adaptive wing, clean and attacked; the attacked one counts."""
        case = nets.mixture_case(DOMAINS, (0.0, 1.0))
        return [
            Check("clean", 0.0, case),
            Check("attacked", 1.0, case, (radius.full(self.attack),)),
        ]

    def describe(self):
        """What is trained, in words."""
        kind = f"TWINS-TRADES, beta {self.beta:g}" if self.beta else "TWINS-AT"
        return [
            f"{kind}: frozen wing with weight {self.weight:g} on one half of the batch, "
            "adaptive wing on the other; attacks the adaptive wing in eval mode (no drop "
            f"path, fixed statistics){radius.describe([self.attack])}"
        ]


def twins_loss(network, method, axis=None):
    """loss(variables, batch, key) -> (float32 [], (stats, metrics)) of TWINS-AT or -TRADES.

    Rows 0, 2, ... go through the frozen wing, the others through the adaptive one (the
    published code halves the batch; this way it does not matter on how many devices it
    is). As there, the KL divergence is divided by the whole batch, so it counts half, and
    the attack climbs cross-entropy in TWINS-TRADES too.
    """

    def loss(variables, batch, key):
        attacked = attack(network, method, variables, batch, key)
        parts = [{name: rows[wing::2] for name, rows in batch.items()} for wing in (0, 1)]

        def objective(trained):
            tree, stats, found = variables | trained, variables["stats"], []
            for wing in (FROZEN, ADAPTIVE):
                one, stats, logits = wing_loss(
                    network, method, tree, stats, wing, attacked[wing::2], parts[wing], key
                )
                found.append((one, logits))
            (frozen, one), (adaptive, two) = found
            return method.weight * frozen + adaptive, (frozen, adaptive, one, two, stats)

        trained = states.trained(variables)
        total, (frozen, adaptive, one, two, stats) = objective(trained)
        metrics = {
            "loss": total,
            "loss/frozen": frozen,
            "loss/adaptive": adaptive,
            "accuracy/frozen": accuracy(one, parts[FROZEN]["labels"]),
            "accuracy/adaptive": accuracy(two, parts[ADAPTIVE]["labels"]),
        }
        if method.gradient_norms:
            metrics |= wing_norms(objective, trained, axis)
        return total, (stats, metrics)

    return loss


def plain_of(network, method, variables, wing):
    """The network of a wing."""
    if wing == FROZEN and method.keep_norms:
        variables = variables | {"adapters": jax.lax.stop_gradient(variables["adapters"])}
    return network.at(variables, nets.Knob(jax.nn.one_hot(wing, len(DOMAINS))))


@jax.named_scope("attack")
def attack(network, method, variables, batch, key):
    """Images [B, H, W, C] attacked through the adaptive wing."""
    plain = jax.lax.stop_gradient(plain_of(network, method, variables, ADAPTIVE))
    keys = rng.by_index(rng.fold(key, "attack", "start"), batch["index"])
    return radius.at(method.attack, batch)(
        lambda images: network.apply(plain, images), batch["images"], batch["labels"], keys
    )


def wing_loss(network, method, variables, stats, wing, attacked, batch, key):
    """(loss [], statistics after it, logits of the attacked images) of one wing.

    The attacked pass comes before the clean one, as in the published code, so the clean
    images move the running statistics last.
    """

    def forward(images, stats, name):
        plain = plain_of(network, method, variables | {"stats": stats}, wing)
        if wing == FROZEN:
            return network.apply(plain, images), stats
        draws = rng.fold(key, "forward", name)
        logits, seen = network.train(plain, images, draws, batch["index"], False)
        return logits, written(stats, wing, seen)

    labels = batch["labels"]
    logits, stats = forward(attacked, stats, "attacked")
    if not method.beta:
        return jnp.mean(losses.cross_entropy(logits, labels)), stats, logits
    clean, stats = forward(batch["images"], stats, "clean")
    divergence = losses.PAIRED["kl"](logits, clean, labels)
    clean = jnp.mean(losses.cross_entropy(clean, labels))
    return clean + method.beta * jnp.mean(divergence) / 2, stats, logits


def wing_norms(objective, trained, axis):
    """{"gradient_norm/WING": []} of each wing's loss by itself."""
    found = {}
    for wing, name in enumerate(DOMAINS):
        slopes = jax.grad(lambda tree, wing=wing: objective(tree)[1][wing])(trained)
        if axis is not None:
            slopes = jax.lax.pmean(slopes, axis)
        found[f"gradient_norm/{name}"] = optax.tree.norm(slopes)
    return found
