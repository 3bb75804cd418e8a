"""Names of torch's ResNets, PreActResNets and WideResNets, of their usual programs.

Those of torchvision (conv1, bn1, layer1.0.conv1, layer1.0.downsample.0, fc), of the usual
CIFAR networks (layer1.0.shortcut.0, linear), and RobustBench's (block1.layer.0.conv1).
"""

import re
from collections.abc import Mapping

from advadapters.weights.layouts import Stored
from advadapters.weights.rules import WRAPPERS, Family, Rule

_INPUTS = re.compile(r"normalizer?\.(?:new_)?(mean|std)|(mu|sigma)")
_COUNTS = r"(.*\.)?num_batches_tracked"


def _conv(ours: str, theirs: str) -> Rule:
    """The rule of a convolution."""
    return Rule(f"{ours}/kernel", (f"{theirs}.weight",), "conv")


def _norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    """The rules of a batch norm."""
    return (
        Rule(f"{ours}/scale", (f"{theirs}.weight",), "vector"),
        Rule(f"{ours}/bias", (f"{theirs}.bias",), "vector"),
        Rule(f"{ours}/mean", (f"{theirs}.running_mean",), "vector", branch="batch_stats"),
        Rule(f"{ours}/var", (f"{theirs}.running_var",), "vector", branch="batch_stats"),
    )


def _head(theirs: str) -> tuple[Rule, ...]:
    """The rules of the head."""
    return (
        Rule("head/kernel", (f"{theirs}.weight",), "linear"),
        Rule("head/bias", (f"{theirs}.bias",), "vector"),
    )


def _blocks(theirs: str, count: int) -> tuple[Rule, ...]:
    """The rules of so many convolutions and norms of each block."""
    numbered = range(1, count + 1)
    convs = (_conv(f"{_BLOCK}/conv{n}", f"{theirs}.conv{n}") for n in numbered)
    norms = (_norm(f"{_BLOCK}/norm{n}", f"{theirs}.bn{n}") for n in numbered)
    return (*convs, *(rule for rules in norms for rule in rules))


_BLOCK = "stage{s}_block{b}"
_LAYER = "layer{s}.{b-1}"  # torch counts blocks from 0
_IGNORED = rf"{_COUNTS}|{_INPUTS.pattern}"


def _resnet(name: str, shortcut: str, head: str) -> Family:
    """The family of ResNets that call a block's shortcut and the head so."""
    return Family(
        name,
        "resnet",
        rules=(
            _conv("stem", "conv1"),
            *_norm("norm", "bn1"),
            *_blocks(_LAYER, 3),
            _conv(f"{_BLOCK}/shortcut", f"{_LAYER}.{shortcut}.0"),
            *_norm(f"{_BLOCK}/shortcut_norm", f"{_LAYER}.{shortcut}.1"),
            *_head(head),
        ),
        spellings=(
            (r"\.(?:shortcut|downsample)\.", f".{shortcut}."),
            (r"^(?:linear|fc)\.", f"{head}."),
        ),
        ignored=_IGNORED,
        usual=dict(norm="batch", activation="relu"),
    )


# Both read the names of either; they differ in what is written.
RESNET = _resnet("torch ResNet", "downsample", "fc")
CIFAR_RESNET = _resnet("torch ResNet for CIFAR", "shortcut", "linear")

# The norm before pooling has a name that the plain ResNet does not have.
PREACT_RESNET = Family(
    "torch PreActResNet",
    "preact_resnet",
    rules=(
        _conv("stem", "conv1"),
        *_norm("norm", "bn"),
        *_blocks(_LAYER, 2),
        _conv(f"{_BLOCK}/shortcut", f"{_LAYER}.shortcut.0"),
        *_head("linear"),
    ),
    spellings=((r"^fc\.", "linear."),),
    ignored=_IGNORED,
    usual=dict(norm="batch"),
)

_WIDE = "block{s}.layer.{b-1}"

WIDE_RESNET = Family(
    "torch WideResNet",
    "wide_resnet",
    rules=(
        _conv("stem", "conv1"),
        *_norm("norm", "bn1"),
        *_blocks(_WIDE, 2),
        _conv(f"{_BLOCK}/shortcut", f"{_WIDE}.convShortcut"),
        *_head("fc"),
    ),
    spellings=(
        (r"\.(?:shortcut|downsample)\.0\.", ".convShortcut."),
        (r"^linear\.", "fc."),
    ),
    # Copies of the first stage that some programs carry and never use.
    ignored=rf"{_IGNORED}|sub_block1\..*",
    usual=dict(norm="batch"),
)


def inputs(arrays: Mapping[str, Stored]) -> dict[str, tuple[float, ...]]:
    """{"mean": (float per channel), "std": ...}: how the network normalises images, if the
    arrays beside its weights say so."""
    normalization = {}
    for full, array in arrays.items():
        match = _INPUTS.fullmatch(re.sub(f"^{WRAPPERS}", "", full))
        if match and array.dtype.kind == "f":
            key = match[1] or {"mu": "mean", "sigma": "std"}[match[2]]
            normalization[key] = tuple(float(value) for value in array.reshape(-1))
    return normalization
