"""A residual network as a folder with the names of torchvision, timm and RobustBench.

Batch norms keep their statistics as they are, so nothing is folded, and reading the file
again gives the same leaves bit for bit. config.json has timm's fields. timm itself loads
the folder of a ResNet with the stem for ImageNet, whose class timm has.
(https://github.com/RobustBench/robustbench, robustbench/model_zoo/architectures)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from advadapters import trees, weights
from advadapters.errors import UsageError
from advadapters.exports import timm_files, usages
from advadapters.models import MODELS, wide_resnet
from advadapters.weights import resnets
from advadapters.weights.layouts import Geometry

# What a network may have, and what torch's has then: (key of config.model, the one value).
FIXED = {"norm": "batch", "activation": "relu", "resize": 0, "film": {}}
WIDTH = 64  # channels of the first stage, in the classes of torchvision and RobustBench
STAGES = 4

Flat = dict[str, np.ndarray]


class Constructor(NamedTuple):
    """A class of another program that has the names of a network, and its size.

    module, name: where the class is imported from, and what else is. call: the expression
    that makes the module.
    """

    module: str
    name: str
    call: str


def arrays_of(plain: Mapping[str, Any], about: Mapping[str, Any]) -> Flat:
    """{name: array} of a network {"params", "batch_stats"}; about: its metadata.

    Raises UsageError for a network that the classes of these names cannot be.
    """
    model = about["source"]["model"]
    _need_torch(model)
    merged = timm_files.merged(plain, model)
    leaves = {
        branch: {path: np.asarray(leaf) for path, leaf in trees.flatten(tree).items()}
        for branch, tree in (("params", merged), ("batch_stats", plain["batch_stats"]))
    }
    return weights.write(family_of(model).name, leaves, Geometry(), model)


def family_of(model: Mapping[str, Any]) -> weights.rules.Family:
    """Whose names the arrays of a model get; model: settings of config.model."""
    if model["name"] == "resnet":
        large = model["stem"] == "imagenet"
        return resnets.RESNET if large else resnets.CIFAR_RESNET
    families = (resnets.PREACT_RESNET, resnets.WIDE_RESNET)
    return next(family for family in families if family.model == model["name"])


def is_timms(about: Mapping[str, Any]) -> bool:
    """Whether timm has a class for the network."""
    model = about["source"]["model"]
    size = _size_of(model)
    large = model["name"] == "resnet" and model["stem"] == "imagenet"
    return large and size.width == WIDTH and len(size.depths) == STAGES


def _size_of(model: Mapping[str, Any]) -> Any:
    """The size of a network, some of which have a factor of all channels besides."""
    size = MODELS[model["name"]].read_size(model["size"])
    return size.scaled(model.get("width", 1.0))


def config_of(about: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """config.json in timm's form; data: config.data of the run."""
    model, channels = about["source"]["model"], about["image"][2]
    head = family_of(model).rules[-1].theirs[0].partition(".")[0]
    layers = {"first_conv": "conv1", "classifier": head}
    architecture, arguments = f"{model['name']}_{model['size']}", dict[str, Any]()
    if is_timms(about):
        size = _size_of(model)
        architecture = "resnet50" if size.bottleneck else "resnet18"
        arguments = dict(layers=list(size.depths), in_chans=channels)
    return {
        "architecture": architecture,
        "num_classes": len(about["classes"]),
        "label_names": list(about["classes"]),
        "model_args": arguments,
        "pretrained_cfg": timm_files.inputs_config(about, data) | layers,
    }


def constructor_of(about: Mapping[str, Any]) -> Constructor | None:
    """The class that the network is in torch; None where no program has one of its size."""
    model, (rows, _, channels) = about["source"]["model"], about["image"]
    name, classes = model["name"], len(about["classes"])
    zoo, size = "robustbench.model_zoo.architectures", _size_of(model)
    # RobustBench takes the mean over as many positions as images of 32 pixels leave.
    if channels != 3 or not (rows == 32 or is_timms(about)):
        return None
    if name == "wide_resnet":
        depth, factor = 6 * size.depths[0] + 4, size.width // wide_resnet.STEM
        call = f"WideResNet(depth={depth}, widen_factor={factor}, num_classes={classes})"
        row = Constructor(f"{zoo}.wide_resnet", "WideResNet", call)
        return row if size.stem == wide_resnet.STEM else None
    if size.width != WIDTH or len(size.depths) != STAGES:
        return None
    if name == "preact_resnet":
        block, kind = "PreActBlock", "PreActResNet"
        more = ", bn_before_fc=True, out_shortcut=True"
    else:
        block = "Bottleneck" if size.bottleneck else "BasicBlock"
        kind, more = "ResNet", ""
    call = f"{kind}({block}, {list(size.depths)}, num_classes={classes}{more})"
    module = "torchvision.models.resnet" if is_timms(about) else f"{zoo}.resnet"
    return Constructor(module, f"{block}, {kind}", call)


def usage(about: Mapping[str, Any], folder: str) -> str:
    """Markdown on how the folder is loaded."""
    mean, std = usages.inputs_of(about)
    row = constructor_of(about)
    parts = [
        f"`model.safetensors` is a state dict with the names of a "
        f"{family_of(about['source']['model']).name.removeprefix('torch ')}. Images are "
        f"normalised before the network there, by mean {mean} and std {std}."
    ]
    if is_timms(about):
        parts += [
            f'```python\nimport timm\n\nmodel = timm.create_model("local-dir:{folder}", '
            "pretrained=True).eval()\n```"
        ]
    if row is None:
        parts += [
            "No class of torchvision or RobustBench has this size and images of this kind: "
            "the module to load the state dict into has to be written."
        ]
    imports = [f"from {row.module} import {row.name}"] if row else []
    call = row.call if row else "..."
    lines = [
        "import torch",
        *imports,
        "from safetensors.torch import load_file",
        "",
        usages.NORMALISED,
        f"model = {call}",
        f'model.load_state_dict(load_file("{folder}/model.safetensors"))',
        f"network = Normalised(model, {mean}, {std}).eval()",
    ]
    rows, columns, channels = about["image"]
    parts += [
        f"Attacks and RobustBench want a network of images [B, {channels}, {rows}, "
        f"{columns}] in [0, 1], with the normalisation inside:",
        "```python\n" + "\n".join(lines) + "\n```",
    ]
    return "\n\n".join(parts)


def _need_torch(model: Mapping[str, Any]) -> None:
    """Raises UsageError for settings that torch's networks do not have."""
    if model["name"] not in ("resnet", "preact_resnet", "wide_resnet"):
        raise UsageError(
            f"torch's names are written of residual networks, and this is {model['name']}: "
            "use --to=timm or --to=transformers"
        )
    for key, value in FIXED.items():
        if model.get(key, value) != value:
            raise UsageError(
                f"torch's network has config.model.{key}={value!r}, this one has "
                f"{model[key]!r}: export it as .stablehlo"
            )
