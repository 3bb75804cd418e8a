"""Leaves of another network made those of this one, where both compute the same.

What differs in form alone is folded: LayerScale into the layers before it, positions of
tokens into the tokens, absent biases into zeros. What differs in size is resampled.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from advadapters.errors import UsageError
from advadapters.weights import resample, settings
from advadapters.weights.layouts import Leaf

Flat = dict[str, Leaf]
Shapes = Mapping[str, tuple[int, ...]]

_SCALED = {"layer_scale1": "attn/proj", "layer_scale2": "mlp/fc2"}


class Fitted(NamedTuple):
    """leaves: {path: leaf}. fates: {path: "resampled", "recoloured" or "folded"} of those
    that changed, and of those that are in others now.
    """

    leaves: Flat
    fates: dict[str, str]


class Rectangle(NamedTuple):
    """A grid of positions that is no square, and the images that it is made a square for.

    rows, columns: of the grid. image_size: side of the images in pixels. patch: side of
    their patches, 0 for that of the file. way: a row of `resample.WAYS`.
    """

    rows: int
    columns: int
    image_size: int
    patch: int
    way: str


def squared(leaves: Flat, grid: Rectangle) -> Flat:
    """The leaves of a ViT with the positions of a rectangle made those of a square.

    Raises UsageError where the positions are not those of the rectangle.
    """
    positions, first = leaves.get("pos_embed"), int("class_token" in leaves)
    if positions is None or "patch_embed/kernel" not in leaves:
        raise UsageError("--grid: the weights have no learned positions")
    prompts = leaves["prompt"].shape[1] if "prompt" in leaves else 0
    before = positions.shape[1] - grid.rows * grid.columns
    if before not in (0, first, first + prompts):
        raise UsageError(
            f"--grid={grid.rows}x{grid.columns}: the weights have {positions.shape[1]} "
            f"positions and {first} class token"
        )
    patch = grid.patch or settings.patch_of(len(leaves["patch_embed/kernel"]))[0]
    if grid.image_size % patch:
        raise UsageError(
            f"--image_size={grid.image_size} is no multiple of the patch, {patch}"
        )
    shape, side = (grid.rows, grid.columns), grid.image_size // patch
    square = resample.positions(positions[0, before:], side, grid.way, shape)
    whole = np.concatenate([positions[0, :before], square])[None]
    return leaves | {"pos_embed": whole}


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
    recolour(leaves, unrolled, fates)
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
        # The projection of CLIP has none, where a head has one.
        if not path.endswith(("/attn/qkv/bias", "patch_embed/bias", "head/bias")):
            continue
        if path not in leaves and f"{path.removesuffix('bias')}kernel" in leaves:
            leaves[path] = np.zeros(shape, np.float32)
            fates[path] = "folded"


def recolour(leaves: Flat, here: Shapes, fates: dict[str, str]) -> None:
    """Kernels of colour images for gray ones, and the other way around, as timm does it.

    For gray images, kernels are summed over the colours: a gray image gives what the same
    image in three equal colours gave. For colour images, a third of the kernel goes to each
    colour: an image gives what the mean of its colours gave. Both disregard that means and
    deviations may differ between colours.
    """
    for path in ("patch_embed/kernel", "stem/kernel"):
        if path not in leaves or path not in here:
            continue
        kernel, shape = leaves[path], here[path]
        old, new = _colours(kernel.shape), _colours(shape)
        if {old, new} != {1, 3}:
            continue
        tiles = kernel.reshape(-1, old, kernel.shape[-1])
        tiles = tiles.sum(axis=1, keepdims=True) if old == 3 else np.repeat(tiles / 3, 3, 1)
        rows = (*kernel.shape[:-2], new) if kernel.ndim == 4 else (-1,)
        leaves[path] = tiles.reshape(*rows, kernel.shape[-1]).astype(np.float32)
        fates[path] = "recoloured"


def _colours(shape: tuple[int, ...]) -> int:
    """The channels of images for kernels of shapes [h, w, C, D] and [p p C, D]."""
    return shape[2] if len(shape) == 4 else settings.patch_of(shape[0])[1]


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
        fates.setdefault(path, "resampled")
