"""Ingredients of soups: whole networks, in memory or in files; weights per layer.

On disk an ingredient is a folder with one .npy file per leaf, at the leaf's path:
`blocks_0/mlp/fc1/kernel.npy`.
"""

import pathlib

import numpy as np

from advadapters import trees
from advadapters.soups.mixtures import check


def stack(ingredients, names=None):
    """K pytrees -> one pytree with leaves [K, ...], of which `trees.mix` makes soups.

    Raises ValueError where they are not the same kind of network. names: for the message.

    >>> soup = trees.mix(stack([(1.0, [2.0]), (3.0, [4.0])]), (0.5, 0.5))
    >>> [float(leaf) for leaf in (soup[0], soup[1][0])]
    [2.0, 3.0]
    """
    agree([trees.named(tree) for tree in ingredients], names)
    return trees.stack(ingredients)


def agree(flat, names=None):
    """Raises ValueError, in one line, where {path: leaf} differ in paths or shapes."""
    names = names or [f"ingredient {number}" for number in range(len(flat))]
    for name, other in zip(names, flat, strict=True):
        apart = sorted(flat[0].keys() ^ other.keys())
        if apart:
            raise ValueError(f"{names[0]} and {name} do not both have {apart[0]}")
        for path, leaf in flat[0].items():
            if np.shape(leaf) != np.shape(other[path]):
                raise ValueError(
                    f"{path} is {np.shape(leaf)} in {names[0]} and {np.shape(other[path])} "
                    f"in {name}: not the same kind of network, or not as many classes"
                )


def write_leaves(folder, tree):
    """Writes a pytree as a folder of .npy files; bfloat16, which .npy lacks, as float32."""
    for path, leaf in trees.named(tree).items():
        leaf = np.asarray(leaf)
        file = pathlib.Path(folder, path + ".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, leaf.astype(np.float32) if leaf.dtype.kind == "V" else leaf)


def read_leaves(folder):
    """{path: memory-mapped array} of a folder of .npy files.

    Raises ValueError for anything but plain arrays of floating-point numbers: a pickle
    would run code.
    """
    found = {}
    for file in sorted(pathlib.Path(folder).rglob("*.npy")):
        try:
            leaf = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{file} is not a plain array: {error}") from None
        if leaf.dtype.kind != "f":
            raise ValueError(f"{file} holds {leaf.dtype}, not floating-point numbers")
        found[file.relative_to(folder).with_suffix("").as_posix()] = leaf
    if not found:
        raise ValueError(f"{folder} holds no .npy files")
    return found


def mix_files(folders, weights):
    """The soup sum_k w_k theta_k of K folders of leaves, a tree of numpy arrays.

    Summed in float32, one leaf of one ingredient after the other: memory holds the soup
    and one leaf. Ingredients that weigh 0 are not read. Raises ValueError as `agree` and
    `check` do.
    """
    weights = check(weights)
    if len(folders) != len(weights):
        raise ValueError(f"{len(weights)} mixture weights for {len(folders)} folders")
    ingredients = [read_leaves(folder) for folder in folders]
    agree(ingredients, [str(folder) for folder in folders])

    def mixed(path):
        total = np.zeros(ingredients[0][path].shape, np.float32)
        for leaves, weight in zip(ingredients, weights, strict=True):
            if weight:
                total += np.float32(weight) * leaves[path].astype(np.float32)
        return total.astype(ingredients[0][path].dtype)

    return trees.unflatten({path: mixed(path) for path in ingredients[0]})


def mix_by_path(adapters, weights):
    """`trees.blend` with weights by path: {pattern: w [K]}, the first that matches a leaf.

    Raises ValueError for leaves that no pattern matches, patterns that are no leaf's first,
    weights that are no combination (`check`), and a LoRA whose parts get different ones: it
    is their product that is mixed.
    """
    weights = {pattern: check(w) for pattern, w in weights.items()}
    flat = trees.named(adapters)
    first = {
        path: next((p for p in weights if trees.matches(p, path)), None) for path in flat
    }
    trees.select(flat, weights)
    for path, pattern in first.items():
        if pattern is None:
            raise ValueError(f"no pattern gives weights to {path}")
    if unused := [pattern for pattern in weights if pattern not in first.values()]:
        raise ValueError(f"patterns before it leave nothing to {unused[0]!r}")
    for folder in trees.low_rank(flat):
        if first[f"{folder}/a"] != first[f"{folder}/b"]:
            raise ValueError(f"{folder}/a and {folder}/b must have the same weights")
    mixed = {}
    for pattern, w in weights.items():
        part = {path: leaf for path, leaf in flat.items() if first[path] == pattern}
        mixed |= trees.named(trees.blend(trees.unflatten(part), w))
    return trees.renamed(adapters, mixed)
