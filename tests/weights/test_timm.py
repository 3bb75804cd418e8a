"""timm's transformers with random weights against ours, by their files."""

import numpy as np
import pytest
from weights import pretrained

from advadapters import weights as files
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
