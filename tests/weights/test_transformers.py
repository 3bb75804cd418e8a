"""transformers' networks with random weights against ours, by the folders they write."""

import json

import numpy as np
import pytest
from weights import pretrained

from advadapters import weights
from advadapters.errors import UsageError
from advadapters.weights import fitting

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")
SMALL = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    image_size=16, patch_size=4, num_labels=pretrained.CLASSES,
)  # fmt: skip

# The class, its config's, more of the config, and what ours is told besides.
KINDS = {
    "vit": ("ViTForImageClassification", "ViTConfig", {}, {}),
    "tanh": ("ViTForImageClassification", "ViTConfig", dict(hidden_act="gelu_new"), {}),
    "no biases": ("ViTForImageClassification", "ViTConfig", dict(qkv_bias=False), {}),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {}, {}),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", dict(mlp_ratio=2), {}),
    "registers": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        dict(mlp_ratio=2, num_register_tokens=3),
        {},
    ),
}


def network(kind):
    """The stirred module of a row."""
    name, config, more, _ = KINDS[kind]
    made = getattr(transformers, config)(**SMALL, **more)
    return pretrained.stirred(getattr(transformers, name)(made))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind, tmp_path):
    module = network(kind)
    module.save_pretrained(tmp_path)
    inputs = dict(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3, do_center_crop=True,
        size=dict(shortest_edge=20), crop_size=dict(height=16, width=16),
    )  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(inputs))
    read = weights.read(tmp_path)
    assert read.family in ("transformers ViT", "transformers DINOv2")
    assert read.data == dict(image_size=16, crop_ratio=0.8, interpolation="bicubic")
    assert read.model["mean"] == (0.5,) * 3 and read.model["heads"] == 2
    assert all("mask_token" in name for name in read.ignored)
    leaves = read.leaves
    if kind == "deit":  # the distillation token's position goes into the token
        here = {k: v.shape for k, v in leaves["params"].items()} | {
            "pos_embed": (1, 17, 32)
        }
        fitted = fitting.fit_vit(leaves["params"], here, 3, "bicubic")
        assert fitted.fates == {"prompt": "folded", "pos_embed": "folded"}
        leaves = leaves | {"params": fitted.leaves}
    pictures = pretrained.images()
    own = pretrained.ours(read)
    expected = pretrained.torch_logits(module, pictures)
    np.testing.assert_allclose(
        pretrained.logits(own, leaves, pictures), expected, atol=2e-5, rtol=1e-5
    )
    assert np.ptp(expected, axis=0).max() > 0.1


@pytest.mark.parametrize("whole", [False, True], ids=["vision", "whole"])
def test_the_vision_tower_of_clip(whole, tmp_path):
    """Its projection stands where a head would be, and has no bias."""
    small = {k: v for k, v in SMALL.items() if k != "num_labels"} | dict(projection_dim=5)
    vision = transformers.CLIPVisionConfig(**small)
    if whole:
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        text = text | {"num_attention_heads": 2, "vocab_size": 99}
        config = transformers.CLIPConfig(
            text_config=text, vision_config=vision.to_dict(), projection_dim=5
        )
        module = pretrained.stirred(transformers.CLIPModel(config))
    else:
        module = pretrained.stirred(transformers.CLIPVisionModelWithProjection(vision))
    module.save_pretrained(tmp_path)
    read = weights.read(tmp_path)
    assert read.family == "transformers CLIP" and read.model["heads"] == 2
    assert read.model["gelu"] == "quick" and read.model["pool"] == "class"
    leaves = read.leaves["params"]
    here = {path: leaf.shape for path, leaf in leaves.items()} | {"head/bias": (5,)}
    fitted = fitting.fit_vit(leaves, here, 3, "bicubic")
    assert fitted.fates == {"head/bias": "folded"}
    own = pretrained.ours(read)
    pictures = pretrained.images()
    import torch

    with torch.no_grad():
        x = torch.from_numpy(((pictures - 0.5) / 0.5).transpose(0, 3, 1, 2).copy())
        tower = module.vision_model(pixel_values=x).pooler_output
        expected = module.visual_projection(tower).numpy()
    found = pretrained.logits(own, read.leaves | {"params": fitted.leaves}, pictures)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.1


def test_files_in_parts_are_read_as_one(tmp_path):
    module = network("dinov2")
    module.save_pretrained(tmp_path / "whole")
    module.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    whole, parts = (weights.read(tmp_path / name) for name in ("whole", "parts"))
    assert parts.kind == "safetensors or torch, in parts" and parts.model == whole.model
    for path, leaf in whole.leaves["params"].items():
        np.testing.assert_array_equal(parts.leaves["params"][path], leaf)
    index = tmp_path / "parts" / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    name = next(iter(told["weight_map"]))
    for part, message in (
        ("../whole/model.safetensors", "is no file beside it"),
        ("missing.safetensors", "No such file"),
    ):
        changed = told | {"weight_map": told["weight_map"] | {name: part}}
        index.write_text(json.dumps(changed))
        with pytest.raises(UsageError, match=message):
            weights.read(tmp_path / "parts")


@pytest.mark.parametrize("kind", ("vit", "dinov2"))
def test_names_of_modules_in_memory(kind, tmp_path):
    """A state_dict has other names than the file that save_pretrained writes."""
    import torch

    module = network(kind)
    module.save_pretrained(tmp_path)
    torch.save(module.state_dict(), tmp_path / "state.bin")
    first, second = (weights.read(p) for p in (tmp_path, tmp_path / "state.bin"))
    assert second.kind == "torch" and first.family == second.family
    for path, leaf in first.leaves["params"].items():
        np.testing.assert_array_equal(second.leaves["params"][path], leaf)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(hidden_act="relu"), "hidden_act 'relu' is none of"),
        (dict(use_swiglu_ffn=True), "SwiGLU"),
        (dict(model_type="swin"), "a model of type 'swin' is not known"),
    ],
)
def test_networks_that_are_not_ours_are_refused(change, message, tmp_path):
    network("vit").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UsageError, match=message):
        weights.read(tmp_path)
