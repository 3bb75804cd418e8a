"""Is the knob safe? Attacks made through one network of a run, tried on its others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from advadapters import losses, meshes, rng, trees
from advadapters.evaluation import accuracy, fitting, passes
from advadapters.evaluation.tables import name_of
from advadapters.markdown import markdown_table
from advadapters.networks import key_of
from advadapters.pixels import to_float

ANY = {"kind": "any"}  # of the attacked networks


scaled = jax.jit(to_float)  # compiled whole, as it is in predictors


class Counts(NamedTuple):
    """Numbers of images, by sources and targets; the last row is of all sources together.

    right: [S + 1, S], that t has right before and after the attack through s, and after
    every attack: the worst case for someone who does not know which one is deployed.
    not_finite: [S + 1, S], where the logits of t are not finite then, which is not right.
    not_attacked: [S + 1], where the attack through s gave back what is not finite: then
    the clean image counts.
    """

    right: Any
    not_finite: Any
    not_attacked: Any


def make_attacker(network, attack, *, mesh):
    """jit: (variables, knobs [1, ...], batch) -> (images [B, H, W, C], kept bool [B]).

    Attacks through one network. kept: where the attack gave back what is not finite; then
    the image is the clean one, as in `accuracy.make_predictor`.
    """

    def attacked(variables, knobs, batch):
        images, labels = to_float(batch["images"]), batch["labels"]
        keys = rng.by_image(batch, "evaluation")
        plain = network.at(variables, jax.tree.map(lambda leaf: leaf[0], knobs))
        logits_fn = lambda images: network.evaluate(plain, images)  # noqa: E731
        moved = attack(logits_fn, images, labels, keys)
        whole = jnp.isfinite(moved).all(axis=(1, 2, 3), keepdims=True)
        return jnp.where(whole, moved, images), ~whole[:, 0, 0, 0]

    return over_rows(attacked, mesh, P("data"))


def make_judge(network, *, mesh):
    """jit: (variables, knobs [S, ...], batch) -> (right, lost), both bool [S, B].

    batch: {"images" in [0, 1], "labels"}. lost: where the logits are not finite.
    """

    def judge(variables, knobs, batch):
        images, labels = batch["images"], batch["labels"]

        def one(knob):
            logits = network.evaluate(network.at(variables, knob), images)
            right = ~losses.misclassified(logits, labels)
            return right, ~jnp.isfinite(logits).all(axis=1)

        return trees.each(one, knobs)

    return over_rows(judge, mesh, P(None, "data"))


def over_rows(function, mesh, out):
    """jit of a function (variables, knobs, batch), each device on its own rows."""
    local = jax.shard_map(
        function, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=out, check_vma=False
    )
    everywhere, rows = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(local, in_shardings=(everywhere, everywhere, rows))


def matrices(attackers, judge, variables, knobs, batches, *, mesh, size, progress):
    """([Counts] of each attacker, examples), in one pass over a split.

    attackers: [`fitting.Program` of `make_attacker`], of one network at once; judge: that
    of `make_judge`, of as many rows. The others as in `accuracy.tables`.
    """
    fitting.need_room([*attackers, judge])
    count, rows, told = len(knobs), judge.rows, []
    sources = accuracy.grouped_knobs(knobs, 1)
    targets = accuracy.grouped_knobs(knobs, judge.soups)
    clean = [[] for _ in targets]
    kept = [[[] for _ in sources] for _ in attackers]
    found = [[[[] for _ in targets] for _ in sources] for _ in attackers]
    looks = len(targets) * judge.flops
    work = sum(count * (one.flops + looks) for one in attackers) + looks
    queue = passes.Queue(max(work, 1.0) * size / (rows * mesh.size), progress)

    def look(images, labels, columns):
        for group, column in zip(targets, columns, strict=True):
            seen = judge.call(variables, group, {"images": images, "labels": labels})
            queue.put(seen, column, judge.flops)

    for batch in passes.placed(batches, rows, mesh=mesh, told=told):
        labels = batch["labels"]
        look(scaled(batch["images"]), labels, clean)
        for one, *columns in zip(attackers, kept, found, strict=True):
            for source, column, seen in zip(sources, *columns, strict=True):
                moved, same = one.call(variables, source, batch)
                queue.put(same, column, one.flops)
                look(moved, labels, seen)
    queue.settle()
    order, _, index = passes.in_order(told)

    def whole(columns):
        """(right, lost) of all targets, bool [S, N]."""
        groups = [map(np.hstack, zip(*column, strict=True)) for column in columns]
        return (np.vstack(part)[:count, order] for part in zip(*groups, strict=True))

    natural, _ = whole(clean)
    counts = []
    for same, seen in zip(kept, found, strict=True):
        right, lost = map(np.stack, zip(*map(whole, seen), strict=True))  # [S, S, N]
        same = np.stack([np.concatenate(column)[order] for column in same])
        counts.append(
            Counts(sums(right & natural, np.all), sums(lost, np.any), sums(same, np.any))
        )
    return counts, len(index)


def sums(found, together):
    """bool [S, ..., N] -> int [S + 1, ...]: how many are true, at last together."""
    return np.concatenate([found, together(found, axis=0, keepdims=True)]).sum(axis=-1)


def rows(cases, suite, counts, examples, step):
    """Tidy rows: told of the target, "through": what is told of the source, or `ANY`."""
    found = []
    for target, case in enumerate(cases):
        for source, through in enumerate([*(one.told for one in cases), ANY]):
            told = case.told | {"through": through}
            right, lost = (int(n[source, target]) for n in counts[:2])
            kept = int(counts.not_attacked[source])
            found.append(accuracy.row(told, suite, right, examples, step, lost, kept))
    return found


def strange(found):
    """Lines that warn of what is counted by rule in rows of `rows`, of all together."""
    return [
        line
        for row in found
        if row["through"] == ANY
        for line in accuracy.warn(
            name_of(row), row["suite"], row["not_finite"], row["not_attacked"], row["n"]
        )
    ]


def markdown(found, suite):
    """A table: a line per attacked network, a column per network that it is tried on."""
    same = [row for row in found if row["suite"] == suite]
    targets = {key_of(row): name_of(row) for row in same}
    sources = {key_of(row["through"]): row["through"] for row in same}
    values = {(key_of(row["through"]), key_of(row)): 100 * row["value"] for row in same}
    lines = []
    for key, through in sources.items():
        cells = [f"{values[key, target]:.1f}" for target in targets]
        name = "any" if through == ANY else name_of(through)
        lines.append([name, *cells])
    return markdown_table([f"{suite}: attacked through", *targets.values()], lines)
