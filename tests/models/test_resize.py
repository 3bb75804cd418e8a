"""Images that are resized inside the model: torch's nearest rows, and what attacks see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from advadapters.attacks.pgd import pgd
from advadapters.models import MODELS, layers

# floor(i n / side), by hand.
ROWS = {
    (3, 7): [0, 0, 0, 1, 1, 2, 2],
    (5, 8): [0, 0, 1, 1, 2, 3, 3, 4],
    (4, 10): [0, 0, 0, 1, 1, 2, 2, 2, 3, 3],
    (8, 6): [0, 1, 2, 4, 5, 6],
    (2, 4): [0, 0, 1, 1],
    (1, 3): [0, 0, 0],
}


@pytest.mark.parametrize("n, side", ROWS)
def test_rows_and_columns(n, side, rng):
    images = rng.normal(size=(2, n, n, 3)).astype(np.float32)
    rows = ROWS[n, side]
    expected = images[:, rows][:, :, rows]
    np.testing.assert_array_equal(layers.resize(jnp.asarray(images), side), expected)


@pytest.mark.parametrize("n, side", [(32, 224), (28, 224), (30, 224), (33, 96), (9, 25)])
def test_the_closed_form(n, side):
    """Row floor(i n / side) in integers, of images that are not square."""
    images = np.arange(n * 5, dtype=np.float32).reshape(1, n, 5, 1)
    rows, columns = (np.arange(side) * m // side for m in (n, 5))
    found = jax.jit(layers.resize, static_argnums=1)(images, side)
    np.testing.assert_array_equal(found, images[:, rows][:, :, columns])


@pytest.mark.parametrize("n, side", [(3, 7), (8, 6), (4, 8)])
def test_the_gradient_of_a_pixel_is_the_sum_over_its_copies(n, side, rng):
    weights = rng.normal(size=(1, side, side, 2)).astype(np.float32)
    slope = jax.grad(lambda x: jnp.sum(layers.resize(x, side) * weights))
    found = slope(jnp.zeros((1, n, n, 2)))
    rows = np.arange(side) * n // side
    expected = np.zeros((1, n, n, 2))
    for i in range(side):
        for j in range(side):
            expected[0, rows[i], rows[j]] += weights[0, i, j]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_no_resizing_is_no_operation():
    images = small.images()
    assert layers.resize(images, 0) is images
    standard = jax.make_jaxpr(lambda x: (x - jnp.array((0.5,))) / jnp.array((0.25,)))
    off = jax.make_jaxpr(lambda x: layers.standardize(x, (0.5,), (0.25,), 0))
    assert str(standard(images)) == str(off(images))


@pytest.mark.parametrize("name", MODELS)
def test_the_model_sees_large_images_and_the_attack_small_ones(name):
    """The logits and the parameters are those of images that were resized before."""
    side = 20
    inside, outside = small.model(name, resize=side), small.model(name)
    plain = jax.jit(inside.init)(jax.random.key(0), small.images(2))
    images, rows = small.images(2), np.arange(side) * 8 // side
    large = images[:, rows][:, :, rows]
    there = jax.eval_shape(outside.init, jax.random.key(0), large)
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, there)
    logits = jax.jit(inside.apply)(plain, images)
    np.testing.assert_allclose(logits, jax.jit(outside.apply)(plain, large), atol=1e-5)
    assert np.abs(logits - jax.jit(outside.apply)(plain, large * 0)).max() > 1e-3

    def attack(images):
        return pgd(
            lambda x: inside.apply(plain, x), images, jnp.array([0, 1]), jax.random.key(0),
            norm="linf", eps=0.1, steps=2,
        )  # fmt: skip

    found = jax.jit(attack)(images)
    assert found.shape == images.shape and found.dtype == images.dtype
    moved = np.abs(found - images)
    assert 0.05 < moved.max() <= 0.1 + 1e-6
    assert (moved > 0).mean() > 0.7  # some pixels stay at 0 or 1
