"""Batch statistics estimated anew: those of a soup are not the soup of its ingredients'."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from advadapters import meshes
from advadapters.evaluation import passes
from advadapters.models.layers import MOMENTUM
from advadapters.networks import Knob, Network
from advadapters.pixels import to_float
from advadapters.shapes import Images


def make_estimate(network: Network, mesh: Mesh) -> Callable[..., Any]:
    """jit: (variables, knob, batch of uint8 images) -> the batch statistics of these
    images alone.
    """

    def local(variables: Any, knob: Knob, batch: dict) -> Any:
        plain = network.at(variables, knob)
        empty = jax.tree.map(lambda leaf: 0 * leaf, plain["batch_stats"])

        def observe(images: Images) -> Any:
            key, index = jax.random.key(0), batch["index"]
            return network.observe(plain | {"batch_stats": empty}, images, key, index)

        moved = jax.vmap(observe, axis_name="views")(to_float(batch["images"])[None])
        return jax.tree.map(lambda leaf: leaf[0] / (1 - MOMENTUM), moved)

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=False
    )
    return jax.jit(mapped, out_shardings=meshes.replicated(mesh))


def means(
    asked: Sequence[tuple[Callable[..., Any], Knob]],
    variables: Any,
    batches: Iterable[dict],
    mesh: Mesh,
) -> list[Any]:
    """[mean batch statistics over batches, as numpy] (Izmailov et al. 2018).

    asked: [(`make_estimate` of a network, knob)]; all in one pass.
    """
    columns, queue = [[] for _ in asked], passes.Queue()
    for batch in batches:
        placed = meshes.global_batch(mesh, batch)
        for (estimate, knob), column in zip(asked, columns, strict=True):
            queue.put(estimate(variables, knob, placed), column)
    queue.settle()
    return [
        jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *column) for column in columns
    ]
