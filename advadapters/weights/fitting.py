"""Leaves of another network made those of this one, where both compute the same.

What differs in form alone is folded: LayerScale into the layers before it, positions of
tokens into the tokens, absent biases into zeros. What differs in size is resampled.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from advadapters.weights import resample, settings
from advadapters.weights.layouts import Leaf

Flat = dict[str, Leaf]
Shapes = Mapping[str, tuple[int, ...]]

_SCALED = {"layer_scale1": "attn/proj", "layer_scale2": "mlp/fc2"}


class Fitted(NamedTuple):
    """leaves: {path: leaf}. fates: {path: "resampled" or "folded"} of those that changed,
    and of those that are in others now.
    """

    leaves: Flat
    fates: dict[str, str]


def fit_vit(there: Flat, here: Shapes, channels: int, way: str) -> Fitted:
    """The leaves of a ViT with the shapes `here`, as far as that changes no meaning.

    channels: of this network's images. way: a row of `resample.WAYS`. Leaves that have no
    counterpart, or whose shapes differ in other ways, stay as they are.
    """
    scanned = any(path.startswith("blocks/") for path in here)
    unrolled = _unrolled_shapes(here) if scanned else dict(here)
    leaves, fates = unrolled_blocks(there), dict[str, str]()
    steps: tuple[Callable[[Flat, Shapes, dict[str, str]], None], ...] = (
        _fold_layer_scales,
        _fold_positions,
        _add_biases,
    )
    for step in steps:
        step(leaves, unrolled, fates)
    _resample_positions(leaves, unrolled, fates, way)
    _resample_patches(leaves, unrolled, fates, (channels, way))
    if not scanned:
        return Fitted(leaves, fates)
    fates = {re.sub(r"^blocks_\d+/", "blocks/", path): fate for path, fate in fates.items()}
    return Fitted(scanned_blocks(leaves), fates)


def unrolled_blocks(flat: Flat) -> Flat:
    """blocks/x with a leading axis [depth] -> blocks_0/x, blocks_1/x, ..."""
    leaves_by_path: Flat = {}
    for path, leaf in flat.items():
        name = path.removeprefix("blocks/")
        if name == path:
            leaves_by_path[path] = leaf
        else:
            leaves_by_path |= {f"blocks_{i}/{name}": row for i, row in enumerate(leaf)}
    return leaves_by_path


def scanned_blocks(flat: Flat) -> Flat:
    """The inverse of `unrolled_blocks`; blocks that differ in shape stay as they are."""
    rows: dict[str, dict[int, Leaf]] = {}
    leaves_by_path: Flat = {}
    for path, leaf in flat.items():
        match = re.fullmatch(r"blocks_(\d+)/(.*)", path)
        if match:
            rows.setdefault(match[2], {})[int(match[1])] = leaf
        else:
            leaves_by_path[path] = leaf
    for name, leaves in rows.items():
        alike = len({leaf.shape for leaf in leaves.values()}) == 1
        if alike and sorted(leaves) == list(range(len(leaves))):
            leaves_by_path[f"blocks/{name}"] = np.stack(
                [leaves[i] for i in range(len(leaves))]
            )
        else:
            leaves_by_path |= {f"blocks_{i}/{name}": leaf for i, leaf in leaves.items()}
    return leaves_by_path


def _unrolled_shapes(here: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes of the same network with its blocks unrolled."""
    shapes = dict[str, tuple[int, ...]]()
    for path, shape in here.items():
        name = path.removeprefix("blocks/")
        paths = [path] if name == path else [f"blocks_{i}/{name}" for i in range(shape[0])]
        shapes |= dict.fromkeys(paths, shape if name == path else shape[1:])
    return shapes


def _fold_layer_scales(leaves: Flat, here: Shapes, fates: dict[str, str]) -> None:
    """LayerScales that this network does not have go into the dense layers before them."""
    for path in list(leaves):
        block, _, name = path.removesuffix("/gamma").rpartition("/")
        layer = f"{block}/{_SCALED.get(name, '')}"
        if name not in _SCALED or path in here or f"{layer}/kernel" not in leaves:
            continue
        gamma = leaves.pop(path)
        fates[path] = "folded"
        for leaf in (f"{layer}/kernel", f"{layer}/bias"):
            if leaf in leaves:
                leaves[leaf] = leaves[leaf] * gamma
                fates[leaf] = "folded"


def _fold_positions(leaves: Flat, here: Shapes, fates: dict[str, str]) -> None:
    """Positions of prompts go into them, the class token's where it has none here.

    Where the class token has a position here only, that is zero.
    """
    if "pos_embed" not in leaves or "pos_embed" not in here:
        return
    rows, first = leaves["pos_embed"], int("class_token" in leaves)
    prompts = leaves["prompt"].shape[1] if "prompt" in leaves else 0
    grid = settings.grid_of(rows.shape[1], first, prompts)
    wanted = settings.grid_of(here["pos_embed"][1], int("class_token" in here), 0)
    if grid.prompts:
        end = grid.first + prompts
        leaves["prompt"] = leaves["prompt"] + rows[:, grid.first : end]
        rows = np.concatenate([rows[:, : grid.first], rows[:, end:]], axis=1)
        fates |= dict.fromkeys(("prompt", "pos_embed"), "folded")
    if grid.first > wanted.first:
        leaves["class_token"] = leaves["class_token"] + rows[:, :1]
        rows = rows[:, 1:]
        fates |= dict.fromkeys(("class_token", "pos_embed"), "folded")
    elif grid.first < wanted.first and first:
        rows = np.concatenate([np.zeros_like(rows[:, :1]), rows], axis=1)
        fates["pos_embed"] = "folded"
    leaves["pos_embed"] = rows


def _add_biases(leaves: Flat, here: Shapes, fates: dict[str, str]) -> None:
    """Biases that are absent there are zero."""
    for path, shape in here.items():
        if not path.endswith(("/attn/qkv/bias", "patch_embed/bias")):
            continue
        if path not in leaves and f"{path.removesuffix('bias')}kernel" in leaves:
            leaves[path] = np.zeros(shape, np.float32)
            fates[path] = "folded"


def _resample_positions(
    leaves: Flat, here: Shapes, fates: dict[str, str], way: str
) -> None:
    """Positions of another number of patches."""
    if "pos_embed" not in leaves or "pos_embed" not in here:
        return
    rows, first = leaves["pos_embed"][0], int("class_token" in here)
    grid = settings.grid_of(len(rows), first, 0)
    wanted = settings.grid_of(here["pos_embed"][1], first, 0)
    if grid.first == wanted.first and grid.side != wanted.side:
        resized = resample.positions(rows[grid.first :], wanted.side, way)
        rows = np.concatenate([rows[: grid.first], resized])
        leaves["pos_embed"] = rows[None]
        fates["pos_embed"] = "resampled"


def _resample_patches(
    leaves: Flat, here: Shapes, fates: dict[str, str], how: tuple[int, str]
) -> None:
    """The kernel of patches of another size, for images of as many channels."""
    path, (channels, way) = "patch_embed/kernel", how
    if path not in leaves or path not in here:
        return
    old, colours = settings.patch_of(len(leaves[path]))
    new, _ = settings.patch_of(here[path][0])
    if colours == channels and old != new:
        leaves[path] = resample.patches(leaves[path], old, new, way)
        fates[path] = "resampled"
