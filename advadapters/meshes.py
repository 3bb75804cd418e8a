"""Device meshes, and where arrays live on them."""

import functools

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

SHARDINGS = ("replicated", "fsdp")


def make(devices=None):
    """A mesh with the one axis "data" over all devices (or those given)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def platform(mesh):
    """What its programs are compiled for: "cpu", "tpu", "cuda", "rocm" or "old cuda".

    The last is NVIDIA's GPUs before Ampere (compute capability 8.0). The devices of a
    topology need not be there.
    """
    device = mesh.devices.flat[0]
    if device.platform not in ("gpu", "cuda"):
        return device.platform
    if "rocm" in device.client.platform_version:
        return "rocm"
    return "cuda" if float(device.compute_capability) >= 8 else "old cuda"


def replicated(mesh):
    """The placement of parameters: one copy on every device."""
    return NamedSharding(mesh, P())


def places(mesh, tree, sharding):
    """The placement of every leaf of a tree of arrays, or of their shapes.

    sharding: in SHARDINGS. "replicated" is one copy on every device; "fsdp" splits each
    leaf over the devices, see `split`.
    """
    spec = {"replicated": lambda shape, count: P(), "fsdp": split}[sharding]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf.shape, mesh.size)), tree)


def split(shape, count):
    """P along the largest axis that `count` devices divide (the first of equals).

    P() where there is none: such a leaf is small.
    """
    sides = [0 if side % count else side for side in shape]
    return P(*[None] * sides.index(max(sides)), "data") if any(sides) else P()


def batched(mesh):
    """The placement of a batch [B, ...]: rows over the devices."""
    return NamedSharding(mesh, P("data"))


def keep_batched(mesh, tree, axis=0):
    """Tells the compiler that this axis of every leaf stays over the devices."""
    spec = NamedSharding(mesh, P(*[None] * axis, "data"))
    return jax.lax.with_sharding_constraint(tree, spec)


def global_batch(mesh, tree):
    """This process's rows of a batch (numpy) -> arrays over the whole mesh."""
    place = batched(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(place, rows), tree
    )


def put(tree, places):
    """The tree at these places; device_put cannot move what lies on several hosts."""
    return jax.jit(lambda tree: tree, out_shardings=places)(tree)


def own_copy(tree, mesh):
    """Replicated arrays as copies on every device of a mesh of this process alone.

    mesh: None for its first device. What several processes hold together, each can then
    use by itself.
    """
    place = jax.local_devices()[0] if mesh is None else replicated(mesh)

    def copy(leaf):
        here = leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
        return jax.device_put(np.asarray(here), place)

    return jax.tree.map(copy, tree)


def gather(array):
    """The whole of an array over a mesh, however it is placed, as numpy on every host.

    All processes must call it; with one process nothing is sent.
    """
    return np.asarray(everywhere(array))


def everywhere(tree):
    """Arrays over a mesh, however they are placed, as arrays that every host can read.

    What has to be sent for that is put in the devices' queues, and nobody waits for it
    before a value is read. All processes must call it; with one process nothing is sent.
    """

    def spread(array):
        if array.is_fully_addressable:
            return array
        return copier(replicated(array.sharding.mesh))(array)

    return jax.tree.map(spread, tree)


@functools.cache
def copier(place):
    """jit: array -> the same at this place."""
    return jax.jit(lambda array: array, out_shardings=place)
