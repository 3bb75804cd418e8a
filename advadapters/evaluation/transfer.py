"""Is the knob safe? Attacks made through one network of a run, tried on its others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from advadapters import losses, rng, trees
from advadapters import mesh as meshes
from advadapters.data.augment import to_float
from advadapters.evaluation import accuracy
from advadapters.evaluation.tables import name_of
from advadapters.networks import key_of

ANY = {"kind": "any"}  # of the attacked networks


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


def make_counter(network, attack, *, seed, mesh):
    """jit: (variables, knobs [S, ...], batch) -> Counts of int32."""

    def count(variables, knobs, batch):
        images, labels = to_float(batch["images"]), batch["labels"]
        keys = rng.by_index(rng.fold(jax.random.key(seed), "evaluation"), batch["index"])

        def attacked(knob):
            plain = network.at(variables, knob)
            logits_fn = lambda images: network.evaluate(plain, images)  # noqa: E731
            moved = attack(logits_fn, images, labels, keys)
            whole = jnp.isfinite(moved).all(axis=(1, 2, 3), keepdims=True)
            # As in `accuracy.make_predictor`.
            return jnp.where(whole, moved, images), ~whole[:, 0, 0, 0]

        shown, kept = jax.vmap(attacked)(knobs)  # [S, B, H, W, C], [S, B]

        def look(knob):
            plain = network.at(variables, knob)

            def one(images):
                logits = network.evaluate(plain, images)
                right = ~losses.misclassified(logits, labels)
                return right, ~jnp.isfinite(logits).all(axis=1)

            right, lost = jax.vmap(one)(shown)
            return right & one(images)[0], lost  # [S, B]

        right, lost = (jnp.swapaxes(x, 0, 1) for x in jax.vmap(look)(knobs))
        mask = batch["mask"]  # the others have [sources, targets, B]
        counts = Counts(
            right=sums(right & mask, jnp.all),
            not_finite=sums(lost & mask, jnp.any),
            not_attacked=sums(kept & mask, jnp.any),
        )
        return jax.lax.psum(counts, "data")

    local = jax.shard_map(
        count, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=False
    )
    everywhere, rows = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(
        local, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere
    )


def sums(found, together):
    """bool [S, ..., B] -> int32 [S + 1, ...]: how many are true, at last together."""
    found = jnp.concatenate([found, together(found, axis=0, keepdims=True)])
    return jnp.sum(found, axis=-1, dtype=jnp.int32)


def matrix(counter, variables, knobs, batches, *, mesh, progress):
    """(Counts, examples) over all batches; progress(examples) is called after each."""
    stacked, examples, found = trees.stack(knobs), 0, []
    for batch in batches:
        placed = meshes.global_batch(mesh, batch)
        found.append(jax.device_get(counter(variables, stacked, placed)))
        examples += int(jnp.sum(placed["mask"]))
        progress(examples)
    return jax.tree.map(lambda *parts: np.sum(parts, axis=0), *found), examples


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
    lines = [
        f"| {suite}: attacked through | " + " | ".join(targets.values()) + " |",
        "| --- |" + " --- |" * len(targets),
    ]
    for key, through in sources.items():
        cells = [f"{values[key, target]:.1f}" for target in targets]
        name = "any" if through == ANY else name_of(through)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
