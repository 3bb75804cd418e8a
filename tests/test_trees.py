"""The pytree algebra against its definitions."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advadapters import trees

TREE = {
    "class_token": np.arange(3.0),
    "blocks_0": {"norm1": {"scale": np.ones(2)}, "mlp": {"kernel": np.ones((2, 2))}},
    "norm": {"scale": np.full(2, 5.0)},
}


def row(stacked, k):
    """Row k of every leaf."""
    return jax.tree.map(lambda leaf: leaf[k], stacked)


def test_flatten_and_back():
    flat = trees.flatten(TREE)
    assert list(flat) == [
        "class_token",
        "blocks_0/norm1/scale",
        "blocks_0/mlp/kernel",
        "norm/scale",
    ]
    chex.assert_trees_all_equal(trees.unflatten(flat), TREE)


@pytest.mark.parametrize(
    "patterns, chosen",
    [
        (["class_token"], {"class_token"}),
        ([".*/norm.*"], {"blocks_0/norm1/scale"}),
        ([r"(.*/)?norm\d?/.*"], {"blocks_0/norm1/scale", "norm/scale"}),
        ([".*"], set(trees.flatten(TREE))),
        ([], set()),
    ],
)
def test_split_and_merge(patterns, chosen):
    rest, picked = trees.split(TREE, patterns)
    assert set(trees.flatten(picked)) == chosen
    assert set(trees.flatten(rest)) == set(trees.flatten(TREE)) - chosen
    assert trees.flatten(trees.merge(rest, picked)).keys() == trees.flatten(TREE).keys()


def test_pattern_without_a_match_names_near_ones():
    with pytest.raises(trees.PatternError, match="'class_tokn'.*near names: class_token"):
        trees.split(TREE, ["class_tokn"])
    with pytest.raises(trees.PatternError, match="not a regular expression"):
        trees.split(TREE, ["("])


def test_merge_refuses_a_leaf_that_both_have():
    with pytest.raises(ValueError, match="class_token"):
        trees.merge(TREE, {"class_token": np.zeros(3)})
    with pytest.raises(ValueError, match="runs through the leaf"):
        trees.unflatten({"a": 1, "a/b": 2})


def random_adapters(seed, count):
    key = jax.random.key(seed)
    return {
        "a": jax.random.normal(key, (count, 3)),
        "b": {"c": jax.random.normal(jax.random.fold_in(key, 1), (count, 2, 2))},
    }


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(0, 100))
def test_mix_is_linear_and_one_hot_is_the_row(count, seed):
    adapters = random_adapters(seed, count)
    for k in range(count):
        chex.assert_trees_all_equal(trees.mix(adapters, np.eye(count)[k]), row(adapters, k))
    weights = np.random.default_rng(seed).normal(size=count)
    by_hand = jax.tree.map(
        lambda leaf: sum(
            weights[k] * np.asarray(leaf[k], np.float64) for k in range(count)
        ),
        adapters,
    )
    chex.assert_trees_all_close(trees.mix(adapters, weights), by_hand, atol=1e-5)


def test_soup_of_equal_trees_is_the_tree():
    tree = row(random_adapters(0, 1), 0)
    adapters = trees.replicate(tree, 3)
    for weights in ([0.2, 0.3, 0.5], [1.5, -0.25, -0.25]):
        chex.assert_trees_all_close(trees.mix(adapters, weights), tree, rtol=1e-6)


def test_mix_sums_low_precision_in_float32():
    leaf = jnp.array([[1.0], [2.0**-8], [2.0**-8], [2.0**-8]], jnp.bfloat16)
    mixed = trees.mix({"a": leaf}, [1.0, 1.0, 1.0, 1.0])["a"]
    assert mixed.dtype == jnp.bfloat16
    # Summed one by one in bfloat16 the small terms would all be lost.
    assert float(mixed[0]) == float(jnp.bfloat16(1 + 3 * 2.0**-8))


def test_mix_refuses_a_wrong_number_of_weights():
    with pytest.raises(ValueError, match="2 mixture weights"):
        trees.mix(random_adapters(0, 3), [0.5, 0.5])


def test_stack_and_take():
    rows = [row(random_adapters(0, 3), k) for k in range(3)]
    stacked = trees.stack(rows)
    assert trees.count_domains(stacked) == 3
    for k, tree in enumerate(rows):
        chex.assert_trees_all_equal(tree, row(stacked, k))
    with pytest.raises(ValueError, match="disagree"):
        trees.count_domains({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))})


BARE = """
import sys
import jax, numpy

class Refuse:
    # jaxtyping imports the second, and looks whether there is the third.
    typing = {"jaxtyping", "wadler_lindig", "typeguard"}
    known = {*sys.stdlib_module_names, "advadapters", "jax", "jaxlib", "numpy", *typing}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.known:
            raise ImportError(f"{name} is not in a bare notebook")

sys.meta_path.insert(0, Refuse())
from advadapters import soups, trees
found = soups.learn(
    lambda plain, images: images * plain["a"], trees.mix, {"a": numpy.eye(2)},
    numpy.ones((1, 2)), numpy.array([[0.8, 0.2]]), (0.5, 0.5),
    loss=lambda out, target: ((out - target) ** 2).sum(1),
)
mixed = trees.mix(soups.stack([{"a": numpy.ones(2)}, {"a": numpy.zeros(2)}]), found.weights)
print(mixed["a"].round(3))
import flax
"""


def test_soups_need_only_numpy_jax_and_jaxtyping():
    found = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True)
    assert found.stdout.strip() == "[0.8 0.8]", found
    assert found.stderr.strip().endswith("ImportError: flax is not in a bare notebook")
