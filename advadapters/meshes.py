"""Device meshes, and where arrays are placed on them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from advadapters.shapes import AnyArray, PyTree, Shaped

SHARDINGS = ("replicated", "fsdp")


def make(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the one axis "data" over these devices, by default over all."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def platform(mesh: Mesh) -> str:
    """What programs for the mesh are compiled for.

    The devices need not be there: those of a described topology will do.

    Returns:
      "cpu", "tpu", "cuda", "rocm", or "old cuda" for NVIDIA's GPUs before Ampere
      (compute capability 8.0).
    """
    device = mesh.devices.flat[0]
    if device.platform not in ("gpu", "cuda"):
        return device.platform
    if "rocm" in device.client.platform_version:
        return "rocm"
    return "cuda" if float(device.compute_capability) >= 8 else "old cuda"


def replicated(mesh: Mesh) -> NamedSharding:
    """The placement of parameters: one copy on every device."""
    return NamedSharding(mesh, P())


def places(mesh: Mesh, tree: PyTree, sharding: str) -> Any:
    """The placement of every leaf of a tree.

    Args:
      mesh: the devices.
      tree: arrays, or their shapes.
      sharding: "replicated" for one copy on every device, "fsdp" to `split` each leaf
        over the devices.

    Returns:
      A NamedSharding for each leaf.
    """
    spec_of = {"replicated": lambda shape, count: P(), "fsdp": split}[sharding]
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec_of(leaf.shape, mesh.size)), tree
    )


def split(shape: tuple[int, ...], count: int) -> P:
    """P along the largest axis that `count` devices divide (the first of equals).

    It is P() where there is no such axis, because then the leaf is small.
    """
    sides = [0 if side % count else side for side in shape]
    return P(*[None] * sides.index(max(sides)), "data") if any(sides) else P()


def batched(mesh: Mesh) -> NamedSharding:
    """The placement of a batch [B, ...]: its rows are split over the devices."""
    return NamedSharding(mesh, P("data"))


def keep_batched(mesh: Mesh, tree: PyTree, axis: int = 0) -> Any:
    """Tells the compiler that this axis of every leaf stays split over the devices."""
    spec = NamedSharding(mesh, P(*[None] * axis, "data"))
    return jax.lax.with_sharding_constraint(tree, spec)


def global_batch(mesh: Mesh, tree: PyTree) -> Any:
    """Makes arrays over the whole mesh of this process's rows of a batch (numpy)."""
    place = batched(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(place, rows), tree
    )


def put(tree: PyTree, places: PyTree) -> Any:
    """The tree at these places.

    `jax.device_put` would not do, as it cannot move what lies on several hosts.

    Args:
      tree: arrays.
      places: a sharding for each leaf, or one for all.
    """
    return jax.jit(lambda tree: tree, out_shardings=places)(tree)


def own_copy(tree: PyTree, mesh: Mesh | None) -> Any:
    """Copies replicated arrays to a mesh that belongs to this process alone.

    Each process can then use by itself what several processes hold together.

    Args:
      tree: arrays of which every device has a copy.
      mesh: whose devices get a copy each; None stands for the first device of this
        process.
    """
    place: Any = jax.local_devices()[0] if mesh is None else replicated(mesh)

    def copy(leaf: Shaped[AnyArray, "..."]) -> jax.Array:
        here = leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
        return jax.device_put(np.asarray(here), place)

    return jax.tree.map(copy, tree)


def gather(array: Shaped[jax.Array, "..."]) -> Shaped[np.ndarray, "..."]:
    """The whole of an array, however it is placed, as numpy on every host.

    All processes must call it; with one process nothing is sent.
    """
    return np.asarray(everywhere(array))


def everywhere(tree: PyTree) -> Any:
    """Arrays over a mesh, however they are placed, as arrays that every host can read.

    What has to be sent for that is put in the devices' queues, and nobody waits for it
    before a value is read. All processes must call it; with one process nothing is sent.
    """

    def spread(array: jax.Array) -> jax.Array:
        if array.is_fully_addressable:
            return array
        sharding: Any = array.sharding  # a NamedSharding, as others have no mesh
        return _copier(replicated(sharding.mesh))(array)

    return jax.tree.map(spread, tree)


@functools.cache
def _copier(place: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """A jitted function that copies an array to this place."""
    return jax.jit(lambda array: array, out_shardings=place)
