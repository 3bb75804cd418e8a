"""Dropout and drop path: each example's mask comes from its own number."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from advadapters.models import layers

NETS = {
    "vit": dict(drop_path=0.5),
    "vit scanned": dict(drop_path=0.5, scan=True, remat=True),
    "preact_resnet": dict(dropout=0.5, norm="group"),
}


def network(name):
    return small.model(name.split()[0], **NETS[name])


def test_drop_zeroes_at_the_rate_and_scales_up_the_rest():
    key, index = jax.random.key(0), jnp.arange(1000)
    rows = layers.drop(jnp.ones((1000, 2, 3)), jnp.float32(0.25), key, index, (1, 1))
    rows = np.asarray(rows).reshape(1000, 6)
    assert (rows == rows[:, :1]).all()
    entries = layers.drop(jnp.ones((1000, 4), jnp.bfloat16), 0.25, key, index, (4,))
    assert entries.dtype == jnp.bfloat16
    entries = np.asarray(entries, np.float32)
    assert not (entries == entries[:, :1]).all()
    for values, kept in ((rows[:, 0], 1 / 0.75), (entries, jnp.bfloat16(1 / 0.75))):
        assert set(np.unique(values)) == {0.0, np.float32(kept)}
        assert abs((values > 0).mean() - 0.75) < 0.04


@pytest.mark.parametrize("name", NETS)
def test_masks_do_not_depend_on_the_split_of_a_batch(name):
    model = network(name)
    variables, images = small.variables(model), small.images()

    @jax.jit
    def run(images, index):
        key = jax.random.key(3)
        rngs = {"drop_path": key, "dropout": key}
        return model.apply(variables, images, train=True, index=index, rngs=rngs)

    whole = run(images, None)
    halves = [run(images[rows], jnp.arange(8)[rows]) for rows in np.arange(8).reshape(2, 4)]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-5)
    # The same image eight times: what differs is the number.
    same = run(jnp.broadcast_to(images[:1], images.shape), jnp.arange(8) + 8)
    assert len(np.unique(np.asarray(same).round(4), axis=0)) > 2


@pytest.mark.parametrize("name", NETS)
def test_randomness_in_training_only(name):
    model = network(name)
    variables, images = small.shapes(model), small.images(2)
    assert jax.eval_shape(model.apply, variables, images).shape == (2, 5)
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda v: model.apply(v, images, train=True), variables)
