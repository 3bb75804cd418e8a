"""Backbones small enough to compile in a second, with random numbers in every leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from advadapters.models import MODELS

SIZES = {
    "vit": "8x2x16x2",
    "resnet": "basic-4x1x1",
    "preact_resnet": "4x1x1",
    "wide_resnet": "10-1",
}


def model(name, size="", channels=1, **fields):
    """A model for images of 8x8 with 5 classes, of the small size unless told another."""
    own = {"patch": 4} if name == "vit" else {}
    fields = dict(classes=5, mean=(0.5,) * channels, std=(0.25,) * channels) | own | fields
    return MODELS[name](size=MODELS[name].read_size(size or SIZES[name]), **fields)


def shapes(model, side=8, **arguments):
    """The variables of a model as shapes; nothing is allocated."""
    images = jax.ShapeDtypeStruct((1, side, side, len(model.mean)), jnp.float32)
    return jax.eval_shape(
        lambda key, images: model.init(key, images, **arguments), jax.random.key(0), images
    )


def variables(model, seed=0):
    """{"params", "batch_stats" if there are any}, no leaf of which hides anything."""
    return jax.tree.map(jnp.asarray, tiny.filled(shapes(model), seed))


def images(count=8, seed=0):
    """[B, 8, 8, 1] in [0, 1]."""
    drawn = np.random.default_rng(seed).uniform(size=(count, 8, 8, 1))
    return jnp.asarray(drawn, jnp.float32)
