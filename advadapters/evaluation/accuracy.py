"""Clean and robust accuracy of many mixtures at once, counted exactly."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from advadapters import mesh as meshes
from advadapters import rng, trees
from advadapters.data.augment import to_float
from advadapters.intervals import wilson


def make_counter(network, attack, *, seed, mesh):
    """jit: (variables, knobs [S, ...], batch) -> correct predictions int32 [S].

    Each soup is attacked through itself. With an attack, an image counts only if
    the network is right before and after it; logits that are not finite are wrong.
    Random numbers depend on the seed and the number of the image, not on batches or
    devices.
    """

    def count(variables, knobs, batch):
        images, labels = to_float(batch["images"]), batch["labels"]
        keys = rng.by_index(rng.fold(jax.random.key(seed), "evaluation"), batch["index"])

        def one(knob):
            plain = network.at(variables, knob)

            def right(images):
                logits = network.evaluate(plain, images)
                finite = jnp.all(jnp.isfinite(logits), axis=-1)
                return finite & (jnp.argmax(logits, axis=-1) == labels)

            correct = right(images) & batch["mask"]
            if attack is not None:
                logits_fn = lambda images: network.evaluate(plain, images)  # noqa: E731
                correct &= right(attack(logits_fn, images, labels, keys))
            return jnp.sum(correct.astype(jnp.int32))

        return jax.lax.psum(jax.vmap(one)(knobs), "data")

    # By hand, for the reason given in training.step: every device counts its own rows.
    local = jax.shard_map(
        count, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=False
    )
    everywhere, rows = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(
        local, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere
    )


def accuracies(counter, variables, knobs, batches, *, mesh, at_once, progress):
    """(correct int [S], examples int): the whole split, about `at_once` soups a call.

    knobs: a list of S `networks.Knob`, all of one network, their leaves arrays.
    batches: makes an iterator over evaluation batches; it is called once for each
    group of soups. progress(done, total) is called after each batch.
    """
    # Even groups, so that little is computed for nothing in the last.
    at_once = math.ceil(len(knobs) / math.ceil(len(knobs) / at_once))
    groups = [knobs[i : i + at_once] for i in range(0, len(knobs), at_once)]
    correct, examples = [], 0
    for number, group in enumerate(groups):
        padded = list(group) + [group[-1]] * (at_once - len(group))
        counts, examples = np.zeros(len(padded), np.int64), 0
        for batch in batches():
            placed = meshes.global_batch(mesh, batch)
            found = counter(variables, trees.stack(padded), placed)
            counts += jax.device_get(found)
            examples += int(jnp.sum(placed["mask"]))
            progress(number, len(groups), examples)
        correct.extend(counts[: len(group)].tolist())
    return correct, examples


def row(told, suite, correct, examples, step):
    """One row of results.json; told: the names of the network, see `networks.Case`."""
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
    }
