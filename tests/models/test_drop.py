"""Dropout and drop path: each example's mask comes from its own number."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from advadapters.models import layers

NETS = {
    "vit": dict(drop_path=0.5),
    "vit scanned": dict(drop_path=0.5, scan=True, remat="full"),
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


def slopes_of(model, variables, images, index=None, keep=None, key=0, train=False):
    """(gradient of the sum of logits by the images, logits)."""
    keep = keep if keep is None else jnp.full(len(images), keep)
    return compiled_slopes(model, train, images, variables, index, keep, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
@functools.partial(jax.grad, argnums=2, has_aux=True)
def compiled_slopes(model, train, images, variables, index, keep, key):
    """What `slopes_of` returns: one program for all that differs in numbers alone."""
    rngs = {"gradient_drop": jax.random.key(key), "drop_path": jax.random.key(9)}
    logits = model.apply(
        variables, images, train=train, index=index, gradient_keep=keep, rngs=rngs
    )
    return logits.sum(), logits


def test_without_branches_the_gradient_is_that_of_the_skip_connections():
    """An independent network: embedding, a constant, mean of tokens, norm and head."""
    model, images = small.model("vit"), small.images()
    variables = small.variables(model)
    params = variables["params"]
    run = jax.jit(functools.partial(model.apply, capture_intermediates=True))
    _, seen = run(variables, images)
    last = seen["intermediates"]["blocks_1"]["__call__"][0][0][:, 1:]

    def embedded(images):
        tiles = images.reshape(8, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(8, 4, 16)
        embed = params["patch_embed"]
        return (tiles - 0.5) / 0.25 @ embed["kernel"] + embed["bias"]

    branches = last - embedded(images)

    def linear_path(images):
        x = jnp.mean(embedded(images) + branches, axis=1)
        x = (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1e-6)
        x = x * params["norm"]["scale"] + params["norm"]["bias"]
        logits = x @ params["head"]["kernel"] + params["head"]["bias"]
        return logits.sum(), logits

    expected, logits = jax.jit(jax.grad(linear_path, has_aux=True))(images)
    found, same = slopes_of(model, variables, images, keep=0.0)
    np.testing.assert_allclose(same, logits, atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plain, _ = slopes_of(model, variables, images)
    assert np.abs(plain - found).max() > 1e-2


def test_each_branch_of_each_example_draws_whether_its_gradient_flows():
    """Two blocks of two branches: 16 gradients, all equally likely for keep = 1/2."""
    model = small.model("vit")
    images = jnp.broadcast_to(small.images(1), (512, 8, 8, 1))
    rows, _ = slopes_of(model, small.variables(model), images, keep=0.5)
    rows = np.asarray(rows).reshape(512, 64)
    kinds, counts = [], []
    for row in rows:
        near = [k for k, kind in enumerate(kinds) if np.abs(kind - row).max() < 1e-5]
        if near:
            counts[near[0]] += 1
        else:
            kinds.append(row)
            counts.append(1)
    # 32 of each, with a standard deviation of 5.5.
    assert len(kinds) == 16 and 8 < min(counts) and max(counts) < 60
    ends = [
        slopes_of(model, small.variables(model), images[:1], keep=keep)[0].reshape(64)
        for keep in (None, 0.0)
    ]
    for end in ends:
        assert min(np.abs(kind - end).max() for kind in kinds) < 1e-5


@pytest.mark.parametrize("name, train", [("vit", True), ("vit scanned", False)])
def test_gradients_that_are_dropped_leave_the_logits_alone(name, train):
    model = network(name)
    variables, images = small.variables(model), small.images()
    run = functools.partial(slopes_of, model, variables, train=train)
    plain, logits = run(images)
    slopes, same = run(images, keep=0.5)
    np.testing.assert_array_equal(same, logits)
    assert (jnp.abs(slopes - plain).max((1, 2, 3)) > 1e-3).sum() >= 3
    # Another program, which may round otherwise.
    np.testing.assert_allclose(run(images, keep=1.0)[0], plain, atol=1e-5)
    assert (run(images, keep=0.5, key=1)[0] != slopes).any()
    half = run(images[4:], jnp.arange(4, 8), keep=0.5)[0]
    np.testing.assert_allclose(half, slopes[4:], atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_randomness_in_training_only(name):
    model = network(name)
    variables, images = small.shapes(model), small.images(2)
    assert jax.eval_shape(model.apply, variables, images).shape == (2, 5)
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda v: model.apply(v, images, train=True), variables)
