"""Ingredients of soups: whole networks, in memory or in files; weights by layer.

On disk an ingredient is a folder with one .npy file for each leaf, at the leaf's path:
`blocks_0/mlp/fc1/kernel.npy`.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np

from advadapters import trees
from advadapters.shapes import PyTree
from advadapters.soups.mixtures import check

Folder = str | os.PathLike[str]


def stack(ingredients: Sequence[PyTree], names: Sequence[str] | None = None) -> Any:
    """Stacks K networks in one tree, of which `trees.mix` makes soups.

    Args:
      ingredients: K pytrees of arrays.
      names: what error messages call them; "ingredient 0", ... by default.

    Returns:
      A pytree of the same structure whose leaves have a leading axis [K].

    Raises:
      ValueError: they are not the same kind of network.

    >>> soup = trees.mix(soups.stack([(1.0, [2.0]), (3.0, [4.0])]), (0.5, 0.5))
    >>> [float(leaf) for leaf in (soup[0], soup[1][0])]
    [2.0, 3.0]
    """
    _need_alike([trees.leaves_by_path(tree) for tree in ingredients], names)
    return trees.stack(ingredients)


def _need_alike(
    ingredients: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None
) -> None:
    """Raises ValueError, in one line, where {path: leaf} differ in paths or shapes."""
    names = names or [f"ingredient {number}" for number in range(len(ingredients))]
    first = ingredients[0]
    for name, other in zip(names, ingredients, strict=True):
        missing = sorted(first.keys() ^ other.keys())
        if missing:
            raise ValueError(f"{names[0]} and {name} do not both have {missing[0]}")
        for path, leaf in first.items():
            if np.shape(leaf) != np.shape(other[path]):
                raise ValueError(
                    f"{path} is {np.shape(leaf)} in {names[0]} and {np.shape(other[path])} "
                    f"in {name}: not the same kind of network, or not as many classes"
                )


def write_leaves(folder: Folder, tree: PyTree) -> None:
    """Writes a pytree as a folder of .npy files, which `mix_files` reads.

    Leaves in bfloat16, which .npy lacks, are written as float32.

    >>> import pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> soups.write_leaves(folder.name, {"head": {"bias": np.zeros(10)}})
    >>> [file.name for file in pathlib.Path(folder.name, "head").iterdir()]
    ['bias.npy']
    >>> folder.cleanup()
    """
    for path, leaf in trees.leaves_by_path(tree).items():
        leaf = np.asarray(leaf)
        file = pathlib.Path(folder, path + ".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, leaf.astype(np.float32) if leaf.dtype.kind == "V" else leaf)


def _read_leaves(folder: Folder) -> dict[str, np.ndarray]:
    """{path: memory-mapped array} of a folder of .npy files.

    Raises ValueError for anything but plain arrays of floating-point numbers, because a
    pickle would run code.
    """
    leaves = {}
    for file in sorted(pathlib.Path(folder).rglob("*.npy")):
        try:
            leaf = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{file} is not a plain array: {error}") from None
        if leaf.dtype.kind != "f":
            raise ValueError(f"{file} holds {leaf.dtype}, not floating-point numbers")
        leaves[file.relative_to(folder).with_suffix("").as_posix()] = leaf
    if not leaves:
        raise ValueError(f"{folder} holds no .npy files")
    return leaves


def mix_files(
    folders: Sequence[Folder], weights: Iterable[SupportsFloat]
) -> dict[str, Any]:
    """The soup sum_k w_k theta_k of K networks on disk.

    It is summed in float32, one leaf of one ingredient after the other, so that memory
    holds only the soup and one leaf. Ingredients with weight 0 are not read.

    Args:
      folders: one for each ingredient, as `write_leaves` makes them.
      weights: K weights that sum to 1.

    Returns:
      Nested dicts of numpy arrays.

    Raises:
      ValueError: the networks are not alike, a file holds no plain array of
        floating-point numbers, or the weights are those of no soup (see `check`).

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> soups.write_leaves(f"{folder.name}/a", {"head": np.array([1.0, 2.0])})
    >>> soups.write_leaves(f"{folder.name}/b", {"head": np.array([3.0, 4.0])})
    >>> soups.mix_files([f"{folder.name}/a", f"{folder.name}/b"], (0.5, 0.5))
    {'head': array([2., 3.])}
    >>> folder.cleanup()
    """
    weights = check(weights)
    if len(folders) != len(weights):
        raise ValueError(f"{len(weights)} mixture weights for {len(folders)} folders")
    ingredients = [_read_leaves(folder) for folder in folders]
    _need_alike(ingredients, [str(folder) for folder in folders])

    def mix_leaf(path: str) -> np.ndarray:
        total = np.zeros(ingredients[0][path].shape, np.float32)
        for leaves, weight in zip(ingredients, weights, strict=True):
            if weight:
                total += np.float32(weight) * leaves[path].astype(np.float32)
        return total.astype(ingredients[0][path].dtype)

    return trees.unflatten({path: mix_leaf(path) for path in ingredients[0]})


def mix_by_path(adapters: PyTree, weights: Mapping[str, Iterable[SupportsFloat]]) -> Any:
    """`trees.blend` with weights of their own for different leaves.

    Args:
      adapters: any pytree whose leaves have a leading axis [K].
      weights: {pattern: K weights}. A leaf is mixed by the first pattern that matches
        the whole of its path.

    Raises:
      ValueError: no pattern matches a leaf, a pattern is no leaf's first, weights are
        those of no soup (see `check`), or the parts of a LoRA get different weights,
        although their product is what is mixed.

    >>> networks = {"stem": np.array([0.0, 8.0]), "head": np.array([0.0, 8.0])}
    >>> soup = soups.mix_by_path(networks, {"stem": (0.5, 0.5), ".*": (0.25, 0.75)})
    >>> float(soup["stem"]), float(soup["head"])
    (4.0, 6.0)
    """
    mixtures = {pattern: check(mixture) for pattern, mixture in weights.items()}
    flat = trees.leaves_by_path(adapters)
    trees.select(flat, mixtures)
    patterns = {path: _first_match(path, mixtures) for path in flat}
    if unused := [p for p in mixtures if p not in patterns.values()]:
        raise ValueError(f"patterns before it leave nothing to {unused[0]!r}")
    for folder in trees.find_loras(flat):
        if patterns[f"{folder}/a"] != patterns[f"{folder}/b"]:
            raise ValueError(f"{folder}/a and {folder}/b must have the same weights")
    soup = {}
    for pattern, mixture in mixtures.items():
        part = {path: leaf for path, leaf in flat.items() if patterns[path] == pattern}
        soup |= trees.leaves_by_path(trees.blend(trees.unflatten(part), mixture))
    return trees.replace_leaves(adapters, soup)


def _first_match(path: str, patterns: Iterable[str]) -> str:
    """The first pattern that matches the whole path; raises ValueError if none does."""
    for pattern in patterns:
        if trees.matches(pattern, path):
            return pattern
    raise ValueError(f"no pattern gives weights to {path}")
