"""What files say of a network beside its weights: settings of config.model and config.data.

Shapes and names show some, the JSON beside the weights others, and the rest is not known:
nothing is assumed but what all networks of a family have (`rules.Family.usual`).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from advadapters.errors import UsageError
from advadapters.weights.layouts import Leaf

Flat = Mapping[str, Leaf]

_ACTIVATIONS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "quick_gelu": "quick",
}
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_TYPES = (
    "vit", "deit", "dinov2", "dinov2_with_registers", "vit_mae", "vit_msn",
    "clip_vision_model",
)  # fmt: skip


_NEEDED = (  # leaves, by which the settings of a ViT are known
    "patch_embed/kernel", "blocks_0/attn/qkv/kernel", "blocks_0/mlp/fc1/kernel",
    "blocks_0/mlp/fc2/kernel",
)  # fmt: skip


class Grid(NamedTuple):
    """How the rows of learned positions are taken: class token's, prompts', patches'."""

    first: int
    prompts: int
    side: int


def grid_of(rows: int, first: int, prompts: int) -> Grid:
    """The Grid of so many rows, of a network with so many class tokens and prompts.

    Patches are a square; prompts have positions where the rows are no square without.
    Raises UsageError for a number of rows that is none.
    """
    for before in ((first, 0), (0, 0), (first, prompts)):
        side = math.isqrt(max(0, rows - sum(before)))
        if side and side**2 == rows - sum(before):
            return Grid(*before, side)
    raise UsageError(
        f"{rows} positions are no square of patches and {first} class token: name the rows "
        "and columns by advadapters convert --grid=ROWSxCOLUMNS --image_size=PIXELS"
    )


def patch_of(rows: int) -> tuple[int, int]:
    """(side of a patch, channels) of a patch embedding with so many rows."""
    for channels in (3, 1):
        side = math.isqrt(rows // channels)
        if side**2 * channels == rows:
            return side, channels
    raise UsageError(f"a patch embedding of {rows} rows is none of square patches")


def from_vit(flat: Flat) -> dict[str, Any]:
    """Settings of config.model that the leaves of a ViT show, blocks unrolled.

    "size" lacks the heads, which no leaf shows, and is [width, depth, MLP width].
    "layer_scale" is its first value, which no leaf shows either, or 0 for none. Raises
    UsageError for leaves of a network that no setting makes.
    """
    for path in _NEEDED:
        if path not in flat:
            raise UsageError(f"the weights of a ViT have no {path}")
    rows, width = flat["patch_embed/kernel"].shape
    depth = len([path for path in flat if path.endswith("/attn/qkv/kernel")])
    mlp = flat["blocks_0/mlp/fc1/kernel"].shape[1]
    inner = flat["blocks_0/mlp/fc2/kernel"].shape[0]
    if mlp == 2 * inner:
        raise UsageError("blocks_*/mlp is SwiGLU, which no model here has")
    first = int("class_token" in flat)
    prompts = flat["prompt"].shape[1] if "prompt" in flat else 0
    model = dict(
        size=(width, depth, mlp),
        patch=patch_of(rows)[0],
        class_token=bool(first),
        prompts=prompts,
        pre_norm="norm_pre/scale" in flat,
        layer_scale=1e-5 if "blocks_0/layer_scale1/gamma" in flat else 0.0,
        qkv_bias="blocks_0/attn/qkv/bias" in flat,
        patch_bias="patch_embed/bias" in flat,
    )
    if "pos_embed" in flat:
        grid = grid_of(flat["pos_embed"].shape[1], first, prompts)
        model |= dict(class_position=bool(grid.first) or not first)
    if "head/kernel" in flat:
        model |= dict(classes=flat["head/kernel"].shape[1])
        if flat["head/kernel"].shape[0] == 2 * width:
            model |= dict(pool="class_and_tokens")
    return model


def keys_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of config.model with the values that are known of a network; see `from_vit`.

    Heads that are not known are taken to be of 64 channels, as in all usual sizes.
    """
    known = {key: value for key, value in model.items() if key not in ("size", "heads")}
    if not isinstance(model.get("size"), tuple):
        return known | {k: model[k] for k in ("size",) if k in model}
    width = model["size"][0]
    heads = model.get("heads") or max(1, width // 64)
    return known | dict(size="x".join(map(str, (*model["size"], heads))))


def from_about(about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of config.model, of config.data) that the files beside the weights say.

    about: see `formats.File`. "heads" is one of the model's. Raises UsageError for JSON
    that is not as those programs write it.
    """
    try:
        return _from_about(about)
    except UsageError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
        raise UsageError(
            f"the JSON beside the weights is no description: {error}"
        ) from None


def _from_about(about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`from_about`, with errors as they come."""
    if "advadapters" in about:
        described = about["advadapters"]
        return dict(described.get("model", {})), dict(described.get("data", {}))
    config = about.get("config", {})
    if "pretrained_cfg" in config or "architecture" in config:
        return _from_timm(config)
    model, _ = _from_transformers(config)
    inputs, data = _from_preprocessor(about.get("preprocessor_config", {}))
    return model | inputs, data


def _from_timm(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`from_about` of the config.json that timm writes."""
    inputs = config.get("pretrained_cfg") or {}
    model: dict[str, Any] = {}
    if "quickgelu" in str(config.get("architecture", "")):
        model |= dict(gelu="quick")
    # The mean's norm comes before or after it, which the norm's name says.
    if config.get("global_pool") == "token":
        model |= dict(pool="class")
    model |= {key: tuple(inputs[key]) for key in ("mean", "std") if inputs.get(key)}
    data: dict[str, Any] = {}
    if inputs.get("input_size"):
        data |= dict(image_size=inputs["input_size"][-1])
    if inputs.get("crop_pct"):
        data |= dict(crop_ratio=float(inputs["crop_pct"]))
    if inputs.get("interpolation"):
        data |= dict(interpolation=inputs["interpolation"])
    return model, data


def _from_transformers(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`from_about` of a config.json of transformers."""
    if config.get("model_type") == "clip":
        config = {"model_type": "clip_vision_model"} | config.get("vision_config", {})
    kind = config.get("model_type")
    if kind is not None and kind not in _TYPES:
        raise UsageError(f"config.json: a model of type {kind!r} is not known here")
    if config.get("use_swiglu_ffn"):
        raise UsageError("config.json: the network has SwiGLU, which no model here has")
    model: dict[str, Any] = {}
    if "hidden_act" in config:
        if config["hidden_act"] not in _ACTIVATIONS:
            raise UsageError(
                f"config.json: hidden_act {config['hidden_act']!r} is none of "
                + ", ".join(_ACTIVATIONS)
            )
        model |= dict(gelu=_ACTIVATIONS[config["hidden_act"]])
    if "layer_norm_eps" in config:
        model |= dict(norm_eps=float(config["layer_norm_eps"]))
    if "num_attention_heads" in config:
        model |= dict(heads=int(config["num_attention_heads"]))
    if kind == "clip_vision_model" and "hidden_act" not in config:
        model |= dict(gelu="quick")  # which is transformers' default
    if kind in ("vit", "deit", "vit_msn"):
        model |= dict(pool="class")
    return model, {}


def _from_preprocessor(
    config: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(mean and std, settings of config.data) of a preprocessor_config.json."""
    model = {
        key: tuple(map(float, config[f"image_{key}"]))
        for key in ("mean", "std")
        if config.get(f"image_{key}")
    }
    data: dict[str, Any] = {}
    side = _side(config.get("size"))
    crop = _side(config.get("crop_size")) if config.get("do_center_crop") else 0
    if side or crop:
        data |= dict(image_size=crop or side)
    if side and crop:
        data |= dict(crop_ratio=round(crop / side, 4))
    if config.get("resample") in _INTERPOLATIONS:
        data |= dict(interpolation=_INTERPOLATIONS[config["resample"]])
    return model, data


def _side(size: Any) -> int:
    """The side in pixels of one of transformers' sizes, 0 if it says none."""
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    return size if isinstance(size, int) else 0
