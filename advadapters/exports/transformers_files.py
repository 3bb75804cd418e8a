"""A vision transformer as a folder that transformers' own ViT loads, without timm.

    ViTForImageClassification.from_pretrained(folder)

The arrays have the names of transformers' ViT (`weights`), config.json the fields of its
ViTConfig, and preprocessor_config.json those of an image processor. What this program's
network does in another way is folded into the arrays, and what that network cannot do is
refused. (https://github.com/huggingface/transformers, models/vit)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from advadapters import trees, weights
from advadapters.errors import UsageError
from advadapters.exports import timm_files, usages
from advadapters.models import vit
from advadapters.weights import fitting, vits
from advadapters.weights.layouts import Geometry

ACTIVATIONS = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
# Pillow's numbers; it has no area, and bicubic is what then comes nearest.
INTERPOLATIONS = {"bilinear": 2, "bicubic": 3, "area": 3}
# What a network may have, and what transformers' has then.
FIXED = {
    "norm": "layer", "resize": 0, "film": {}, "pool": "class", "class_token": True,
    "prompts": 0, "pre_norm": False,
}  # fmt: skip
HEAD = "classifier."  # which is beside the ViT, all else is in it

Flat = dict[str, np.ndarray]


def arrays_of(plain: Mapping[str, Any], about: Mapping[str, Any]) -> Flat:
    """{name: array} of a network {"params", "batch_stats"}; about: its metadata.

    Raises UsageError for a network that transformers' ViT cannot be.
    """
    model = about["source"]["model"]
    _need_vit(model)
    tree = timm_files.merged(plain, model)
    flat = {k: np.asarray(leaf) for k, leaf in trees.flatten(tree).items()}
    size, (_, _, channels) = vit.read_size(model["size"]), about["image"]
    if model["positions"] == "sincos":
        flat["pos_embed"] = timm_files.sincos(about)
    flat = fitting.fit_vit(flat, _wanted(flat), channels, "bicubic").leaves
    geometry = Geometry(size.heads, model["patch"], channels)
    named = weights.write(vits.HF_VIT.name, {"params": flat}, geometry, model)
    return {k if k.startswith(HEAD) else f"vit.{k}": leaf for k, leaf in named.items()}


def _wanted(flat: Flat) -> dict[str, tuple[int, ...]]:
    """The shapes of the leaves that transformers' ViT has, of a network with leaves `flat`.

    No LayerScale, but biases and a position of the class token.
    """
    unrolled = fitting.unrolled_blocks(flat)
    shapes = {k: leaf.shape for k, leaf in unrolled.items() if "layer_scale" not in k}
    for path in list(shapes):
        if path.endswith(("attn/qkv/kernel", "patch_embed/kernel")):
            shapes[path.replace("kernel", "bias")] = shapes[path][-1:]
    _, rows, width = shapes["pos_embed"]
    first = weights.settings.grid_of(rows, 1, 0).first
    return shapes | {"pos_embed": (1, rows + 1 - first, width)}


def configs_of(
    about: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """{name of a file: its JSON}: config.json and preprocessor_config.json.

    about: the metadata of the network. data: config.data of its run.
    """
    model, classes = about["source"]["model"], about["classes"]
    size, (rows, _, channels) = vit.read_size(model["size"]), about["image"]
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": size.mlp,
        "hidden_act": ACTIVATIONS[model.get("gelu", "erf")],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": model.get("norm_eps", 1e-6),
        "qkv_bias": True,
        "image_size": rows,
        "patch_size": model["patch"],
        "num_channels": channels,
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
        "torch_dtype": "float32",
    }
    mean, std = usages.inputs_of(about)
    processor = {
        "image_processor_type": "BitImageProcessor",  # which resizes and crops as we do
        "do_resize": True,
        "size": {"shortest_edge": round(rows / data["crop_ratio"])},
        "do_center_crop": True,
        "crop_size": {"height": rows, "width": rows},
        "resample": INTERPOLATIONS[data["interpolation"]],
        "do_convert_rgb": channels == 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    return {"config.json": config, "preprocessor_config.json": processor}


def usage(about: Mapping[str, Any], folder: str) -> str:
    """Markdown on how the folder is loaded."""
    rows, columns, channels = about["image"]
    mean, std = usages.inputs_of(about)
    return f"""\
The folder is one of transformers' ViTs. Images are normalised before the network there, by
mean {mean} and std {std}, which its image processor does.

```python
from transformers import AutoImageProcessor, ViTForImageClassification

processor = AutoImageProcessor.from_pretrained("{folder}")
model = ViTForImageClassification.from_pretrained("{folder}").eval()
logits = model(**processor(pictures, return_tensors="pt")).logits
```

Attacks and RobustBench want a network of images [B, {channels}, {rows}, {columns}] in
[0, 1], with the normalisation inside:

```python
import torch
from transformers import ViTForImageClassification

{usages.NORMALISED}
model = ViTForImageClassification.from_pretrained("{folder}")
network = Normalised(model, {mean}, {std}).eval()
```
"""


def _need_vit(model: Mapping[str, Any]) -> None:
    """Raises UsageError for settings that transformers' ViT does not have."""
    if model["name"] != "vit":
        raise UsageError(
            f"transformers' names are written of a vit, and this is {model['name']}: use "
            "--to=torch"
        )
    for key, value in FIXED.items():
        if model.get(key, value) != value:
            raise UsageError(
                f"transformers' ViT has config.model.{key}={value!r}, this one has "
                f"{model[key]!r}: use --to=timm, whose folders transformers loads too, or "
                "export it as .stablehlo"
            )
