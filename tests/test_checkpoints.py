"""Checkpoints: keep-N, the best one, other meshes, exact values."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from advadapters import checkpoints, meshes


def state(value):
    return {"a": jnp.full((4, 2), value, jnp.float32), "b": {"step": jnp.int32(value)}}


def abstract(place):
    """Shapes and types of such a state, and where it is to be."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state(0)
    )


def test_the_newest_and_the_best_are_kept(tmp_path, one_device):
    place = meshes.replicated(one_device)
    with checkpoints.Checkpoints(tmp_path, keep=2, best=True) as saved:
        for step, score in ((1, 0.2), (2, 0.9), (3, 0.5), (4, None), (5, 0.4)):
            saved.save(step, state(step), score)
        saved.manager.wait_until_finished()
        assert saved.steps() == [2, 4, 5]
        assert (saved.latest(), saved.best()) == (5, 2)
        found = saved.restore(abstract(place), 2)
    chex.assert_trees_all_equal(found, state(2))


def test_a_part_is_read_alone(tmp_path, one_device):
    """What is not asked for may be of any shape, as an optimizer's state is."""
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(3, state(3) | {"optimizer": (jnp.ones(5), {"count": jnp.int32(1)})})
    part = {"b": abstract(meshes.replicated(one_device))["b"]}
    with checkpoints.Checkpoints(tmp_path, read_only=True) as saved:
        chex.assert_trees_all_equal(saved.restore_part(part, 3), {"b": state(3)["b"]})
        raw = saved.restore_raw(3)
    assert raw.keys() == {"a", "b"}
    np.testing.assert_array_equal(raw["a"], state(3)["a"])


def test_without_best_only_the_newest_are_kept(tmp_path):
    with checkpoints.Checkpoints(tmp_path, keep=1) as saved:
        assert saved.latest() is None
        for step in (10, 20):
            saved.save(step, state(step))
    with checkpoints.Checkpoints(tmp_path, keep=1) as saved:
        assert saved.steps() == [20]


def test_a_state_moves_to_another_mesh(tmp_path, mesh, one_device):
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(1, jax.device_put(state(7), meshes.replicated(mesh)))
    for target in (one_device, mesh):
        place = meshes.replicated(target)
        with checkpoints.Checkpoints(tmp_path) as saved:
            found = saved.restore(abstract(place), 1)
        assert found["a"].sharding.device_set == set(target.devices.flat)
        np.testing.assert_array_equal(found["a"], state(7)["a"])
