"""Damaged checkpoints: other weights never come back, and an older state takes over."""

import gc
import os
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advadapters import checkpoints, meshes
from advadapters.errors import UsageError

# Orbax leaves coroutines behind where reading fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
STEPS = (10, 20, 30)
FLIPS = int(os.environ.get("ADVADAPTERS_FLIPS", "1"))  # of bits, in each file


def state(step):
    """A state with a backbone, averages and an optimizer's tuple."""
    rng = np.random.default_rng(step)
    tree = {"dense": {"kernel": jnp.asarray(rng.normal(size=(64, 33)), jnp.float32)}}
    return {
        "step": jnp.int32(step),
        "variables": {"shared": tree},
        "ema": jax.tree.map(lambda leaf: leaf * 0.9, tree),
        "optimizer": (jnp.ones(5), {"count": jnp.int32(1)}),
    }


@pytest.fixture(autouse=True)
def nothing_left():
    """Lets what Orbax leaves behind be gone before another test begins."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with three states."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with checkpoints.Checkpoints(folder, keep=3) as store:
        for step in STEPS:
            store.save(step, state(step))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of that folder, to be damaged."""
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def files_of(folder, step=STEPS[-1]):
    """All files of a state."""
    return sorted(p for p in (folder / str(step)).rglob("*") if p.is_file())


def read_both(folder, one_device):
    """(step, of training; step, of evaluation): that which is the newest to either.

    Asserts that the values are those that were saved.
    """
    place = meshes.replicated(one_device)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state(0)
    )
    with checkpoints.Checkpoints(folder, keep=3, read_only=True) as store:
        raw, evaluated = store.read("latest", store.restore_raw, "here")
    expected = state(evaluated)
    expected.pop("optimizer")
    chex.assert_trees_all_equal(raw, expected)
    with checkpoints.Checkpoints(folder, keep=3) as store:
        whole, trained = store.newest(lambda step: store.restore(abstract, step), "here")
    chex.assert_trees_all_equal(whole, state(trained))
    return trained, evaluated


def test_no_flipped_bit_comes_back(saved, tmp_path, one_device):
    """Each file of the newest state in turn; the older one is read, or the same values."""
    rng = np.random.default_rng(0)
    for file in files_of(saved):
        for _ in range(FLIPS):
            shutil.rmtree(tmp_path, ignore_errors=True)
            shutil.copytree(saved, tmp_path / "checkpoints")
            place = tmp_path / "checkpoints" / file.relative_to(saved)
            raw = bytearray(place.read_bytes())
            if not raw:
                continue
            bit = int(rng.integers(len(raw) * 8))
            raw[bit // 8] ^= 1 << (bit % 8)
            place.write_bytes(raw)
            steps = read_both(tmp_path / "checkpoints", one_device)
            assert set(steps) <= {20, 30}, (file, bit)


@pytest.mark.parametrize("cut", (0, 0.5, None))
def test_no_file_that_is_cut_or_gone_comes_back(cut, saved, tmp_path, one_device):
    for file in files_of(saved):
        shutil.rmtree(tmp_path, ignore_errors=True)
        shutil.copytree(saved, tmp_path / "checkpoints")
        place = tmp_path / "checkpoints" / file.relative_to(saved)
        if cut is None:
            place.unlink()
        else:
            place.write_bytes(place.read_bytes()[: int(cut * place.stat().st_size)])
        assert set(read_both(tmp_path / "checkpoints", one_device)) <= {20, 30}, file


@pytest.mark.parametrize("what", ("all", "item", "renamed"))
def test_whole_folders(what, copy, one_device, capsys):
    newest = copy / "30"
    if what == "all":
        shutil.rmtree(newest)
        newest.mkdir()
    elif what == "item":
        shutil.rmtree(newest / "default")
    else:
        newest.rename(copy / "99")
    assert read_both(copy, one_device) == (20, 20)
    output = capsys.readouterr().out
    if what == "renamed":
        assert "checkpoint 99" in output and "was renamed" in output
        assert (copy.parent / "damaged" / "99").exists()
    assert not (copy / "99").exists()


def test_a_damaged_state_that_is_named_is_refused(copy):
    for file in files_of(copy, 20):
        if file.parent.name == "d":
            file.write_bytes(b"")
    with checkpoints.Checkpoints(copy, read_only=True) as store:
        with pytest.raises(checkpoints.Damaged, match="checkpoint 20 of .* cannot be read"):
            store.read("20", store.restore_raw, "here")
    assert pathlib.Path(copy / "20").exists()


def test_nothing_is_moved_where_nothing_can_be_read(copy):
    for step in STEPS:
        shutil.rmtree(copy / str(step) / "default")
    with checkpoints.Checkpoints(copy) as store:
        with pytest.raises(UsageError, match="has no checkpoint that can be used"):
            store.newest(store.restore_raw, "here")
    assert all((copy / str(step)).exists() for step in STEPS)


def test_what_is_not_finite_is_not_saved(tmp_path):
    with checkpoints.Checkpoints(tmp_path) as store:
        store.save(1, state(1))
        bad = state(2)
        bad["ema"]["dense"]["kernel"] = bad["ema"]["dense"]["kernel"].at[0, 0].set(jnp.nan)
        with pytest.raises(checkpoints.NotFinite, match="ema/dense/kernel.*after step 1"):
            store.save(2, bad)
        assert store.steps() == [1]


def test_the_last_state_that_was_read_back_stays(tmp_path, capsys, monkeypatch):
    """Where newer ones cannot be read back, it outlives them."""
    with checkpoints.Checkpoints(tmp_path / "c", keep=1) as store:
        store.save(1, state(1))
        store.save(2, state(2))
        store.manager.wait_until_finished()
        for file in files_of(tmp_path / "c", 2):
            if file.parent.name == "d":
                file.write_bytes(b"")
        store.save(3, state(3))
        store.manager.wait_until_finished()
        assert store.steps() == [1, 3]
        assert "checkpoint 2" in capsys.readouterr().out
    with checkpoints.Checkpoints(tmp_path / "c", keep=1) as store:
        assert store.steps() == [3]  # it was read back at the end
