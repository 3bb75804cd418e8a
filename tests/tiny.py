"""A network and a batch small enough for every test that needs one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import networks, trees
from advadapters.models import vit


@functools.cache
def network(**changes):
    """A one-block ViT of width 16 for 8x8 gray images and 5 classes."""
    fields = dict(size=vit.Size(16, 1, 32, 2), classes=5, patch=4, mean=(0.5,), std=(0.25,))
    return networks.make_network(vit.ViT(**(fields | changes)), (8, 8, 1))


def plain(net, seed=0):
    """A network whose parameters are all random, so that no zero hides anything.

    {"params", "batch_stats"}, as `net.init` gives it.
    """
    # Arrays of one's own: a training step that is given them may throw them away.
    return jax.tree.map(jnp.array, drawn(net, seed))


@functools.cache
def drawn(net, seed):
    """What `plain` returns, as numpy."""
    return filled(jax.eval_shape(net.init, jax.random.key(0)), seed)


def filled(shapes, seed):
    """Random numbers for a tree of shapes, about as large as a network starts with.

    By numpy: a program that draws each leaf takes a second to compile.
    """
    draw = np.random.default_rng(seed)

    def fill(path, leaf):
        if path.endswith("var"):
            return draw.uniform(0.5, 1.5, leaf.shape)
        noise = draw.normal(size=leaf.shape)
        if path.endswith("kernel"):
            return noise / np.sqrt(np.prod(leaf.shape[:-1]))
        return path.endswith("scale") + 0.1 * noise

    flat = trees.flatten(shapes)
    return trees.unflatten({path: np.float32(fill(path, x)) for path, x in flat.items()})


def relatives(net, count, spread=0.1):
    """[count, ...]: networks that are one plus normal noise of this size in every leaf."""
    draw = np.random.default_rng(0)

    def apart(leaf):
        noise = spread * draw.normal(size=(count, *leaf.shape))
        return jnp.asarray(leaf + noise, leaf.dtype)

    return jax.tree.map(apart, plain(net))


def batch(size=8, seed=0):
    """{"images" [B, 8, 8, 1] in [0, 1], "labels" [B], "index" [B]}."""
    draw = np.random.default_rng(seed)
    return {
        "images": jnp.asarray(draw.uniform(size=(size, 8, 8, 1)), jnp.float32),
        "labels": jnp.asarray(draw.integers(5, size=size)),
        "index": jnp.arange(size),
    }


def raw_batch(size=8, seed=0):
    """The same as the pipeline gives it: uint8 images, numpy arrays."""
    draw = np.random.default_rng(seed)
    return {
        "images": draw.integers(0, 256, (size, 8, 8, 1)).astype(np.uint8),
        "labels": draw.integers(5, size=size).astype(np.int32),
        "index": np.arange(size, dtype=np.int32),
    }
