"""What is resized against references, and what is folded against the unfolded network."""

import jax
import numpy as np
import pytest
import tiny

from advadapters import trees
from advadapters.models import vit
from advadapters.weights import fitting, resample

TWO = vit.Size(16, 2, 32, 2)
OTHER = dict(
    layer_scale=0.3, class_position=False, qkv_bias=False, patch_bias=False, prompts=2
)


@pytest.mark.parametrize("old, new", [(4, 7), (7, 4), (14, 16), (37, 16), (5, 5)])
def test_bicubic_is_that_of_jax(old, new, rng):
    x = rng.normal(size=(old, 3)).astype(np.float32)
    expected = jax.image.resize(x, (new, 3), "cubic", antialias=True)
    np.testing.assert_allclose(resample.bicubic(old, new) @ x, expected, atol=2e-6)


@pytest.mark.parametrize("old, new", [(4, 7), (7, 4), (14, 16), (6, 6)])
def test_linear_is_that_of_scipy(old, new, rng):
    import scipy.ndimage

    x = rng.normal(size=(old, old, 2))
    expected = scipy.ndimage.zoom(x, (new / old, new / old, 1), order=1)
    found = resample.positions(x.reshape(-1, 2), new, "linear").reshape(new, new, 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("way", resample.WAYS)
def test_constants_stay_and_sizes_alike_change_nothing(way):
    for old, new in ((5, 9), (9, 4), (6, 6)):
        matrix = resample.WAYS[way](old, new)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix, np.eye(6), atol=1e-12)


def test_a_resized_patch_meets_the_resized_kernel_as_before(rng):
    """FlexiViT's equation 3, which the pseudo-inverse solves where patches grow."""
    kernel, patch = rng.normal(size=(4 * 4 * 3, 8)), rng.normal(size=(4, 4, 3))
    matrix = resample.bicubic(4, 6)
    larger = np.einsum("ai,bj,ijc->abc", matrix, matrix, patch)
    resized = resample.patches(kernel.astype(np.float32), 4, 6, "bicubic")
    found = larger.reshape(-1) @ resized
    np.testing.assert_allclose(found, patch.reshape(-1) @ kernel, rtol=1e-4, atol=1e-4)


def shapes(net):
    tree = jax.eval_shape(net.init, jax.random.key(0))["params"]
    return {path: leaf.shape for path, leaf in trees.flatten(tree).items()}


def test_what_is_folded_computes_the_same():
    """A network with all that can be folded, as one that has none of it."""
    theirs = tiny.network(size=TWO, **OTHER)
    ours = tiny.network(size=TWO, prompts=2, scan=True)
    params = tiny.drawn(theirs, 0)["params"]
    found = fitting.fit_vit(trees.flatten(params), shapes(ours), 1, "bicubic")
    assert set(found.fates.values()) == {"folded"}
    assert {"blocks/layer_scale1/gamma", "blocks/attn/proj/kernel", "pos_embed"} <= set(
        found.fates
    )
    images = tiny.batch()["images"]
    expected = jax.jit(theirs.apply)({"params": params, "batch_stats": {}}, images)
    tree = {"params": trees.unflatten(found.leaves), "batch_stats": {}}
    logits = jax.jit(ours.apply)(tree, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_class_position_that_is_not_there_here_goes_into_the_token():
    theirs = tiny.network(size=TWO, pool="class")
    ours = tiny.network(size=TWO, pool="class", class_position=False)
    params = tiny.drawn(theirs, 0)["params"]
    found = fitting.fit_vit(trees.flatten(params), shapes(ours), 1, "bicubic")
    assert found.fates == {"class_token": "folded", "pos_embed": "folded"}
    images = tiny.batch()["images"]
    expected = jax.jit(theirs.apply)({"params": params, "batch_stats": {}}, images)
    tree = {"params": trees.unflatten(found.leaves), "batch_stats": {}}
    np.testing.assert_allclose(jax.jit(ours.apply)(tree, images), expected, atol=1e-6)


@pytest.mark.parametrize("path, side", [("patch_embed/kernel", 0), ("stem/kernel", 3)])
def test_kernels_for_other_colours(path, side, rng):
    """A gray image meets the summed kernel as its three equal colours met the kernel, and
    a colour image the shared kernel as its mean met the gray one."""
    shape = (3, 3, 3, 5) if side else (4 * 4 * 3, 5)
    kernel = rng.normal(size=shape).astype(np.float32)
    gray = (3, 3, 1, 5) if side else (4 * 4, 5)
    leaves, fates = {path: kernel}, {}
    fitting.recolour(leaves, {path: gray}, fates)
    assert fates == {path: "recoloured"} and leaves[path].shape == gray
    pixels = rng.normal(size=(3 if side else 4,) * 2)
    as_colours = np.repeat(pixels[..., None], 3, axis=-1).reshape(-1)
    expected = as_colours @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(
        pixels.reshape(-1) @ leaves[path].reshape(-1, 5), expected, 1e-5
    )
    back = {path: leaves[path]}
    fitting.recolour(back, {path: shape}, fates)
    image = rng.normal(size=(*pixels.shape, 3))
    expected = image.mean(-1).reshape(-1) @ leaves[path].reshape(-1, 5)
    np.testing.assert_allclose(
        image.reshape(-1) @ back[path].reshape(-1, 5), expected, 1e-4
    )
    same, none = {path: kernel}, {}
    fitting.recolour(same, {path: shape}, none)
    assert not none and same[path] is kernel


def test_colours_and_patches_change_together():
    """The kernel of 4x4 patches in colour for 8x8 patches in gray."""
    flat = trees.flatten(tiny.drawn(tiny.network(size=TWO), 0)["params"])
    flat["patch_embed/kernel"] = np.repeat(flat["patch_embed/kernel"], 3, axis=0)
    here = shapes(tiny.network(size=TWO)) | {"patch_embed/kernel": (8 * 8, 16)}
    found = fitting.fit_vit(flat, here, 1, "bicubic")
    assert found.fates["patch_embed/kernel"] == "recoloured"
    assert found.leaves["patch_embed/kernel"].shape == (64, 16)


def test_only_positions_and_patches_are_resized():
    flat = trees.flatten(tiny.drawn(tiny.network(size=TWO), 0)["params"])
    here = shapes(tiny.network(size=TWO)) | {
        "patch_embed/kernel": (8 * 8, 16), "pos_embed": (1, 26, 16), "head/bias": (7,)
    }  # fmt: skip
    found = fitting.fit_vit(flat, here, 1, "bicubic")
    assert found.fates == {"patch_embed/kernel": "resampled", "pos_embed": "resampled"}
    assert found.leaves["patch_embed/kernel"].shape == (64, 16)
    assert found.leaves["pos_embed"].shape == (1, 26, 16)
    np.testing.assert_array_equal(found.leaves["pos_embed"][:, 0], flat["pos_embed"][:, 0])
    same = set(flat) - set(found.fates)
    assert all(found.leaves[path] is flat[path] for path in same)
