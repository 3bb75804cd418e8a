"""Files of adapters: small, on one backbone only, hostile until checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import small

from advadapters import trees
from advadapters.adapters import files
from advadapters.errors import UsageError
from advadapters.models.added import Added
from advadapters.training import states


def variables(seed=0, rank=2):
    """A frozen ViT with LoRAs of two domains."""
    one = Added("lora", "lora", (".*/q", ".*/fc1"), rank, 1.0)
    plain = small.variables(small.model("vit", added=(one,)), seed)
    return states.branches(plain, (".*_lora/.*",), 2, trained=("head/.*",))


def test_what_is_saved_is_restored_on_the_same_backbone(tmp_path):
    tree = variables()
    moved = tree | {"adapters": jax.tree.map(lambda x: x + 1, tree["adapters"])}
    with (tmp_path / "a.npz").open("wb") as file:
        files.save(file, moved)
    found = files.load(tmp_path / "a.npz", tree)
    jax.tree.map(np.testing.assert_array_equal, found["adapters"], moved["adapters"])
    jax.tree.map(np.testing.assert_array_equal, found["frozen"], tree["frozen"])
    frozen = 4 * trees.count(tree["frozen"])
    assert trees.count(tree["frozen"]) > 0
    with np.load(tmp_path / "a.npz") as file:
        names = set(file.files) - {""}
    assert not any(name.startswith("frozen") for name in names) and frozen


def test_another_backbone_and_other_adapters_are_refused(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        files.save(file, variables())
    with pytest.raises(UsageError, match="trained on another backbone"):
        files.load(tmp_path / "a.npz", variables(seed=1))
    nudged = variables()
    path, leaf = next(iter(trees.flatten(nudged["frozen"]).items()))
    flat = trees.flatten(nudged["frozen"]) | {path: leaf.at[(0,) * leaf.ndim].add(1e-6)}
    with pytest.raises(UsageError, match="trained on another backbone"):
        files.load(tmp_path / "a.npz", nudged | {"frozen": trees.unflatten(flat)})
    other = variables() | {"adapters": variables(rank=3)["adapters"]}
    with pytest.raises(UsageError, match="holds other adapters"):
        files.load(tmp_path / "a.npz", other)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text"])
def test_what_is_no_file_of_adapters(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read adapters from"):
        files.load(tmp_path / "a.npz", variables())
    with pytest.raises(UsageError, match="cannot read adapters from"):
        files.load(tmp_path / "none.npz", variables())


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="cannot read adapters from"):
        files.load(tmp_path / "a.npz", variables())


def test_an_array_without_a_fingerprint(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.asarray(jnp.ones(3)))
    with pytest.raises(UsageError, match="cannot read adapters from"):
        files.load(tmp_path / "a.npz", variables())
