"""Soups of networks in memory, in files and by layer; the algebra of mixing."""

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict

from advadapters import soups, trees


def ingredient(seed, classes=3, dtype=np.float32):
    """Parameters and statistics of a small network."""
    draw = np.random.default_rng(seed)
    make = lambda *shape: draw.normal(size=shape).astype(dtype)  # noqa: E731
    return {
        "params": {"conv": {"kernel": make(4, 5)}, "head": {"kernel": make(5, classes)}},
        "batch_stats": {"norm": {"mean": make(5)}},
    }


def four(**how):
    return [ingredient(seed, **how) for seed in range(4)]


def test_equal_ingredients_give_the_tree_bitwise():
    # In float32 where no product or sum is rounded; in bfloat16, whose leaves have fewer
    # bits than the sum, whatever the weights.
    for dtype, weights in [
        (np.float32, [0.5, 0.5, 0.0, 0.0]),
        (np.float32, [0.0, 2.0, 0.0, -1.0]),
        (jnp.bfloat16, [0.1, 0.2, 0.3, 0.4]),
        (jnp.bfloat16, [1.3, -0.1, -0.1, -0.1]),
    ]:
        tree = ingredient(0, dtype=dtype)
        chex.assert_trees_all_equal(trees.mix(soups.stack([tree] * 4), weights), tree)


def test_one_hot_soups_of_files_are_the_ingredients_bitwise(tmp_path):
    ingredients = four()
    folders = [tmp_path / str(k) for k in range(4)]
    for folder, tree in zip(folders, ingredients, strict=True):
        soups.write_leaves(folder, tree)
    for k, tree in enumerate(ingredients):
        chex.assert_trees_all_equal(soups.mix_files(folders, soups.one_hot(4, k)), tree)
    weights = [0.7, -0.2, 0.1, 0.4]
    chex.assert_trees_all_close(
        soups.mix_files(folders, weights), trees.mix(soups.stack(ingredients), weights),
        atol=1e-6,
    )  # fmt: skip


def test_order_does_not_matter_and_mixes_mix():
    stacked, weights = soups.stack(four()), np.array([0.7, -0.2, 0.1, 0.4])
    order = np.array([2, 0, 3, 1])
    chex.assert_trees_all_close(
        trees.mix(jax.tree.map(lambda leaf: leaf[order], stacked), weights[order]),
        trees.mix(stacked, weights),
        atol=1e-6,
    )
    rows = np.array([[0.5, 0.5, 0, 0], [0.2, 0.3, 0.4, 0.1], [0, 0, -1, 2]])
    again = trees.mix(
        trees.stack([trees.mix(stacked, row) for row in rows]), [0.3, 0.9, -0.2]
    )
    chex.assert_trees_all_close(
        again, trees.mix(stacked, np.array([0.3, 0.9, -0.2]) @ rows), atol=1e-6
    )


def test_bfloat16_ingredients_are_summed_in_float32(tmp_path):
    # One by one in bfloat16, each 2**-8 is lost beside 1: half of its last place.
    values = [4.0, 2.0**-6, 2.0**-6, 2.0**-6]
    ingredients = [{"a": jnp.full((2,), value, jnp.bfloat16)} for value in values]
    lossy = sum(0.25 * tree["a"] for tree in ingredients)
    assert float(lossy[0]) == 1.0
    for k, tree in enumerate(ingredients):
        soups.write_leaves(tmp_path / str(k), tree)
    mixed = soups.mix_files([tmp_path / str(k) for k in range(4)], [0.25] * 4)
    np.testing.assert_array_equal(mixed["a"], np.float32([1 + 3 * 2.0**-8] * 2))


def test_statistics_are_mixed_too():
    ingredients = four()
    mean = trees.mix(soups.stack(ingredients), [0.25] * 4)["batch_stats"]["norm"]["mean"]
    by_hand = np.mean([tree["batch_stats"]["norm"]["mean"] for tree in ingredients], axis=0)
    np.testing.assert_allclose(mean, by_hand, atol=1e-6)


def test_files_are_read_leaf_by_leaf(tmp_path, monkeypatch):
    """Leaves are memory maps; those of ingredients that weigh 0 do not count at all."""
    for k, tree in enumerate(four()):
        soups.write_leaves(tmp_path / str(k), tree)
    modes, load = [], np.load

    def spy(file, **how):
        modes.append(how)
        return load(file, **how)

    monkeypatch.setattr(np, "load", spy)
    leaves = soups.ingredients._read_leaves(tmp_path / "1")
    assert all(isinstance(leaf, np.memmap) for leaf in leaves.values())
    assert all(how == {"mmap_mode": "r", "allow_pickle": False} for how in modes)
    # What weighs nothing may even be broken inside: it is not read.
    soups.write_leaves(tmp_path / "1", jax.tree.map(lambda a: a * np.nan, ingredient(1)))
    mixed = soups.mix_files([tmp_path / "0", tmp_path / "1"], [1.0, 0.0])
    chex.assert_trees_all_equal(mixed, ingredient(0))


def damage_pickle(folder):
    np.save(folder / "params/conv/kernel.npy", np.array([{}]), allow_pickle=True)


def damage_cut(folder):
    file = folder / "params/conv/kernel.npy"
    file.write_bytes(file.read_bytes()[:-8])


def damage_empty(folder):
    (folder / "params/conv/kernel.npy").write_bytes(b"")


def damage_integers(folder):
    np.save(folder / "params/conv/kernel.npy", np.ones((4, 5), int))


def damage_classes(folder):
    np.save(folder / "params/head/kernel.npy", np.ones((5, 10), np.float32))


def damage_missing(folder):
    (folder / "batch_stats/norm/mean.npy").unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_pickle, r"conv/kernel.npy is not a plain array"),
        (damage_cut, r"conv/kernel.npy is not a plain array"),
        (damage_empty, r"conv/kernel.npy is not a plain array"),
        (damage_integers, r"conv/kernel.npy holds int64, not floating-point numbers"),
        (damage_classes, r"head/kernel is \(5, 3\) in .*a and \(5, 10\) in .*b: .*classes"),
        (damage_missing, r"a and .*b do not both have batch_stats/norm/mean"),
    ],
)
def test_mix_files_refuses_in_one_line(tmp_path, damage, message):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        soups.write_leaves(folder, ingredient(0))
    damage(folders[1])
    with pytest.raises(ValueError, match=message) as caught:
        soups.mix_files(folders, [0.5, 0.5])
    assert "\n" not in str(caught.value)


def test_stack_refuses_in_one_line():
    with pytest.raises(ValueError, match=r"head/kernel is \(5, 3\) in clean and") as caught:
        soups.stack([ingredient(0), ingredient(1, classes=4)], ["clean", "linf"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="do not both have batch_stats/norm/mean"):
        soups.stack([ingredient(0), {"params": ingredient(1)["params"]}])
    with pytest.raises(ValueError, match="1 mixture weights for 2 folders"):
        soups.mix_files(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="holds no .npy files"):
        soups.mix_files(["nowhere"], [1.0])


def test_weights_by_path_are_those_of_the_first_pattern():
    stacked = soups.stack(four())
    rows = {"params/conv/.*": [1, 0, 0, 0], "params/.*": [0.1, 0.2, 0.3, 0.4],
            ".*": [0, 0.5, 0.5, 0]}  # fmt: skip
    mixed = soups.mix_by_path(stacked, rows)
    conv, params, rest = (trees.mix(stacked, w) for w in rows.values())
    by_hand = {
        "params": {"conv": conv["params"]["conv"], "head": params["params"]["head"]},
        "batch_stats": rest["batch_stats"],
    }
    chex.assert_trees_all_equal(mixed, by_hand)
    chex.assert_trees_all_equal(
        soups.mix_by_path(stacked, {".*": rows["params/.*"]}), params
    )


@pytest.mark.parametrize(
    "patterns, message",
    [
        (["params/.*"], "no pattern gives weights to batch_stats/norm/mean"),
        ([".*", "params/.*"], "leave nothing to 'params/"),
        ([".*", "parms/.*"], "'parms/.*' matches no parameter; near names: params/"),
    ],
)
def test_weights_by_path_refuse_leaves_and_patterns_left_over(patterns, message):
    with pytest.raises(ValueError, match=message):
        soups.mix_by_path(soups.stack(four()), dict.fromkeys(patterns, [0.25] * 4))


def test_weights_by_path_mix_the_products_of_loras():
    draw = np.random.default_rng(0)
    lora = {"a": draw.normal(size=(2, 1, 5, 1)), "b": draw.normal(size=(2, 1, 1, 3))}
    stacked = {
        "fc1_lora": jax.tree.map(np.float32, lora),
        "bias": np.ones((2, 3), np.float32),
    }
    mixed = soups.mix_by_path(stacked, {".*lora.*": [0.3, 0.7], ".*": [1, 0]})["fc1_lora"]
    update = np.einsum("mdr,mrf->df", mixed["a"], mixed["b"])
    by_hand = np.einsum("k,kmdr,kmrf->df", [0.3, 0.7], lora["a"], lora["b"])
    np.testing.assert_allclose(update, by_hand, atol=1e-6)
    with pytest.raises(ValueError, match="fc1_lora/b must have the same weights"):
        soups.mix_by_path(stacked, {".*/a": [0.3, 0.7], ".*": [1, 0]})


@flax.struct.dataclass
class Pair:
    """A user's own node."""

    first: np.ndarray
    second: np.ndarray


def nnx_state(seed):
    """The parameters of a network of flax's newer kind."""
    return nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(seed)))


TREES = {
    "tuples and lists": lambda leaves: (leaves[0], [leaves[1], {"c": leaves[2]}]),
    "flat": lambda leaves: {"a/b/kernel": leaves[0], "a/c": leaves[1], "d": leaves[2]},
    "frozen": lambda leaves: FrozenDict({"a": {"b": leaves[0]}, "c": leaves[1]}),
    "dataclass": lambda leaves: Pair(leaves[0], (leaves[1], leaves[2])),
    "one leaf": lambda leaves: leaves[0],
}


@pytest.mark.parametrize("kind", TREES)
def test_any_pytree_can_be_mixed(kind, tmp_path):
    draw = np.random.default_rng(0)
    leaves = [[draw.normal(size=n).astype(np.float32) for n in (3, 2, 4)] for _ in "ab"]
    first, second = map(TREES[kind], leaves)
    stacked = soups.stack([first, second])
    half = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, first, second)
    for soup in (
        trees.mix(stacked, (0.5, 0.5)),
        trees.blend(stacked, (0.5, 0.5)),
        soups.mix_by_path(stacked, {".*": (0.5, 0.5)}),
    ):
        assert jax.tree.structure(soup) == jax.tree.structure(first)
        chex.assert_trees_all_close(soup, half, atol=1e-7)
    if kind != "one leaf":  # which has no name for a file
        for name, tree in (("a", first), ("b", second)):
            soups.write_leaves(tmp_path / name, tree)
        mixed = soups.mix_files([tmp_path / "a", tmp_path / "b"], (0.5, 0.5))
        chex.assert_trees_all_close(
            trees.leaves_by_path(mixed), trees.leaves_by_path(half), atol=1e-7
        )


def test_states_of_nnx_can_be_mixed():
    first, second = nnx_state(0), nnx_state(1)
    soup = trees.mix(soups.stack([first, second]), (0.5, 0.5))
    half = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, first, second)
    chex.assert_trees_all_close(soup, half, atol=1e-7)


def test_paths_that_are_there_twice_are_refused():
    with pytest.raises(ValueError, match="two leaves have the path 'a/b'"):
        soups.stack([{"a/b": np.ones(1), "a": {"b": np.ones(1)}}] * 2)
