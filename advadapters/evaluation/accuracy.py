"""Clean and robust accuracy of many mixtures at once, counted exactly."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from advadapters import mesh as meshes
from advadapters import rng, trees
from advadapters.data.augment import to_float
from advadapters.intervals import wilson


def make_counter(apply, attack, *, seed, mesh):
    """jit: (variables, mixtures [S, K], batch) -> correct predictions int32 [S].

    Each soup is attacked through itself. With an attack, an image counts only if
    the network is right before and after it; logits that are not finite are wrong.
    Random numbers depend on the seed and the number of the image, not on batches or
    devices.
    """

    def count(variables, mixtures, batch):
        images, labels = to_float(batch["images"]), batch["labels"]
        keys = rng.by_index(rng.fold(jax.random.key(seed), "evaluation"), batch["index"])

        def one(mixture):
            plain = trees.plain(variables, mixture)

            def right(images):
                logits = apply(plain, images)
                finite = jnp.all(jnp.isfinite(logits), axis=-1)
                return finite & (jnp.argmax(logits, axis=-1) == labels)

            correct = right(images) & batch["mask"]
            if attack is not None:
                logits_fn = lambda images: apply(plain, images)  # noqa: E731
                correct &= right(attack(logits_fn, images, labels, keys))
            return jnp.sum(correct.astype(jnp.int32))

        return jax.lax.psum(jax.vmap(one)(mixtures), "data")

    # By hand, for the reason given in training.step: every device counts its own rows.
    local = jax.shard_map(
        count, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=False
    )
    everywhere, rows = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(
        local, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere
    )


def accuracies(counter, variables, mixtures, batches, *, mesh, at_once, progress):
    """(correct int [S], examples int): the whole split, `at_once` soups a call.

    batches: makes an iterator over evaluation batches; it is called once for each
    group of soups. progress(done, total) is called after each batch.
    """
    groups = [mixtures[i : i + at_once] for i in range(0, len(mixtures), at_once)]
    correct, examples = [], 0
    for number, group in enumerate(groups):
        padded = list(group) + [group[-1]] * (at_once - len(group))
        counts, examples = np.zeros(len(padded), np.int64), 0
        for batch in batches():
            placed = meshes.global_batch(mesh, batch)
            found = counter(variables, jnp.array(padded, jnp.float32), placed)
            counts += jax.device_get(found)
            examples += int(jnp.sum(placed["mask"]))
            progress(number, len(groups), examples)
        correct.extend(counts[: len(group)].tolist())
    return correct, examples


def row(mixture, suite, correct, examples, step):
    """One row of results.json."""
    low, high = wilson(correct, examples)
    return {
        "mixture": mixture,
        "suite": suite,
        "metric": "accuracy" if suite == "clean" else "robust_accuracy",
        "value": correct / examples if examples else 0.0,
        "low": low,
        "high": high,
        "correct": correct,
        "n": examples,
        "step": step,
    }
