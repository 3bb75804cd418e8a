"""Pytree algebra: paths, patterns, splitting, merging, stacking and mixing.

A *domain* is a kind of input that a network is trained for (clean, linf, ...).
Parameters live in two branches:

    {"shared":   nested dict, one copy,
     "adapters": nested dict, every leaf with a leading axis [K], K = domains}

`plain(variables, w)` is the ordinary network of a mixture: `blend` contracts that axis,
and `merge` puts the result beside the shared parameters. One-hot weights select a mode,
any other weights are a soup, and `jax.vmap` over stacked weights runs many at once.
`mix` contracts every leaf by itself; `blend` does the same but for LoRAs, of which it mixes
the products of both factors. Running statistics of batch norm are two such branches under
"stats", which no gradient trains. An optional branch "frozen" holds parameters that are
not trained either.

Trees that are split and merged are nested dicts with string keys; a path joins the keys
with "/". The functions that stack and mix take any pytree: lists, tuples, FrozenDicts,
NNX states. This module imports only numpy, jax and jaxtyping, so that soups run in a
bare notebook.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advadapters.shapes import AnyArray, MixtureLike, PyTree, Shaped

NestedDict = dict[str, Any]  # a nested dict with string keys


class PatternError(ValueError):
    """A path pattern matches nothing or is not a regular expression."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as a flat one, in the order of the keys.

    Args:
      tree: nested dicts with string keys.
      prefix: is put before every path.

    Raises:
      ValueError: a key contains "/", which separates the parts of a path.

    >>> trees.flatten({"block": {"kernel": 1, "bias": 2}, "head": 3})
    {'block/kernel': 1, 'block/bias': 2, 'head': 3}
    """
    flat = {}
    for key, value in tree.items():
        if "/" in key:
            raise ValueError(f"key {key!r} contains '/', which separates paths")
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, path + "/")
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> NestedDict:
    """The nested dict of a flat one, the inverse of `flatten`.

    Raises:
      ValueError: a path is also a folder of another path.

    >>> trees.unflatten({"block/kernel": 1, "block/bias": 2, "head": 3})
    {'block': {'kernel': 1, 'bias': 2}, 'head': 3}
    """
    tree = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise ValueError(f"path {path!r} runs through the leaf {folder!r}")
        if name in node:
            raise ValueError(f"path {path!r} is there twice")
        node[name] = value
    return tree


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of any pytree by path, which joins keys, fields and positions with "/".

    Raises:
      ValueError: two leaves have the same path, as in {"a/b": x, "a": {"b": y}}.

    >>> trees.leaves_by_path({"blocks": [1, 2], "head": (3,)})
    {'blocks/0': 1, 'blocks/1': 2, 'head/0': 3}
    """
    leaves = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in leaves:
            raise ValueError(f"two leaves have the path {path!r}")
        leaves[path] = leaf
    return leaves


def replace_leaves(tree: PyTree, leaves: Mapping[str, Any]) -> Any:
    """A tree with the structure of `tree` and other leaves.

    Args:
      tree: any pytree.
      leaves: the new leaf for each path of `leaves_by_path(tree)`.

    >>> trees.replace_leaves([1, (2,)], {"0": "a", "1/0": "b"})
    ['a', ('b',)]
    """
    structure = jax.tree.structure(tree)
    return structure.unflatten([leaves[path] for path in leaves_by_path(tree)])


def matches(pattern: str, path: str) -> bool:
    """Whether the regular expression `pattern` matches the whole of `path`."""
    return re.fullmatch(pattern, path) is not None


def select(paths: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The paths, in their order, that at least one pattern matches in full.

    Raises:
      PatternError: a pattern matches no path; the message names the nearest ones.

    >>> trees.select(["head/bias", "norm1/bias", "norm2/bias"], [r"norm\\d/.*"])
    ['norm1/bias', 'norm2/bias']
    """
    paths = list(paths)
    selection = set()
    for pattern in patterns:
        try:
            hits = [path for path in paths if matches(pattern, path)]
        except re.error as error:
            raise PatternError(
                f"pattern {pattern!r} is not a regular expression: {error}"
            ) from None
        if not hits:
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
            raise PatternError(
                f"pattern {pattern!r} matches no parameter; near names: " + ", ".join(near)
            )
        selection.update(hits)
    return [path for path in paths if path in selection]


def split(
    tree: Mapping[str, Any], patterns: Iterable[str]
) -> tuple[NestedDict, NestedDict]:
    """Splits a nested dict in two, which `merge` puts together again.

    Args:
      tree: nested dicts with string keys.
      patterns: regular expressions over whole paths.

    Returns:
      The leaves that no pattern matches, and those that at least one does.

    Raises:
      PatternError: a pattern matches no path.

    >>> trees.split({"token": 1, "head": {"bias": 2}}, ["token"])
    ({'head': {'bias': 2}}, {'token': 1})
    """
    flat = flatten(tree)
    selection = set(select(flat, patterns))
    others = {path: leaf for path, leaf in flat.items() if path not in selection}
    matching = {path: leaf for path, leaf in flat.items() if path in selection}
    return unflatten(others), unflatten(matching)


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> NestedDict:
    """The union of two nested dicts.

    Raises:
      ValueError: both have a leaf at the same path.

    >>> trees.merge({"head": {"bias": 2}}, {"token": 1})
    {'head': {'bias': 2}, 'token': 1}
    """
    first, second = flatten(first), flatten(second)
    common = first.keys() & second.keys()
    if common:
        raise ValueError(f"both trees hold {sorted(common)[:3]}")
    return unflatten(first | second)


def stack(trees: Sequence[PyTree]) -> Any:
    """Stacks K trees of equal structure: every leaf gets a leading axis [K].

    >>> trees.stack([{"bias": 1.0}, {"bias": 2.0}])["bias"].tolist()
    [1.0, 2.0]
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def replicate(tree: PyTree, count: int) -> Any:
    """Repeats every leaf along a new leading axis [count].

    >>> trees.replicate({"bias": 1.0}, 3)["bias"].tolist()
    [1.0, 1.0, 1.0]
    """
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), tree
    )


def count_domains(tree: PyTree) -> int:
    """K, the length of the leading axis that all leaves share.

    Raises:
      ValueError: the leaves disagree, or there are none.

    >>> trees.count_domains({"scale": np.ones((3, 8)), "bias": np.zeros((3, 8))})
    3
    """
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"leaves disagree on a leading axis: {sorted(lengths)}")
    return lengths.pop()[0]


def mix(adapters: PyTree, weights: MixtureLike) -> Any:
    """Contracts the leading axis [K] of every leaf with the weights [K] of a mixture.

    The sum runs in float32 and is rounded once to the leaf's type. It is written
    as products and a sum, not as a matrix product, so that no accelerator rounds
    the parameters to a lower precision: a one-hot mixture is its row exactly. A mixture
    of equal rows, such as 0.3 a + 0.7 a, is a up to the last bits of float32 only: a form
    that is exact for them would not be linear in the weights.

    The two factors of a LoRA are mixed like any other leaves, which does not mix what they
    add to the network. Adapters that may hold LoRAs go through `blend`, or `plain`.

    Args:
      adapters: any pytree whose leaves have a leading axis [K].
      weights: one for each domain. They need not sum to 1 here; `soups.check` asks
        for that.

    Raises:
      ValueError: a leaf has another number of domains than there are weights.

    >>> adapters = {"token": np.array([[1.0, 0.0], [0.0, 1.0]])}
    >>> trees.mix(adapters, (0.75, 0.25))["token"].tolist()
    [0.75, 0.25]
    """
    row = jnp.asarray(weights, jnp.float32)

    def contract(leaf: Shaped[AnyArray, "..."]) -> jax.Array:
        if leaf.shape[:1] != row.shape:
            raise ValueError(
                f"{row.shape[0]} mixture weights for a leaf with {leaf.shape[:1]} domains"
            )
        leaf = jnp.asarray(leaf)  # float64 becomes a type that jax has
        factors = row.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.sum(factors * leaf.astype(jnp.float32), axis=0).astype(leaf.dtype)

    return jax.tree.map(contract, adapters)


def find_loras(paths: Iterable[str]) -> dict[str, set[str]]:
    """The LoRAs among the paths of leaves: folders that hold leaves named a and b.

    >>> loras = trees.find_loras(["fc1/kernel", "fc1_lora/a", "fc1_lora/b"])
    >>> sorted(loras["fc1_lora"])
    ['a', 'b']
    """
    folders: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, set()).add(name)
    return {f: names for f, names in folders.items() if {"a", "b"} <= names}


def blend(adapters: PyTree, weights: MixtureLike) -> Any:
    """Like `mix`, but a LoRA's update A @ B is mixed, not A and B separately.

    sum_k w_k (x A_k) B_k is not a product of a mixed A and a mixed B. The components of
    all domains are kept side by side instead: a [K, M, D, r] becomes [K M, D, r], and
    b [K, M, r, F] becomes [K M, r, F] times the weights.

    >>> lora = {"a": np.ones((2, 1, 4, 3)), "b": np.ones((2, 1, 3, 5))}
    >>> {name: leaf.shape for name, leaf in trees.blend(lora, (0.5, 0.5)).items()}
    {'a': (2, 4, 3), 'b': (2, 3, 5)}
    """
    flat = leaves_by_path(adapters)
    loras = find_loras(flat)
    row = jnp.asarray(weights, jnp.float32)

    def blend_leaf(path: str, leaf: Shaped[AnyArray, "..."]) -> Shaped[AnyArray, "..."]:
        folder, _, name = path.rpartition("/")
        if folder not in loras:
            return mix(leaf, row)
        leaf = jnp.asarray(leaf)
        if name == "b":
            leaf = leaf * row.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype)
        return leaf.reshape(-1, *leaf.shape[2:])

    leaves = {path: blend_leaf(path, leaf) for path, leaf in flat.items()}
    return replace_leaves(adapters, leaves)


def plain(variables: Mapping[str, Any], weights: MixtureLike) -> dict[str, NestedDict]:
    """The ordinary network that a mixture makes of the variables of training.

    Args:
      variables: with the branches "shared", "adapters", "stats" and perhaps "frozen".
      weights: of the domains, [K].

    Returns:
      {"params": parameters, "batch_stats": running statistics}.

    >>> variables = {
    ...     "shared": {"head": np.ones(2)},
    ...     "adapters": {"token": np.array([[1.0], [3.0]])},
    ...     "stats": {"shared": {}, "adapters": {}},
    ... }
    >>> trees.plain(variables, (0.5, 0.5))["params"]["token"].tolist()
    [2.0]
    """
    stats = variables["stats"]
    params = merge(variables["shared"], blend(variables["adapters"], weights))
    return {
        "params": merge(params, variables.get("frozen", {})),
        "batch_stats": merge(stats["shared"], mix(stats["adapters"], weights)),
    }


def corner(tree: PyTree, like: PyTree) -> Any:
    """Cuts every leaf to the leading entries that the leaf of `like` has room for.

    Of a network's parameters this makes those of a narrower one: slimmable networks (Yu
    et al. 2019) are corners of one tree.

    Args:
      tree: the parameters of the wider network.
      like: arrays, or their shapes, of the narrower one.

    Raises:
      ValueError: a leaf is smaller than that of `like`.

    >>> trees.corner([np.arange(6.0).reshape(2, 3)], [np.zeros((1, 2))])[0].tolist()
    [[0.0, 1.0]]
    """

    def cut(
        leaf: Shaped[AnyArray, "..."], small: jax.ShapeDtypeStruct | AnyArray
    ) -> Shaped[AnyArray, "..."]:
        if leaf.ndim != small.ndim or any(map(int.__lt__, leaf.shape, small.shape)):
            raise ValueError(f"{leaf.shape} has no corner of the shape {small.shape}")
        return leaf[tuple(slice(0, side) for side in small.shape)]

    return jax.tree.map(cut, tree, like)


def each(function: Callable[[Any], Any], stacked: PyTree) -> Any:
    """Applies a function to each of S stacked trees; its results are stacked likewise.

    A single tree is passed to it without a mapped axis, because compilers do not always
    see through an axis of length 1.

    >>> trees.each(lambda tree: tree["x"] + 1, {"x": np.arange(3)}).tolist()
    [1, 2, 3]
    """
    if len(jax.tree.leaves(stacked)[0]) == 1:
        result = function(jax.tree.map(lambda leaf: leaf[0], stacked))
        return jax.tree.map(lambda leaf: leaf[None], result)
    return jax.vmap(function)(stacked)


def count(tree: PyTree) -> int:
    """The number of parameters.

    >>> trees.count({"kernel": np.ones((3, 4)), "bias": np.zeros(4)})
    16
    """
    return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(tree))


def finite(tree: PyTree) -> Any:
    """The tree with zeros in place of NaN and infinity.

    >>> trees.finite(np.array([1.0, np.nan, np.inf])).tolist()
    [1.0, 0.0, 0.0]
    """
    return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), tree)
