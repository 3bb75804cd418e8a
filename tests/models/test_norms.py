"""Norms: running statistics, groups, and statistics over devices and views."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.sharding import PartitionSpec as P

from advadapters import trees
from advadapters.errors import UsageError
from advadapters.models import layers

make = functools.partial(
    layers.norm, train=True, stats_axes=(), dtype=jnp.float32, name=None
)


@pytest.mark.parametrize(
    "channels, groups",
    [(1, 1), (2, 1), (3, 1), (9, 3), (8, 4), (32, 16), (48, 24), (64, 32), (160, 32)],
)
def test_groups_have_more_than_one_channel(channels, groups):
    assert make("group", channels).num_groups == groups
    assert make("layer", channels).num_groups == 1


def test_unknown_norm():
    with pytest.raises(UsageError, match="unknown norm 'instance'; there are: group"):
        make("instance", 8)


def test_running_statistics(rng):
    x = rng.normal(2.0, 3.0, size=(6, 4, 4, 2)).astype(np.float32)
    start = {"mean": jnp.array([1.0, -1.0]), "var": jnp.array([2.0, 0.5])}
    affine = {"scale": jnp.array([2.0, 3.0]), "bias": jnp.array([0.5, 0.0])}
    variables = {"params": affine, "batch_stats": start}
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    y, changed = make("batch", 2).apply(variables, x, mutable="batch_stats")
    expected = (x - mean) / np.sqrt(var + 1e-5) * affine["scale"] + affine["bias"]
    np.testing.assert_allclose(y, expected, atol=1e-4)
    for name, seen in (("mean", mean), ("var", var)):
        moved = 0.9 * start[name] + 0.1 * seen
        np.testing.assert_allclose(changed["batch_stats"][name], moved, rtol=1e-5)
    y, changed = make("batch", 2, train=False).apply(variables, x, mutable="batch_stats")
    expected = (x - start["mean"]) / np.sqrt(start["var"] + 1e-5)
    np.testing.assert_allclose(y, expected * affine["scale"] + affine["bias"], atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], start)


@pytest.mark.parametrize("name", small.SIZES)
def test_statistics_move_in_training_only(name):
    model = small.model(name, norm="batch")
    variables, images = small.variables(model), small.images()

    def run(variables, train):
        return model.apply(variables, images, train=train, mutable="batch_stats")

    run = jax.jit(run, static_argnums=1)
    _, trained = run(variables, True)
    _, evaluated = run(variables, False)
    before = trees.flatten(variables["batch_stats"])
    for path, leaf in trees.flatten(evaluated["batch_stats"]).items():
        np.testing.assert_array_equal(leaf, before[path])
    after = trees.flatten(trained["batch_stats"])
    assert before.keys() == after.keys()
    assert all(np.any(after[path] != before[path]) for path in before)


def test_no_axes_are_needed_to_initialise_or_to_evaluate():
    for name in small.SIZES:
        model = small.model(name, norm="batch", stats_axes=("views", "data"))
        variables = small.shapes(model, train=True)
        assert jax.tree.structure(variables) == jax.tree.structure(small.shapes(model))
        logits = jax.eval_shape(model.apply, variables, small.images(2))
        assert logits.shape == (2, 5)


def objective(model):
    """(variables, images) -> (gradient of a mean over examples, (logits, statistics))."""

    def loss(params, variables, images):
        logits, changed = model.apply(
            variables | {"params": params}, images, train=True, mutable="batch_stats"
        )
        return jnp.mean(jnp.sum(jnp.sin(logits), axis=1)), (logits, changed)

    slope = jax.grad(loss, has_aux=True)
    return lambda variables, images: slope(variables["params"], variables, images)


def close(trees_found, trees_expected):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        trees_found,
        trees_expected,
    )


@pytest.mark.parametrize(
    "name, fields", [("resnet", {}), ("wide_resnet", {}), ("vit", dict(scan=True))]
)
def test_eight_devices_have_the_statistics_and_gradients_of_one(name, fields, mesh):
    one = small.model(name, norm="batch", **fields)
    variables, images = small.variables(one), small.images(16)
    slopes, (logits, changed) = jax.jit(objective(one))(variables, images)

    def local(variables, images):
        slopes, seen = objective(one.clone(stats_axes=("data",)))(variables, images)
        return jax.lax.pmean(slopes, "data"), seen

    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=(P(), (P("data"), P())),
        check_vma=False,
    )
    close(jax.jit(spread)(variables, images), (slopes, (logits, changed)))


def test_views_and_devices_are_pooled_together(mesh):
    """Two views of eight images each, under vmap on every device: sixteen images."""
    one = small.model("preact_resnet")
    variables, images = small.variables(one), small.images(16)
    slopes, (logits, changed) = jax.jit(objective(one))(variables, images)
    gradient = objective(one.clone(stats_axes=("views", "data")))

    def local(variables, images):
        slopes, seen = jax.vmap(gradient, in_axes=(None, 0), axis_name="views")(
            variables, images
        )
        mean = jax.tree.map(functools.partial(jnp.mean, axis=0), slopes)
        return jax.lax.pmean(mean, "data"), seen

    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P(None, "data")),
        out_specs=(P(), (P(None, "data"), P())),
        check_vma=False,
    )
    found, (rows, stats) = jax.jit(spread)(
        variables, images.reshape(2, 8, *images.shape[1:])
    )
    close((found, rows.reshape(logits.shape)), (slopes, logits))
    for view in range(2):
        close(jax.tree.map(lambda leaf, v=view: leaf[v], stats), changed)


@pytest.mark.parametrize("norm", ("group", "layer"))
def test_other_norms_ignore_the_batch_in_training_too(norm):
    model = small.model("wide_resnet", norm=norm)
    variables, images = small.variables(model), small.images()
    run = jax.jit(functools.partial(model.apply, train=True))
    other = images.at[4:].set(0.0)
    np.testing.assert_array_equal(run(variables, images)[:4], run(variables, other)[:4])
