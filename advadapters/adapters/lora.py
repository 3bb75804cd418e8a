"""Merging LoRAs into the kernels beside them."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from advadapters import trees
from advadapters.errors import UsageError


def merge(params: Mapping[str, Any], scales: Mapping[str, float]) -> dict[str, Any]:
    """The same network without LoRAs.

    The kernels become kernel + s * sum_m A_m B_m, which is exact up to rounding.

    Args:
      params: a parameter tree.
      scales: the factor s of each LoRA to merge, by its name in config.model.added.

    Raises:
      UsageError: a LoRA is an LNLoRA, or no module has such a name.

    >>> lora = {"a": jnp.ones((1, 3, 1)), "b": jnp.ones((1, 1, 2))}
    >>> params = {"head": {"kernel": jnp.zeros((3, 2))}, "head_lora": lora}
    >>> adapters.lora.merge(params, {"lora": 0.5})["head"]["kernel"].tolist()
    [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    """
    flat = trees.flatten(params)
    loras = _named(flat, scales)
    missing = [name for name in scales if not any(f.endswith(f"_{name}") for f in loras)]
    if missing:
        raise UsageError(f"no LoRA is named {missing}; there are: {sorted(loras)[:5]}")
    for folder, (layer, scale) in loras.items():
        if f"{folder}/scale" in flat:
            raise UsageError(
                f"{folder} is an LNLoRA: its norm divides by the deviation of each input, "
                "so no fixed kernel does the same; keep it beside the layer"
            )
        a, b = flat[f"{folder}/a"], flat[f"{folder}/b"]
        product = scale * jnp.einsum("m...r,mrf->...f", a, b, precision="highest")
        path, columns = _kernel_of(flat, layer)
        flat[path] = flat[path].at[..., columns].add(product)
    rest = {path: x for path, x in flat.items() if path.rpartition("/")[0] not in loras}
    return trees.unflatten(rest)


def _named(
    flat: Mapping[str, Any], scales: Mapping[str, float]
) -> dict[str, tuple[str, float]]:
    """{folder: (its layer, its scale)} of the LoRAs whose names are in `scales`."""
    loras = {}
    for folder in trees.find_loras(flat):
        for name, scale in scales.items():
            if folder.endswith(f"_{name}"):
                loras[folder] = (folder.removesuffix(f"_{name}"), scale)
    return loras


def _kernel_of(flat: Mapping[str, Any], layer: str) -> tuple[str, slice]:
    """(path of a layer's kernel, its columns); q, k and v are thirds of qkv."""
    if f"{layer}/kernel" in flat:
        return f"{layer}/kernel", slice(None)
    folder, _, part = layer.rpartition("/")
    path = f"{folder}/qkv/kernel"
    width = flat[path].shape[-1] // 3
    start = "qkv".index(part) * width
    return path, slice(start, start + width)
