"""Once-for-all adversarial training (OAT, OATS; Wang et al. 2020): one network for every
lambda, and for every width.

The network is told lambda, the weight of the adversarial loss, which is drawn for each
image anew. Norms and their statistics are two sets, for lambda 0 and for all others
("dual batch norm"), or one; of each width its own. In terms of `trees`: the norms are
adapters, and a domain is a width with one of the two sets. A narrower network is the
corner of the same tree. The step over all widths is ours: OATS' was never published.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses, rng
from advadapters import networks as nets
from advadapters.errors import UsageError
from advadapters.models.film import Film
from advadapters.soups import one_hot
from advadapters.training import radius
from advadapters.training.method import Check, Method, need_apart, need_rows


@dataclasses.dataclass(frozen=True)
class OAT(Method):
    """The method's values.

    lambdas: those drawn in training, in [0, 1]. zeros: share of the images with lambda 0,
      rounded up on each device; the others draw evenly from what is not 0.
    attack: sees the network in evaluation mode, with each image's own lambda.
    dual: whether lambda 0 has norms of its own. widths: as factors, the full one last.
    mixed: no FiLM: lambda mixes the two domains' adapters, (1 - lambda, lambda), for each
      image its own. Ours; for networks without batch norm.
    film: how the network is conditioned on lambda, None where it is `mixed`.
    """

    lambdas: tuple[float, ...]
    zeros: float
    attack: Callable
    dual: bool
    widths: tuple[float, ...] = (1.0,)
    mixed: bool = False
    film: Film | None = None
    numbers = ("lambda", "width")

    def domains(self):
        """Names of the domains, in order."""
        kinds = ("clean", "robust") if self.dual or self.mixed else ("all",)
        many = len(self.widths) > 1
        return tuple(
            f"{kind}{width:g}" if many else kind for width in self.widths for kind in kinds
        )

    def knob(self, lam, width=1.0):
        """The network for one lambda and width, see `networks.Knob`."""
        if self.mixed:
            return nets.Knob(np.array([1 - lam, lam], np.float32))
        domain = self.widths.index(width) * (1 + self.dual) + (self.dual and lam > 0)
        mixture = one_hot(len(self.domains()), domain)
        return nets.Knob(np.array(mixture, np.float32), np.float32(lam))

    def loss(self, networks, axis=None):
        """The method's loss(variables, batch, key), see `oat_loss`."""
        return oat_loss(networks, self)

    def case(self, lam, width=1.0):
        """The same with its names, see `networks.Case`."""
        knob = self.knob(lam, width)
        weights = dict(zip(self.domains(), map(float, knob.mixture), strict=True))
        several = len(self.widths) > 1
        identity = nets.Identity("lambda", weights, lam, width if several else None)
        return nets.Case(identity, knob, width)

    def attacks(self):
        """The one attack."""
        return (self.attack,)

    def cases(self, weights):
        """Every lambda and width that is trained."""
        return self.cases_at({})

    def cases_at(self, numbers):
        """{"lambda": numbers, "width": numbers}, either or both, -> [Case].

        Raises UsageError for a lambda outside [0, 1] or that the encoding does not know,
        and for a width that was not trained.
        """
        lambdas = numbers.get("lambda", self.lambdas)
        widths = numbers.get("width", self.widths)
        wrong = [lam for lam in lambdas if not 0 <= lam <= 1]
        if wrong:
            raise UsageError(f"--lambda must be within 0 and 1, got {wrong}")
        need_known(lambdas, self.film, "--lambda")
        unknown = [width for width in widths if width not in self.widths]
        if unknown:
            raise UsageError(
                f"--width: {unknown} was not trained; there are: {self.widths}"
            )
        return [self.case(lam, width) for width in widths for lam in lambdas]

    def need(self, facts):
        """Images to attack, norms of its own for each domain; and no batch norm to mix."""
        zero, rest = split_rows(facts.rows, self.zeros)
        more = f"more: {len(zero)} have lambda 0, and some must be attacked"
        need_rows(self, facts, len(rest) > 0, more)
        need_apart(self, facts)
        if self.mixed and facts.statistics:
            raise UsageError("config.oat.mixed needs a network without batch norm")

    def checks(self):
        """Every lambda and width, clean and attacked, with their weights in the loss."""
        return [
            Check(check_name(lam, width, kind), share, self.case(lam, width), attacks)
            for width in self.widths
            for lam in self.lambdas
            for kind, share, attacks in (
                ("clean", 1 - lam, ()),
                ("attacked", lam, (radius.full(self.attack),)),
            )
        ]

    def describe(self):
        """What is trained, in words."""
        told = ", ".join(f"{lam:g}" for lam in self.lambdas)
        sets = "two sets of norms" if self.dual else "one set of norms"
        how = "mixing the domains' adapters" if self.mixed else f"by FiLM, {sets}"
        return [
            f"lambda of {told}, {100 * self.zeros:.0f}% are 0; {how}; attacks in eval mode "
            "(no drop path, fixed statistics) where lambda is above 0"
            + radius.describe([self.attack]),
            "widths: " + ", ".join(f"{width:g}" for width in self.widths),
        ]


def need_known(lambdas, film, where):
    """Raises UsageError for a lambda that the encoding, if there is any, has no row for."""
    if film is None or film.encoding == "none":
        return
    unknown = [lam for lam in lambdas if lam not in film.lambdas]
    if unknown:
        raise UsageError(
            f"{where}: the {film.encoding} encoding has no row for {unknown}; it has "
            f"{film.lambdas}; the encoding 'none' takes any lambda"
        )


def check_name(lam, width, kind):
    """ "lambda0.1/width0.5/clean", of a check."""
    return f"lambda{lam:g}/width{width:g}/{kind}"


def oat_loss(networks, method):
    """loss(variables, batch, key) -> (float32 [], (stats, metrics)) of OAT and OATS.

    networks: {width: Network}. The mean over images of (1 - lambda) CE(clean) + lambda
    CE(attacked), summed over the widths. As the published code does it: the clean pass
    first, in which images with lambda 0 go through their own norms; the attack, after
    that, on all others; then the attacked pass. So the norms of lambda above 0 are
    updated twice in a step, and lambda, not the kind of image, chooses the norms.
    """

    def loss(variables, batch, key):
        zero, rest = split_rows(batch["labels"].shape[0], method.zeros)
        lam = draw(method.lambdas, zero, rng.fold(key, "lambda"), batch["index"])
        total, metrics, stats = 0.0, {}, variables["stats"]
        for number, width in enumerate(method.widths):
            one = Pass(
                networks[width],
                method,
                variables | {"stats": stats},
                batch,
                lam,
                key,
                first=number * (1 + method.dual),
            )
            part, stats, found = one.run(zero, rest)
            total += part
            name = f"/{width:g}" if len(method.widths) > 1 else ""
            metrics |= {f"{metric}{name}": value for metric, value in found.items()}
        return total, (stats, {"loss": total} | metrics)

    return loss


def split_rows(count, share):
    """(rows with lambda 0, the others): numbers, fixed, spread evenly over a batch.

    ceil(count * share) rows have lambda 0. A batch that is twice as long has the same
    pattern twice if the numbers divide, so it does not matter on how many devices it is.
    """
    zeros = math.ceil(round(count * share, 6))
    rows = np.arange(count)
    hit = rows * zeros % count < zeros
    return rows[hit], rows[~hit]


def draw(lambdas, zero, key, index):
    """lambda [B]: 0 in the rows `zero`, else any of the others, by the images' numbers."""
    others = jnp.array([lam for lam in lambdas if lam > 0])
    keys = rng.by_index(key, index)
    drawn = jax.vmap(lambda one: jax.random.choice(one, others))(keys)
    return drawn.at[zero].set(0.0)


class Pass(NamedTuple):
    """The passes of one width; first: its first domain."""

    network: nets.Network
    method: OAT
    variables: dict
    batch: dict
    lam: jax.Array
    key: jax.Array
    first: int

    def run(self, zero, rest):
        """(loss [], new statistics, metrics)."""
        clean, stats = self.clean(zero, rest)
        labels, index = (self.batch[name][rest] for name in ("labels", "index"))
        seen = jax.lax.stop_gradient(self.variables | {"stats": stats})
        keys = rng.by_index(rng.fold(self.key, "attack", "start"), index)
        logits_fn = self.logits_fn(seen, rest)
        with jax.named_scope("attack"):
            images = self.batch["images"][rest]
            attack = radius.at(self.method.attack, self.batch)
            attacked = attack(logits_fn, images, labels, keys)
        logits, stats = self.forward(stats, self.method.dual, attacked, rest, "attacked")
        adversarial = losses.cross_entropy(logits, labels)
        weighted = (1 - self.lam) * losses.cross_entropy(clean, self.batch["labels"])
        total = jnp.sum(weighted) + jnp.sum(self.lam[rest] * adversarial)
        return (
            total / self.lam.shape[0],
            stats,
            {
                "accuracy/clean": accuracy(clean, self.batch["labels"]),
                "accuracy/attacked": accuracy(logits, labels),
            },
        )

    def clean(self, zero, rest):
        """(logits [B, L] of the clean images, statistics after them)."""
        images, stats = self.batch["images"], self.variables["stats"]
        if not self.method.dual:
            return self.forward(stats, 0, images, np.arange(len(images)), "clean")
        one, stats = self.forward(stats, 0, images[zero], zero, "clean")
        two, stats = self.forward(stats, 1, images[rest], rest, "clean")
        order = np.argsort(np.concatenate([zero, rest]))
        return jnp.concatenate([one, two])[order], stats

    def forward(self, stats, kind, images, rows, name):
        """(logits, statistics) of a training pass through one set of norms."""
        domain, index = self.first + kind, self.batch["index"][rows]
        key = rng.fold(self.key, "forward", name)
        variables = self.variables | {"stats": stats}
        if self.method.mixed:
            return self.by_row(variables, images, rows, key), stats
        plain = self.network.at(variables, self.knob(domain, rows))
        logits, seen = self.network.train(plain, images, key, index, False)
        return logits, written(stats, domain, seen)

    def knob(self, domain, rows):
        """One domain, and the lambdas of the rows."""
        mixture = one_hot(len(self.method.domains()), domain)
        return nets.Knob(jnp.array(mixture), self.lam[rows])

    def logits_fn(self, variables, rows):
        """What the attack sees of images with lambda above 0."""
        if self.method.mixed:
            return lambda images: self.by_row(variables, images, rows, None)
        plain = self.network.at(variables, self.knob(self.first + self.method.dual, rows))
        return lambda images: self.network.apply(plain, images)

    def by_row(self, variables, images, rows, key):
        """Logits of images [b, H, W, C], each through its own mixture."""

        def one(lam, image, number):
            plain = self.network.at(variables, nets.Knob(jnp.stack([1 - lam, lam])))
            return self.network.apply(plain, image[None], key, number[None])[0]

        return jax.vmap(one)(self.lam[rows], images, self.batch["index"][rows])


def written(stats, domain, seen):
    """The statistics with those of one domain (or its corner) replaced."""

    def write(leaf, new):
        return leaf.at[(domain, *(slice(0, side) for side in new.shape))].set(new)

    return stats | {"adapters": jax.tree.map(write, stats["adapters"], seen)}


def accuracy(logits, labels):
    """Share of right predictions, float32 []."""
    right = ~losses.misclassified(logits, labels)
    return jnp.mean(right.astype(jnp.float32))
