"""Is the knob safe? Attacks made through one network of a run, tried on its others."""

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


def make_counter(network, attack, *, seed, mesh):
    """jit: (variables, knobs [S, ...], batch) -> (int32 [S, S], int32 [S]).

    The first counts, for source s and target t, images that t has right before and after
    the attack through s; the second those that t has right after the attacks through
    every source: the worst case for someone who does not know which one is deployed.
    """

    def count(variables, knobs, batch):
        images, labels = to_float(batch["images"]), batch["labels"]
        keys = rng.by_index(rng.fold(jax.random.key(seed), "evaluation"), batch["index"])

        def attacked(knob):
            plain = network.at(variables, knob)
            logits_fn = lambda images: network.evaluate(plain, images)  # noqa: E731
            moved = attack(logits_fn, images, labels, keys)
            whole = jnp.isfinite(moved).all(axis=(1, 2, 3), keepdims=True)
            return jnp.where(whole, moved, images)  # as in `accuracy.make_predictor`

        shown = jax.vmap(attacked)(knobs)  # [S, B, H, W, C]

        def right(knob):
            plain = network.at(variables, knob)

            def one(images):
                logits = network.evaluate(plain, images)
                return ~losses.misclassified(logits, labels)

            return jax.vmap(one)(shown) & one(images) & batch["mask"]  # [S, B]

        found = jnp.swapaxes(jax.vmap(right)(knobs), 0, 1)  # [sources, targets, B]
        counts = jnp.sum(found, axis=2), jnp.sum(jnp.all(found, axis=0), axis=1)
        return jax.lax.psum(jax.tree.map(jnp.int32, counts), "data")

    local = jax.shard_map(
        count, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=False
    )
    everywhere, rows = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(
        local, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere
    )


def matrix(counter, variables, knobs, batches, *, mesh, progress):
    """(int [S, S], int [S], examples) over all batches, see `make_counter`.

    progress(examples) is called after each batch.
    """
    stacked, examples = trees.stack(knobs), 0
    pairs, worst = np.zeros((len(knobs),) * 2, int), np.zeros(len(knobs), int)
    for batch in batches:
        placed = meshes.global_batch(mesh, batch)
        one, two = jax.device_get(counter(variables, stacked, placed))
        pairs, worst = pairs + one, worst + two
        examples += int(jnp.sum(placed["mask"]))
        progress(examples)
    return pairs, worst, examples


def rows(cases, suite, pairs, worst, examples, step):
    """Tidy rows: told of the target, "through": what is told of the source, or `ANY`."""
    found = []
    for target, case in enumerate(cases):
        sources = [(one.told, pairs[s, target]) for s, one in enumerate(cases)]
        for through, correct in (*sources, (ANY, worst[target])):
            told = case.told | {"through": through}
            found.append(accuracy.row(told, suite, int(correct), examples, step))
    return found


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
