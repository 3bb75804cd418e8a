"""Pytree algebra: paths, patterns, split/merge, stack, mix.

A *domain* is a kind of input that a network is trained for (clean, linf, ...).
Parameters live in two branches:

    {"shared":   nested dict, one copy,
     "adapters": nested dict, every leaf with a leading axis [K], K = domains}

`mix(adapters, w)` contracts that axis, and `merge(shared, mixed)` is then the
parameter tree of an ordinary network. One-hot weights select a mode, any other
weights are a soup, and `jax.vmap` over stacked weights runs many at once. Running
statistics of batch norm are two such branches under "stats", which no gradient trains;
"frozen", if there is one, holds parameters that none trains either.

Trees that are split and merged are nested dicts with string keys; a path joins the keys
with "/". What stacks and mixes takes any pytree: lists, tuples, FrozenDicts, NNX states.
Only numpy and jax are imported, so that soups run in a bare notebook.
"""

import difflib
import re

import jax
import jax.numpy as jnp
import numpy as np


class PatternError(ValueError):
    """A path pattern matches nothing or is not a regular expression."""


def flatten(tree, prefix=""):
    """{"a": {"b": x}} -> {"a/b": x}, in the order of the keys."""
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


def unflatten(flat):
    """{"a/b": x} -> {"a": {"b": x}}; raises ValueError if a path is also a folder."""
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


def named(tree):
    """{path: leaf} of any pytree, whose paths join keys, fields and positions with "/".

    Raises ValueError where two leaves have one path, as in {"a/b": x, "a": {"b": y}}.

    >>> named({"blocks": [1, 2], "head": (3,)})
    {'blocks/0': 1, 'blocks/1': 2, 'head/0': 3}
    """
    found = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in found:
            raise ValueError(f"two leaves have the path {path!r}")
        found[path] = leaf
    return found


def renamed(tree, flat):
    """A tree of the same structure, with the leaves of {path: leaf}, see `named`."""
    return jax.tree.structure(tree).unflatten([flat[path] for path in named(tree)])


def matches(pattern, path):
    """Whether the regular expression `pattern` matches the whole of `path`."""
    return re.fullmatch(pattern, path) is not None


def select(paths, patterns):
    """The paths, in their order, that at least one pattern matches in full.

    Raises PatternError for a pattern that matches no path: it names the nearest ones.
    """
    paths = list(paths)
    chosen = set()
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
        chosen.update(hits)
    return [path for path in paths if path in chosen]


def split(tree, patterns):
    """(rest, chosen): two trees that `merge` puts together again."""
    flat = flatten(tree)
    chosen = set(select(flat, patterns))
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    picked = {path: leaf for path, leaf in flat.items() if path in chosen}
    return unflatten(rest), unflatten(picked)


def merge(first, second):
    """The union of two trees; raises ValueError where both have the same leaf."""
    first, second = flatten(first), flatten(second)
    common = first.keys() & second.keys()
    if common:
        raise ValueError(f"both trees hold {sorted(common)[:3]}")
    return unflatten(first | second)


def stack(trees):
    """[tree, ...] of equal structure -> one tree, every leaf with a leading axis [K]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree, k):
    """Row k of every leaf."""
    return jax.tree.map(lambda leaf: leaf[k], tree)


def replicate(tree, count):
    """Every leaf repeated along a new leading axis [count]."""
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), tree
    )


def domains(tree):
    """K, the length of the leading axis that all leaves share.

    Raises ValueError where leaves disagree or there are none.
    """
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"leaves disagree on a leading axis: {sorted(lengths)}")
    return lengths.pop()[0]


def mix(adapters, weights):
    """Contracts the leading axis [K] of every leaf with `weights` [K].

    The sum runs in float32 and is rounded once to the leaf's type. It is written
    as products and a sum, not as a matrix product, so that no accelerator rounds
    the parameters to a lower precision: a one-hot mixture is its row exactly.
    """
    weights = jnp.asarray(weights, jnp.float32)

    def contract(leaf):
        if leaf.shape[:1] != weights.shape:
            raise ValueError(
                f"{weights.shape[0]} mixture weights for a leaf with {leaf.shape[:1]} "
                "domains"
            )
        factors = weights.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.sum(factors * leaf.astype(jnp.float32), axis=0).astype(leaf.dtype)

    return jax.tree.map(contract, adapters)


def low_rank(paths):
    """{folder: names of its leaves} of the LoRAs among paths: folders that hold a and b."""
    folders = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, set()).add(name)
    return {f: names for f, names in folders.items() if {"a", "b"} <= names}


def blend(adapters, weights):
    """Like `mix`, but of a LoRA the update A @ B is mixed, not A and B separately.

    sum_k w_k (x A_k) B_k is no product of a mixed A and a mixed B. The components of all
    domains are kept side by side instead: a [K, M, D, r] becomes [K M, D, r], and
    b [K, M, r, F] becomes [K M, r, F] times the weights.
    """
    flat = named(adapters)
    loras = low_rank(flat)
    weights = jnp.asarray(weights, jnp.float32)

    def joined(path, leaf):
        folder, _, name = path.rpartition("/")
        if folder not in loras:
            return mix(leaf, weights)
        if name == "b":
            leaf = leaf * weights.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype)
        return leaf.reshape(-1, *leaf.shape[2:])

    return renamed(adapters, {path: joined(path, leaf) for path, leaf in flat.items()})


def plain(variables, weights):
    """The ordinary network at mixture `weights` [K]: {"params", "batch_stats"}."""
    stats = variables["stats"]
    params = merge(variables["shared"], blend(variables["adapters"], weights))
    return {
        "params": merge(params, variables.get("frozen", {})),
        "batch_stats": merge(stats["shared"], mix(stats["adapters"], weights)),
    }


def corner(tree, like):
    """Every leaf cut to the leading entries that the shape of the same leaf in `like` has.

    Of a network's parameters this makes those of a narrower one: slimmable networks (Yu
    et al. 2019) are corners of one tree. Raises ValueError where a leaf is too small.
    """

    def cut(leaf, small):
        if leaf.ndim != small.ndim or any(map(int.__lt__, leaf.shape, small.shape)):
            raise ValueError(f"{leaf.shape} has no corner of the shape {small.shape}")
        return leaf[tuple(slice(0, side) for side in small.shape)]

    return jax.tree.map(cut, tree, like)


def each(function, stacked):
    """A function's results [S, ...] for each of the trees that are stacked as [S, ...].

    One alone is called without a mapped axis, which compilers do not always see through.
    """
    if len(jax.tree.leaves(stacked)[0]) == 1:
        alone = function(jax.tree.map(lambda leaf: leaf[0], stacked))
        return jax.tree.map(lambda leaf: leaf[None], alone)
    return jax.vmap(function)(stacked)


def count(tree):
    """The number of parameters, an int."""
    return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(tree))


def finite(tree):
    """The tree with zeros in place of NaN and infinity."""
    return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), tree)
