"""What many mixtures say of a split at once, and how often they are right."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from advadapters import meshes, rng, trees
from advadapters.evaluation import fitting, passes
from advadapters.networks import Knob, Network
from advadapters.pixels import to_float
from advadapters.shapes import AnyArray, Bool, Float, Images, Int, Logits

NO_CLASS = -1  # the logits are not finite: not right, whatever the label
WRONG = -2  # of a union: some other class
NO_IMAGE = -3  # the attack's image is not finite: right, as the clean image is


class Table(NamedTuple):
    """What S networks say of N images: all that is said of them is read from it.

    predictions: whole numbers [S, N], classes, or NO_CLASS, WRONG, NO_IMAGE. Under an
    attack it is the class of the attacked image, or that of the clean one where it was
    wrong already.
    labels: [N], or [N, M] where any of several is right. index: [N], the
    images' numbers in their split.
    """

    predictions: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    @property
    def right(self) -> Bool[np.ndarray, "S N"]:
        """bool [S, N]."""
        labels = self.labels if self.labels.ndim > 1 else self.labels[:, None]
        named = np.any(self.predictions[:, :, None] == labels, axis=-1)
        return named | (self.predictions == NO_IMAGE)

    @property
    def share(self) -> Bool[np.ndarray, "S N"]:
        """The same, as of a `means.Mean` that has several forms of each image."""
        return self.right

    @property
    def not_finite(self) -> Int[np.ndarray, " S"]:
        """int [S]: on how many images the logits are not finite."""
        return (self.predictions == NO_CLASS).sum(axis=1)

    @property
    def not_attacked(self) -> Int[np.ndarray, " S"]:
        """int [S]: for how many images the attack gave back one that is not finite."""
        return (self.predictions == NO_IMAGE).sum(axis=1)


def grouped(
    logits: Logits, groups: Int[np.ndarray, " L"], combine: str
) -> Float[AnyArray, "B G"]:
    """Logits [B, L] of classes -> log-probabilities [B, G] of the groups they count as.

    groups: int [L], -1 for classes that are left out; a group without members is never
    predicted. combine: "mean" of its members' probabilities (Geirhos et al. 2019), "sum"
    or "max" of them.
    """
    members = np.arange(groups.max() + 1)[:, None] == groups  # [G, L]
    log_p = jnp.where(members, jax.nn.log_softmax(logits)[:, None, :], -jnp.inf)
    if combine == "max":
        return log_p.max(axis=-1)
    total = jax.nn.logsumexp(log_p, axis=-1)
    count = np.maximum(members.sum(axis=1), 1)
    return total - np.log(count) if combine == "mean" else total


def make_predictor(
    network: Network,
    attack: Callable | None,
    *,
    mesh: Mesh,
    groups: Int[np.ndarray, " L"] | None = None,
    combine: str = "mean",
) -> Callable[..., Any]:
    """jit: (variables, knobs [S, ...], batch) -> predictions int32 [S, B], see `Table`.

    Each soup is attacked through itself. An attack that gives back an image that is not
    finite has found nothing, the clean image counts. Random numbers depend on the batch's
    seed and the number of the image, not on other rows or devices. groups, combine:
    predictions are of groups of classes, see `grouped`.
    """

    def predict(variables: Any, knobs: Knob, batch: dict) -> Int[AnyArray, "S B"]:
        images, labels = to_float(batch["images"]), batch["labels"]
        keys = rng.by_image(batch, "evaluation")

        def ask(knob: Knob) -> Int[AnyArray, " B"]:
            plain = network.at(variables, knob)

            def classes(images: Images) -> Int[AnyArray, " B"]:
                logits = network.evaluate(plain, images)
                finite = jnp.all(jnp.isfinite(logits), axis=-1)
                if groups is not None:
                    logits = grouped(logits, groups, combine)
                return jnp.where(finite, jnp.argmax(logits, axis=-1), NO_CLASS)

            natural = classes(images)
            if attack is None:
                return natural
            logits_fn = lambda images: network.evaluate(plain, images)  # noqa: E731
            moved = attack(logits_fn, images, labels, keys)
            whole = jnp.all(jnp.isfinite(moved), axis=(1, 2, 3))
            attacked = jnp.where(whole, classes(moved), NO_IMAGE)
            return jnp.where(natural == labels, attacked, natural)

        return trees.each(ask, knobs).astype(jnp.int32)

    # By hand, for the reason given in training.step: every device has its own rows.
    local = jax.shard_map(
        predict,
        mesh=mesh,
        in_specs=(P(), P(), P("data")),
        out_specs=P(None, "data"),
        check_vma=False,
    )
    everywhere, rows = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(local, in_shardings=(everywhere, everywhere, rows))


class Asked(NamedTuple):
    """What is asked of every batch: the classes that some networks see under one attack.

    knobs: [S `networks.Knob`], all of one network, their leaves arrays. program: the
    `fitting.Program` of its predictor. move: batch on the devices -> batch, before.
    """

    knobs: list
    program: fitting.Program
    move: Callable[[Any], Any] = lambda batch: batch


def tables(
    asked: Sequence[Asked],
    variables: Any,
    batches: Iterable[dict[str, Any]],
    *,
    mesh: Mesh,
    size: int,
    progress: Callable[[float], object],
) -> list[Table]:
    """[Table] of all that is asked, in one pass over a split.

    asked: [Asked], their programs of the same number of rows. batches: this process's rows
    of evaluation batches; each is put on the devices once, in parts of as many rows, for
    all networks and attacks. size: examples in the split. progress(share of the work) is
    called after each call.
    """
    fitting.need_room([question.program for question in asked])
    groups = [grouped_knobs(question.knobs, question.program.soups) for question in asked]
    answers = [[[] for _ in of_question] for of_question in groups]
    costs = [max(question.program.flops, 1.0) for question in asked]
    rows, parts = asked[0].program.rows, []
    work = sum(cost * len(group) for cost, group in zip(costs, groups, strict=True))
    queue = passes.Queue(work * size / (rows * mesh.size), progress)
    for batch in passes.placed(batches, rows, mesh=mesh, parts=parts):
        for question, cost, *both in zip(asked, costs, groups, answers, strict=True):
            moved = question.move(batch)
            for group, column in zip(*both, strict=True):
                queue.put(question.program.call(variables, group, moved), column, cost)
    queue.settle()
    order, labels, index = passes.in_order(parts)
    predictions = [
        np.concatenate([np.concatenate(column, axis=1)[:, order] for column in columns])
        for columns in answers
    ]
    return [
        Table(classes[: len(question.knobs)], labels, index)
        for question, classes in zip(asked, predictions, strict=True)
    ]


def grouped_knobs(knobs: list[Knob], count: int) -> list[Knob]:
    """[Knob of [count, ...]]: all of them, the last one repeated to fill the last group."""
    groups = [knobs[i : i + count] for i in range(0, len(knobs), count)]
    return [fitting.stack(group + group[-1:] * (count - len(group))) for group in groups]


def union(tables: Sequence[Table]) -> Table:
    """The Table of the worst of several attacks: right is who is right under all."""
    first = tables[0]
    right = np.all([table.right for table in tables], axis=0)
    return first._replace(predictions=np.where(right, first.labels, WRONG))


def strange(table: Table, names: Sequence[str], suite: str) -> list[str]:
    """Lines that warn of what is counted by rule in a Table of networks of these names."""
    counts = zip(names, table.not_finite, table.not_attacked, strict=True)
    size = len(table.index)
    return [
        line
        for name, lost, kept in counts
        for line in warn(name, suite, int(lost), int(kept), size)
    ]


def warn(name: str, suite: str, lost: int, kept: int, size: int) -> list[str]:
    """The lines of `strange` about one network, or one pair of them."""
    lines = []
    if lost:
        lines.append(
            f"warning: {name}, {suite}: the logits are not finite on {lost} of {size} "
            "images, which count as wrong: look for an overflow, or a division by "
            "zero, in the network"
        )
    if kept:
        lines.append(
            f"warning: {name}, {suite}: the attack returned images that are not finite "
            f"for {kept} of {size} images, which count as not attacked: the accuracy "
            "is too high by up to as many"
        )
    return lines
