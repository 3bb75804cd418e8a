"""What many mixtures say of a split at once, and how often they are right."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from advadapters import meshes, rng, trees
from advadapters.evaluation import fitting, passes
from advadapters.intervals import wilson
from advadapters.pixels import to_float

NO_CLASS = -1  # the logits are not finite: not right, whatever the label
WRONG = -2  # of a union: some other class
NO_IMAGE = -3  # the attack's image is not finite: right, as the clean image is


class Table(NamedTuple):
    """What S networks say of N images: everything that is told of them is read from it.

    predictions: int32 [S, N], classes, or NO_CLASS, WRONG, NO_IMAGE. Under an attack it is
    the class of the attacked image, or that of the clean one where it was wrong already.
    labels: int32 [N], or [N, M] where any of several is right. index: int32 [N], the
    images' numbers in their split.
    """

    predictions: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    @property
    def right(self):
        """bool [S, N]."""
        labels = self.labels if self.labels.ndim > 1 else self.labels[:, None]
        said = np.any(self.predictions[:, :, None] == labels, axis=-1)
        return said | (self.predictions == NO_IMAGE)

    @property
    def not_finite(self):
        """int [S]: on how many images the logits are not finite."""
        return (self.predictions == NO_CLASS).sum(axis=1)

    @property
    def not_attacked(self):
        """int [S]: for how many images the attack gave back one that is not finite."""
        return (self.predictions == NO_IMAGE).sum(axis=1)


def grouped(logits, groups, combine):
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


def make_predictor(network, attack, *, mesh, groups=None, combine="mean"):
    """jit: (variables, knobs [S, ...], batch) -> predictions int32 [S, B], see `Table`.

    Each soup is attacked through itself. An attack that gives back an image that is not
    finite has found nothing, the clean image counts. Random numbers depend on the batch's
    seed and the number of the image, not on other rows or devices. groups, combine:
    predictions are of groups of classes, see `grouped`.
    """

    def predict(variables, knobs, batch):
        images, labels = to_float(batch["images"]), batch["labels"]
        keys = rng.by_image(batch, "evaluation")

        def one(knob):
            plain = network.at(variables, knob)

            def classes(images):
                logits = network.evaluate(plain, images)
                finite = jnp.all(jnp.isfinite(logits), axis=-1)
                if groups is not None:
                    logits = grouped(logits, groups, combine)
                return jnp.where(finite, jnp.argmax(logits, axis=-1), NO_CLASS)

            found = classes(images)
            if attack is None:
                return found
            logits_fn = lambda images: network.evaluate(plain, images)  # noqa: E731
            moved = attack(logits_fn, images, labels, keys)
            whole = jnp.all(jnp.isfinite(moved), axis=(1, 2, 3))
            said = jnp.where(whole, classes(moved), NO_IMAGE)
            return jnp.where(found == labels, said, found)

        return trees.each(one, knobs).astype(jnp.int32)

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


def tables(asked, variables, batches, *, mesh, size, progress):
    """[Table] of all that is asked, in one pass over a split.

    asked: [Asked], their programs of the same number of rows. batches: this process's rows
    of evaluation batches; each is put on the devices once, in parts of as many rows, for
    all networks and attacks. size: examples in the split. progress(share of the work) is
    called after each call.
    """
    fitting.need_room([one.program for one in asked])
    groups = [grouped_knobs(one.knobs, one.program.soups) for one in asked]
    found = [[[] for _ in one] for one in groups]
    costs = [max(one.program.flops, 1.0) for one in asked]
    rows, told = asked[0].program.rows, []
    work = sum(cost * len(group) for cost, group in zip(costs, groups, strict=True))
    queue = passes.Queue(work * size / (rows * mesh.size), progress)
    for batch in passes.placed(batches, rows, mesh=mesh, told=told):
        for one, cost, *both in zip(asked, costs, groups, found, strict=True):
            seen = one.move(batch)
            for group, column in zip(*both, strict=True):
                queue.put(one.program.call(variables, group, seen), column, cost)
    queue.settle()
    order, labels, index = passes.in_order(told)
    rows = [
        np.concatenate([np.concatenate(column, axis=1)[:, order] for column in columns])
        for columns in found
    ]
    return [
        Table(said[: len(one.knobs)], labels, index)
        for one, said in zip(asked, rows, strict=True)
    ]


def grouped_knobs(knobs, count):
    """[Knob of [count, ...]]: all of them, the last one repeated to fill the last group."""
    groups = [knobs[i : i + count] for i in range(0, len(knobs), count)]
    return [fitting.stack(one + one[-1:] * (count - len(one))) for one in groups]


def union(tables):
    """The Table of the worst of several attacks: right is who is right under all."""
    first = tables[0]
    right = np.all([one.right for one in tables], axis=0)
    return first._replace(predictions=np.where(right, first.labels, WRONG))


def strange(table, names, suite):
    """Lines that warn of what is counted by rule in a Table of networks of these names."""
    counts = zip(names, table.not_finite, table.not_attacked, strict=True)
    size = len(table.index)
    return [
        line for name, lost, kept in counts for line in warn(name, suite, lost, kept, size)
    ]


def warn(name, suite, lost, kept, size):
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


def row(told, suite, correct, examples, step, not_finite=0, not_attacked=0):
    """One row of results.json; told: the names of the network, see `networks.Case`.

    not_finite, not_attacked: counts of `Table`.
    """
    low, high = wilson(correct, examples)
    return told | {
        "suite": suite,
        "metric": "accuracy" if suite == "clean" else "robust_accuracy",
        "value": correct / examples if examples else 0.0,
        "low": low,
        "high": high,
        "correct": correct,
        "n": examples,
        "step": step,
        "not_finite": int(not_finite),
        "not_attacked": int(not_attacked),
    }
