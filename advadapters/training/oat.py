"""Once-for-all adversarial training (OAT, OATS; Wang et al. 2020): one network for every
lambda, and for every width.

The network gets lambda, the weight of the adversarial loss, as an input. In training it is
drawn for each image anew. Each width has two sets of norms with their statistics, for
lambda 0 and for all others ("dual batch norm"), or one. In terms of `trees`, the norms are
adapters, and a domain is a width with one of its sets. A narrower network is the corner of
the same tree. The step over all widths is ours, because that of OATS was never published.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses, rng
from advadapters.errors import UsageError
from advadapters.models.film import Film
from advadapters.networks import Case, Identity, Knob, Network, Variables
from advadapters.shapes import (
    AnyArray,
    Float,
    Images,
    Int,
    Labels,
    Logits,
    LogitsFn,
    PerImage,
    PRNGKey,
    Scalar,
)
from advadapters.soups import one_hot
from advadapters.training import radius
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
from advadapters.training.radius import TrainingAttack
from advadapters.training.states import Tree

Rows = Int[np.ndarray, " _"]  # numbers of rows of a batch, known while tracing


@dataclasses.dataclass(frozen=True)
class OAT(Method):
    """OAT, or OATS where there are several widths.

    Attributes:
      lambdas: those that training draws from, in [0, 1].
      zeros: the share of the images that have lambda 0, rounded up on each device. The
        others draw evenly from the lambdas above 0.
      attack: sees the network in evaluation mode, with each image's own lambda.
      dual: whether lambda 0 has norms of its own.
      widths: as factors, with the full one last.
      mixed: whether there is no FiLM, and lambda mixes the adapters of two domains by
        (1 - lambda, lambda) for each image. This is ours, for networks without batch norm.
      film: how the network is conditioned on lambda, None where it is `mixed`.
    """

    lambdas: tuple[float, ...]
    zeros: float
    attack: TrainingAttack
    dual: bool
    widths: tuple[float, ...] = (1.0,)
    mixed: bool = False
    film: Film | None = None
    numbers = ("lambda", "width")

    def domains(self) -> tuple[str, ...]:
        """The names of the domains, in order."""
        kinds = ("clean", "robust") if self.dual or self.mixed else ("all",)
        several = len(self.widths) > 1
        return tuple(
            f"{kind}{width:g}" if several else kind
            for width in self.widths
            for kind in kinds
        )

    def knob(self, lam: float, width: float = 1.0) -> Knob:
        """The network for one lambda and width, see `networks.Knob`."""
        if self.mixed:
            return Knob(np.array([1 - lam, lam], np.float32))
        domain = self.widths.index(width) * (1 + self.dual) + (self.dual and lam > 0)
        mixture = one_hot(len(self.domains()), domain)
        return Knob(np.array(mixture, np.float32), np.float32(lam))

    def knob_at(self, lam: Any, width: float) -> Knob:
        """`knob` of a lambda that may be traced, []."""
        lam = jnp.asarray(lam, jnp.float32)
        if self.mixed:
            return Knob(jnp.stack([1 - lam, lam]))
        count, first = len(self.domains()), self.widths.index(width) * (1 + self.dual)
        last = first + int(self.dual)  # the same domain if there is but one
        rows = jnp.array([one_hot(count, k) for k in (first, last)], jnp.float32)
        return Knob(jnp.where(lam > 0, rows[1], rows[0]), lam)

    def loss(self, networks: Mapping[float, Network], axis: str | None = None) -> Loss:
        """Makes loss(variables, batch, key), see `oat_loss`."""
        return oat_loss(networks, self)

    def case(self, lam: float, width: float = 1.0) -> Case:
        """The network for one lambda and width with its names, see `networks.Case`."""
        knob = self.knob(lam, width)
        weights = dict(zip(self.domains(), map(float, knob.mixture), strict=True))
        several = len(self.widths) > 1
        identity = Identity("lambda", weights, lam, width if several else None)
        return Case(identity, knob, width)

    def attacks(self) -> tuple[TrainingAttack, ...]:
        """The one attack."""
        return (self.attack,)

    def cases(self, weights: Sequence[float]) -> list[Case]:
        """Every lambda and width that is trained."""
        return self.cases_at({})

    def cases_at(self, numbers: Mapping[str, Sequence[float]]) -> list[Case]:
        """The networks at the numbers of "lambda" and of "width".

        One that is left out has all its values of training.

        Raises:
          UsageError: a lambda is outside [0, 1] or unknown to the encoding, or a width was
            not trained.
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

    def need(self, facts: Facts) -> None:
        """Raises UsageError unless the run fits.

        OAT needs images to attack and norms of its own for each domain. Where it is
        `mixed`, it needs a network without batch norm.
        """
        zero, rest = split_rows(facts.rows, self.zeros)
        more = f"more: {len(zero)} have lambda 0, and some must be attacked"
        need_rows(self, facts, len(rest) > 0, more)
        need_apart(self, facts)
        if self.mixed and facts.statistics:
            raise UsageError("config.oat.mixed needs a network without batch norm")

    def checks(self) -> list[Check]:
        """Every lambda and width, clean and attacked, with their weights in the loss."""
        return [
            Check(_check_name(lam, width, kind), share, self.case(lam, width), attacks)
            for width in self.widths
            for lam in self.lambdas
            for kind, share, attacks in (
                ("clean", 1 - lam, ()),
                ("attacked", lam, (radius.full(self.attack),)),
            )
        ]

    def describe(self) -> list[str]:
        """Says what is trained, in lines for the log."""
        lambdas = ", ".join(f"{lam:g}" for lam in self.lambdas)
        sets = "two sets of norms" if self.dual else "one set of norms"
        how = "mixing the domains' adapters" if self.mixed else f"by FiLM, {sets}"
        return [
            f"lambda of {lambdas}, {100 * self.zeros:.0f}% are 0; {how}; attacks in eval "
            "mode (no drop path, fixed statistics) where lambda is above 0"
            + radius.describe([self.attack]),
            "widths: " + ", ".join(f"{width:g}" for width in self.widths),
        ]


def need_known(lambdas: Sequence[float], film: Film | None, where: str) -> None:
    """Raises UsageError for a lambda that the encoding, if there is any, has no row for.

    where: what the lambdas come from, to be said in the message.
    """
    if film is None or film.encoding == "none":
        return
    unknown = [lam for lam in lambdas if lam not in film.lambdas]
    if unknown:
        raise UsageError(
            f"{where}: the {film.encoding} encoding has no row for {unknown}; it has "
            f"{film.lambdas}; the encoding 'none' takes any lambda"
        )


def _check_name(lam: float, width: float, kind: str) -> str:
    """The name of a check, such as "lambda0.1/width0.5/clean"."""
    return f"lambda{lam:g}/width{width:g}/{kind}"


def oat_loss(networks: Mapping[float, Network], method: OAT) -> Loss:
    """Makes loss(variables, batch, key) -> (loss, (statistics, metrics)) of OAT and OATS.

    The loss is the mean over images of (1 - lambda) CE(clean) + lambda CE(attacked),
    summed over the widths. The order is that of the published code. In the clean pass,
    which is the first, images with lambda 0 go through their own norms. After it, all
    others are attacked, and the attacked pass follows. So the norms of lambda above 0 are
    updated twice in a step, and lambda chooses the norms, not the kind of image.

    Args:
      networks: the network of each width.
      method: the values of the method.
    """

    def loss(variables: Variables, batch: Batch, key: PRNGKey) -> Outcome:
        zero, rest = split_rows(batch["labels"].shape[0], method.zeros)
        lam = draw(method.lambdas, zero, rng.fold(key, "lambda"), batch["index"])
        total, metrics, stats = jnp.zeros(()), {}, variables["stats"]
        for number, width in enumerate(method.widths):
            passes = Passes(
                networks[width],
                method,
                {**variables, "stats": stats},
                batch,
                lam,
                key,
                first=number * (1 + method.dual),
            )
            part, stats, measured = passes.run(zero, rest)
            total += part
            name = f"/{width:g}" if len(method.widths) > 1 else ""
            metrics |= {f"{metric}{name}": value for metric, value in measured.items()}
        return total, (stats, {"loss": total} | metrics)

    return loss


def split_rows(count: int, share: float) -> tuple[Rows, Rows]:
    """The numbers of the rows with lambda 0, and those of the others.

    They are fixed and spread evenly over a batch of `count` rows, of which
    ceil(count * share) have lambda 0. A batch that is twice as long has the same pattern
    twice if the numbers divide, so it does not matter on how many devices it is.

    >>> oat.split_rows(6, 0.5)
    (array([0, 2, 4]), array([1, 3, 5]))
    """
    zeros = math.ceil(round(count * share, 6))
    rows = np.arange(count)
    zero = rows * zeros % count < zeros
    return rows[zero], rows[~zero]


def draw(
    lambdas: Sequence[float], zero: Rows, key: PRNGKey, index: Int[AnyArray, " B"]
) -> PerImage:
    """Draws lambda [B] by the numbers of the images.

    Args:
      lambdas: the values; those above 0 are equally likely.
      zero: the rows that get 0.
      key: of this step.
      index: the numbers of the images.
    """
    others = jnp.array([lam for lam in lambdas if lam > 0])
    keys = rng.by_index(key, index)
    drawn = jax.vmap(lambda key: jax.random.choice(key, others))(keys)
    return drawn.at[zero].set(0.0)


class Passes(NamedTuple):
    """The forward passes of one width through a batch.

    Attributes:
      network: that of the width.
      method: the values of the method.
      variables: what is trained, see `states.branches`.
      batch: all its rows.
      lam: lambda [B] of each row.
      key: of this step.
      first: the number of the width's first domain.
    """

    network: Network
    method: OAT
    variables: Tree
    batch: Batch
    lam: PerImage
    key: PRNGKey
    first: int

    def run(self, zero: Rows, rest: Rows) -> tuple[Scalar, Tree, Metrics]:
        """(the loss, the statistics after it, metrics) of one width.

        Args:
          zero: the rows with lambda 0.
          rest: the other rows.
        """
        clean, stats = self.forward_clean(zero, rest)
        labels, index = (self.batch[name][rest] for name in ("labels", "index"))
        variables = jax.lax.stop_gradient(self.variables | {"stats": stats})
        keys = rng.by_index(rng.fold(self.key, "attack", "start"), index)
        logits_fn = self.logits_fn(variables, rest)
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

    def forward_clean(self, zero: Rows, rest: Rows) -> tuple[Logits, Tree]:
        """(logits [B, L] of the clean images, the statistics after them)."""
        images, stats = self.batch["images"], self.variables["stats"]
        if not self.method.dual:
            return self.forward(stats, 0, images, np.arange(len(images)), "clean")
        zero_logits, stats = self.forward(stats, 0, images[zero], zero, "clean")
        rest_logits, stats = self.forward(stats, 1, images[rest], rest, "clean")
        order = np.argsort(np.concatenate([zero, rest]))
        return jnp.concatenate([zero_logits, rest_logits])[order], stats

    def forward(
        self, stats: Tree, kind: int, images: Images, rows: Rows, name: str
    ) -> tuple[Logits, Tree]:
        """(logits, new statistics) of a training pass through one set of norms.

        Args:
          stats: the statistics before it.
          kind: 1 for the second set of norms, which lambda above 0 has, else 0.
          images: those of the rows.
          rows: their numbers in the batch.
          name: by which the pass draws its random numbers.
        """
        domain, index = self.first + kind, self.batch["index"][rows]
        key = rng.fold(self.key, "forward", name)
        variables = self.variables | {"stats": stats}
        if self.method.mixed:
            return self._mix_by_row(variables, images, rows, key), stats
        plain = self.network.at(variables, self.knob(domain, rows))
        logits, updates = self.network.train(plain, images, key, index, False)
        return logits, write_statistics(stats, domain, updates)

    def knob(self, domain: int, rows: Rows) -> Knob:
        """The network of one domain, with the lambdas of the rows."""
        mixture = one_hot(len(self.method.domains()), domain)
        return Knob(jnp.array(mixture), self.lam[rows])

    def logits_fn(self, variables: Tree, rows: Rows) -> LogitsFn:
        """The network that attacks on the rows, whose lambda is above 0, see."""
        if self.method.mixed:
            return lambda images: self._mix_by_row(variables, images, rows, None)
        plain = self.network.at(variables, self.knob(self.first + self.method.dual, rows))
        return lambda images: self.network.apply(plain, images)

    def _mix_by_row(
        self, variables: Tree, images: Images, rows: Rows, key: PRNGKey | None
    ) -> Logits:
        """Logits of the rows' images, each through its own mixture of the adapters."""

        def logits_of(
            lam: Scalar, image: Float[AnyArray, "H W C"], number: Int[AnyArray, ""]
        ) -> Float[AnyArray, " L"]:
            plain = self.network.at(variables, Knob(jnp.stack([1 - lam, lam])))
            return self.network.apply(plain, image[None], key, number[None])[0]

        return jax.vmap(logits_of)(self.lam[rows], images, self.batch["index"][rows])


def write_statistics(stats: Tree, domain: int, updates: Mapping[str, Any]) -> Tree:
    """The statistics with those of one domain, or of its corner, replaced by updates."""

    def write(leaf: Float[jax.Array, "K ..."], new: Float[AnyArray, "..."]) -> AnyArray:
        return leaf.at[(domain, *(slice(0, side) for side in new.shape))].set(new)

    return stats | {"adapters": jax.tree.map(write, stats["adapters"], updates)}


def accuracy(logits: Logits, labels: Labels) -> Scalar:
    """The share of right predictions, float32 []."""
    right = ~losses.misclassified(logits, labels)
    return jnp.mean(right.astype(jnp.float32))
