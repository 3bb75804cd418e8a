"""A vision transformer as a folder that timm and transformers load.

The arrays have timm's names (`weights`), config.json holds the arguments of timm's
VisionTransformer, and the numbers are the same: what this program's network does in another
way is folded into the arrays, and what timm's network cannot do is refused.
(https://github.com/huggingface/pytorch-image-models, timm/models/vision_transformer.py)
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from advadapters import trees, weights
from advadapters.adapters import lora
from advadapters.errors import UsageError
from advadapters.exports import usages
from advadapters.models import layers, vit
from advadapters.weights import vits
from advadapters.weights.layouts import Geometry

ARCHITECTURE = "vit_base_patch16_224"  # of whose arguments `arguments_of` sets all
ACTIVATIONS = {"erf": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}
INTERPOLATIONS = {"area": "bicubic"}  # timm has no area; for the others the same word
# What a network may have, and what timm's has then: (key of config.model, the one value).
FIXED = {"norm": "layer", "resize": 0, "norm_eps": 1e-6, "film": {}}

Flat = dict[str, np.ndarray]


def arrays_of(
    plain: Mapping[str, Any], about: Mapping[str, Any], family: str = "timm"
) -> Flat:
    """{name: array} of a network {"params", "batch_stats"}; about: its metadata.

    family: whose names these are, see `weights.write`. Raises UsageError for a network that
    timm's VisionTransformer cannot be, and for a leaf that has no name in the family.
    """
    model = about["source"]["model"]
    _need_timm(model)
    flat = {k: np.asarray(leaf) for k, leaf in trees.flatten(merged(plain, model)).items()}
    size = vit.read_size(model["size"])
    _, _, channels = about["image"]
    if model["positions"] == "sincos":
        flat["pos_embed"] = sincos(about)
    if model.get("prompts") and _first(model):
        # Registers have positions there, where the class token has one.
        flat["class_token"] = flat["class_token"] + flat["pos_embed"][:, :1]
        flat["pos_embed"] = flat["pos_embed"][:, 1:]
    _settle_patch_bias(flat, model)
    geometry = Geometry(size.heads, model["patch"], channels)
    return weights.write(family, {"params": flat}, geometry, model)


def sincos(about: Mapping[str, Any]) -> Float[np.ndarray, "1 N D"]:
    """The positions of a network that stores none, as those that are stored."""
    model, (rows, columns, _) = about["source"]["model"], about["image"]
    grid = (rows // model["patch"], columns // model["patch"])
    table = layers.sincos(grid, vit.read_size(model["size"]).width)
    return np.pad(table, ((_first(model), 0), (0, 0)))[None]


def _settle_patch_bias(flat: Flat, model: Mapping[str, Any]) -> None:
    """timm's patches have a bias, unless a norm follows: then it goes into positions."""
    path = "patch_embed/bias"
    if not model.get("pre_norm", False):
        flat.setdefault(path, np.zeros(flat["patch_embed/kernel"].shape[-1], np.float32))
    elif path in flat:
        positions, first = flat["pos_embed"].copy(), _first(model)
        first = 0 if model.get("prompts") else first
        positions[:, first:] += flat.pop(path)
        flat["pos_embed"] = positions


def big_vision_arrays(plain: Mapping[str, Any], about: Mapping[str, Any]) -> Flat:
    """{name: array} as big_vision's .npz files have them, which timm reads too.

    Raises UsageError as `arrays_of` does, and for a head that these do not have.
    """
    pool = about["source"]["model"]["pool"]
    if pool == "tokens":
        raise UsageError(
            "the networks of big_vision's files have no norm after the mean of the tokens "
            "(config.model.pool='tokens'): name a folder instead of a file .npz"
        )
    arrays = arrays_of(plain, about, vits.FLAX.name)
    return {f"params/{name}": array for name, array in arrays.items()}


def config_of(about: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """config.json, as timm writes it for the Hub and transformers reads it.

    about: the metadata of the network. data: config.data of its run.
    """
    classes = about["classes"]
    inputs = inputs_config(about, data)
    inputs |= {"first_conv": "patch_embed.proj", "classifier": "head"}
    inputs |= {"fixed_input_size": True}
    return {
        "architecture": ARCHITECTURE,
        "num_classes": len(classes),
        "label_names": list(classes),
        "model_args": arguments_of(about),
        "pretrained_cfg": inputs,
    }


def inputs_config(about: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's "pretrained_cfg" says of the images; arguments as of `config_of`."""
    rows, columns, channels = about["image"]
    mean, std = usages.inputs_of(about)
    way = data["interpolation"]
    return {
        "input_size": [channels, rows, columns],
        "interpolation": INTERPOLATIONS.get(way, way),
        "crop_pct": data["crop_ratio"],
        "mean": mean,
        "std": std,
        "num_classes": len(about["classes"]),
    }


def arguments_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer."""
    model = about["source"]["model"]
    size, pool = vit.read_size(model["size"]), model["pool"]
    rows, _, channels = about["image"]
    return {
        "img_size": rows,
        "patch_size": model["patch"],
        "in_chans": channels,
        "embed_dim": size.width,
        "depth": size.depth,
        "num_heads": size.heads,
        "mlp_ratio": _ratio(size.mlp, size.width),
        "global_pool": "token" if pool == "class" else "avg",
        "fc_norm": pool == "tokens",
        "class_token": model.get("class_token", True),
        "no_embed_class": not _first(model) or bool(model.get("prompts")),
        "reg_tokens": model.get("prompts", 0),
        "pre_norm": model.get("pre_norm", False),
        "init_values": model.get("layer_scale", 0.0) or None,
        "qkv_bias": model.get("qkv_bias", True),
        "act_layer": ACTIVATIONS[model.get("gelu", "erf")],
    }


def usage(about: Mapping[str, Any], folder: str) -> str:
    """Markdown on how the folder is loaded."""
    rows, columns, channels = about["image"]
    mean, std = usages.inputs_of(about)
    return f"""\
`model.safetensors` has the names of timm's VisionTransformer, and `config.json` its
arguments. Images are normalised before the network here, by mean {mean} and std {std}.

```python
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
```

With transformers (and timm beside it):

```python
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("{folder}").eval()
```

Attacks and RobustBench want a network of images [B, {channels}, {rows}, {columns}] in
[0, 1], with the normalisation inside:

```python
import timm, torch

{usages.NORMALISED}
model = timm.create_model("local-dir:{folder}", pretrained=True)
network = Normalised(model, {mean}, {std}).eval()
```
"""


def _need_timm(model: Mapping[str, Any]) -> None:
    """Raises UsageError for settings that timm's VisionTransformer does not have."""
    if model["name"] != "vit":
        raise UsageError(f"timm's names are written of a vit, and this is {model['name']}")
    for key, value in FIXED.items():
        if model.get(key, value) != value:
            raise UsageError(
                f"timm's network has config.model.{key}={value!r}, this one has "
                f"{model[key]!r}: export it as .stablehlo"
            )
    if model["pool"] not in ("class", "tokens", "normed_tokens"):
        raise UsageError(f"timm's network has no pool {model['pool']!r}")


def merged(plain: Mapping[str, Any], model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters with all LoRAs in their kernels.

    Raises UsageError for other modules beside layers, and for LoRAs of scanned blocks.
    """
    added = model.get("added", {})
    if added and model.get("scan"):
        raise UsageError("LoRAs of scanned blocks cannot be merged: export as .stablehlo")
    other = [name for name, module in added.items() if module["kind"] != "lora"]
    if other:
        kinds = ", ".join(f"{name} is {added[name]['kind']}" for name in other)
        raise UsageError(f"only LoRAs can be merged into kernels; {kinds}")
    scales = {name: module["scale"] for name, module in added.items()}
    params = {k: jnp.asarray(leaf) for k, leaf in trees.flatten(plain["params"]).items()}
    return lora.merge(trees.unflatten(params), scales) if scales else plain["params"]


def _ratio(mlp: int, width: int) -> float:
    """A number that times the width, rounded down as timm does, is the MLP's width."""
    ratio = mlp / width
    return ratio if int(width * ratio) == mlp else float(np.nextafter(ratio, np.inf))


def _first(model: Mapping[str, Any]) -> int:
    """How many rows the positions have before those of patches."""
    return int(model.get("class_token", True) and model.get("class_position", True))
