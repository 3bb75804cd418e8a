"""Merging LoRAs into the kernels beside them."""

import jax.numpy as jnp

from advadapters import trees
from advadapters.errors import UsageError


def merge(params, scales):
    """The same network without LoRAs: kernel + s * sum_m A_m B_m, exact up to rounding.

    params: a parameter tree. scales: {name: s} of the entries of config.model.added to
    merge. Raises UsageError for an LNLoRA, and for a name that no module has.
    """
    flat = trees.flatten(params)
    found = named(flat, scales)
    missing = [name for name in scales if not any(f.endswith(f"_{name}") for f in found)]
    if missing:
        raise UsageError(f"no LoRA is named {missing}; there are: {sorted(found)[:5]}")
    for folder, (layer, scale) in found.items():
        if f"{folder}/scale" in flat:
            raise UsageError(
                f"{folder} is an LNLoRA: its norm divides by the deviation of each input, "
                "so no fixed kernel does the same; keep it beside the layer"
            )
        a, b = flat[f"{folder}/a"], flat[f"{folder}/b"]
        product = scale * jnp.einsum("m...r,mrf->...f", a, b, precision="highest")
        path, columns = kernel_of(flat, layer)
        flat[path] = flat[path].at[..., columns].add(product)
    kept = {path: x for path, x in flat.items() if path.rpartition("/")[0] not in found}
    return trees.unflatten(kept)


def named(flat, scales):
    """{folder: (its layer, the scale)} of the LoRAs called `scales`."""
    found = {}
    for folder in trees.find_loras(flat):
        for name, scale in scales.items():
            if folder.endswith(f"_{name}"):
                found[folder] = (folder.removesuffix(f"_{name}"), scale)
    return found


def kernel_of(flat, layer):
    """(path of a layer's kernel, its columns); q, k and v are thirds of qkv."""
    if f"{layer}/kernel" in flat:
        return f"{layer}/kernel", slice(None)
    folder, _, part = layer.rpartition("/")
    path = f"{folder}/qkv/kernel"
    width = flat[path].shape[-1] // 3
    start = "qkv".index(part) * width
    return path, slice(start, start + width)
