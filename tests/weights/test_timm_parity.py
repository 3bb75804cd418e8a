"""timm's transformers with random weights against ours, by their files."""

import json

import numpy as np
import pytest
from weights import pretrained

from advadapters import weights as files
from advadapters.weights import layouts, resample
from advadapters.weights.layouts import Geometry

timm = pytest.importorskip("timm")
safetensors_torch = pytest.importorskip("safetensors.torch")
SMALL = dict(img_size=16, patch_size=4, num_classes=pretrained.CLASSES) | pretrained.SIZE

# Arguments of timm's VisionTransformer, and settings of ours that the file does not show.
KINDS = {
    "augreg": ({}, dict(pool="class")),
    "mean, then norm": (dict(global_pool="avg"), {}),
    "norm, then mean": (
        dict(global_pool="avg", fc_norm=False, class_token=False),
        dict(pool="normed_tokens"),
    ),
    "deit3": (dict(no_embed_class=True, init_values=0.1), dict(pool="class")),
    "dinov2": (dict(init_values=0.1), dict(pool="class")),
    "dinov2 with registers": (
        dict(init_values=0.1, reg_tokens=4, no_embed_class=True),
        dict(pool="class"),
    ),
    "registers with positions": (dict(reg_tokens=1), dict(pool="class")),
    "clip": (dict(pre_norm=True, eps=1e-5), dict(pool="class", norm_eps=1e-5)),
    "quick": (dict(act_layer="quick_gelu"), dict(pool="class", gelu="quick")),
    "tanh": (dict(act_layer="gelu_tanh"), dict(pool="class", gelu="tanh")),
    "no biases": (dict(qkv_bias=False), dict(pool="class")),
}


def network(arguments):
    """timm's module, stirred."""
    import functools

    import torch
    from timm.models.vision_transformer import VisionTransformer

    arguments = dict(arguments)
    norm = functools.partial(torch.nn.LayerNorm, eps=arguments.pop("eps", 1e-6))
    return pretrained.stirred(VisionTransformer(**SMALL, **arguments, norm_layer=norm))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_timms(kind, tmp_path):
    arguments, hidden = KINDS[kind]
    module = network(arguments)
    path = tmp_path / "any.name"
    safetensors_torch.save_file(module.state_dict(), path)
    read = files.read(path)
    assert read.family == "timm" and read.kind == "safetensors" and not read.ignored
    told = {k: v for k, v in hidden.items() if k not in read.model}
    fitted, own = read.leaves, pretrained.ours(read, **(hidden | told))
    if kind == "registers with positions":
        from advadapters.weights import fitting

        here = {k: v.shape for k, v in read.leaves["params"].items()}
        found = fitting.fit_vit(
            read.leaves["params"], here | {"pos_embed": (1, 17, 32)}, 3, "bicubic"
        )
        assert found.fates == {"prompt": "folded", "pos_embed": "folded"}
        fitted = {"params": found.leaves, "batch_stats": {}}
    pictures = pretrained.images()
    found = pretrained.logits(own, fitted, pictures)
    expected = pretrained.torch_logits(module, pictures)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.1  # the images matter


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_bitwise(kind, tmp_path):
    arguments, hidden = KINDS[kind]
    state = {name: x.numpy() for name, x in network(arguments).state_dict().items()}
    path = tmp_path / "w.safetensors"
    safetensors_torch.save_file(network(arguments).state_dict(), path)
    read = files.read(path)
    written = files.write(
        "timm", read.leaves, Geometry(heads=2, patch=4), hidden | read.model
    )
    assert written.keys() == state.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(array, state[name])


@pytest.mark.parametrize("old, new", [(7, 4), (4, 7), (14, 16)])
def test_resizing_is_timms(old, new, rng):
    import torch
    from timm.layers import resample_abs_pos_embed
    from timm.layers.patch_embed import resample_patch_embed

    grid = rng.normal(size=(old * old, 8)).astype(np.float32)
    expected = resample_abs_pos_embed(
        torch.tensor(grid)[None], (new, new), num_prefix_tokens=0
    )
    found = resample.positions(grid, new, "bicubic")
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-5)
    kernel = rng.normal(size=(8, 3, old, old)).astype(np.float32)
    expected = resample_patch_embed(torch.tensor(kernel), [new, new]).numpy()
    rows = layouts.read("patches", [kernel], ["kernel"])
    found = resample.patches(rows, old, new, "bicubic")
    written = layouts.write("patches", found, Geometry(patch=new))[0]
    np.testing.assert_allclose(written, expected, atol=1e-4, rtol=1e-4)


def test_cubic_is_torchs(rng):
    import torch

    for old, new in ((37, 16), (5, 9), (6, 6)):
        grid = rng.normal(size=(old * old, 3)).astype(np.float32)
        square = torch.tensor(grid.reshape(1, old, old, 3).transpose(0, 3, 1, 2))
        resized = torch.nn.functional.interpolate(square, (new, new), mode="bicubic")
        expected = resized.numpy()[0].transpose(1, 2, 0).reshape(-1, 3)
        found = resample.positions(grid, new, "cubic")
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_timm_says_of_a_network_is_read(tmp_path):
    """The config.json that timm writes beside the weights."""
    inputs = dict(
        input_size=[3, 16, 16], mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.3], crop_pct=0.9,
        interpolation="bicubic",
    )  # fmt: skip
    told = dict(
        architecture="vit_x_quickgelu_16", global_pool="token", pretrained_cfg=inputs
    )
    (tmp_path / "config.json").write_text(json.dumps(told))
    state = network({}).state_dict()
    safetensors_torch.save_file(state, tmp_path / "model.safetensors")
    read = files.read(tmp_path)
    assert read.data == dict(image_size=16, crop_ratio=0.9, interpolation="bicubic")
    assert read.model["mean"] == (0.4, 0.5, 0.6) and read.model["std"] == (0.2, 0.2, 0.3)
    assert read.model["gelu"] == "quick" and read.model["pool"] == "class"
