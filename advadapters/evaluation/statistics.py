"""Batch statistics estimated anew: those of a soup are not the soup of its ingredients'."""

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from advadapters import mesh as meshes
from advadapters.data.augment import to_float
from advadapters.models.layers import MOMENTUM


def make_estimate(network, mesh):
    """jit: (plain, batch of uint8 images) -> the batch statistics of these images alone."""

    def local(plain, batch):
        empty = jax.tree.map(lambda leaf: 0 * leaf, plain["batch_stats"])

        def one(images):
            key, index = jax.random.key(0), batch["index"]
            return network.observe(plain | {"batch_stats": empty}, images, key, index)

        moved = jax.vmap(one, axis_name="views")(to_float(batch["images"])[None])
        return jax.tree.map(lambda leaf: leaf[0] / (1 - MOMENTUM), moved)

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False
    )
    return jax.jit(mapped, out_shardings=meshes.replicated(mesh))


def mean(estimate, plain, batches, mesh):
    """The mean batch statistics over batches (Izmailov et al. 2018), as numpy."""
    found = [
        jax.device_get(estimate(plain, meshes.global_batch(mesh, batch)))
        for batch in batches
    ]
    return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *found)
