"""ResNets of torch as an .npz of arrays -> the names and layouts of `models.resnet`.

Names are torchvision's (conv1, bn1, layer1.0.conv1, layer1.0.downsample.0, fc) or those
of the usual CIFAR networks (layer1.0.shortcut.0, linear), behind any of the prefixes that
data parallelism and MadryLab's robustness put before them. Nothing is unpickled.
"""

import re
import zipfile
import zlib

import numpy as np

from advadapters import trees
from advadapters.errors import UsageError

PREFIX = re.compile(r"(module\.|model\.|attacker\.)*")
# What checkpoints carry beside the network: no leaf of ours.
IGNORED = re.compile(r"(.*\.)?num_batches_tracked")
INPUTS = re.compile(r"normalizer?\.(?:new_)?(mean|std)")

# Part of a name in torch -> the same of ours, and its kind; all in one match.
MODULES = (
    (r"conv1", r"stem", "conv"),
    (r"bn1", r"norm", "norm"),
    (r"(?:fc|linear)", r"head", "dense"),
    (r"layer(\d+)\.(\d+)\.conv(\d)", r"stage{0}_block{1}/conv{2}", "conv"),
    (r"layer(\d+)\.(\d+)\.bn(\d)", r"stage{0}_block{1}/norm{2}", "norm"),
    (
        r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.0",
        r"stage{0}_block{1}/shortcut",
        "conv",
    ),
    (
        r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.1",
        r"stage{0}_block{1}/shortcut_norm",
        "norm",
    ),
)

# Kind and leaf in torch -> (branch and leaf of ours, order of the axes).
LEAVES = {
    ("conv", "weight"): ("params", "kernel", (2, 3, 1, 0)),  # OIHW -> HWIO
    ("norm", "weight"): ("params", "scale", (0,)),
    ("norm", "bias"): ("params", "bias", (0,)),
    ("norm", "running_mean"): ("batch_stats", "mean", (0,)),
    ("norm", "running_var"): ("batch_stats", "var", (0,)),
    ("dense", "weight"): ("params", "kernel", (1, 0)),  # [L, D] -> [D, L]
    ("dense", "bias"): ("params", "bias", (0,)),
}


def read(path):
    """{name: array} of an .npz file. Raises UsageError for any other, or a damaged one."""
    damaged = (
        OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError,
        MemoryError, OverflowError, SyntaxError, zipfile.BadZipFile, zlib.error,
    )  # fmt: skip
    try:
        with open(path, "rb") as raw:
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array, no .npz")
            arrays = {name: file[name] for name in file.files}
    except damaged as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"cannot read weights from {path}: {reason}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a member of a zip that is no .npy
            raise UsageError(
                f"cannot read weights from {path}: {name} is no array; docs/finetuning.md "
                "says how to make an .npz from torch's .pt"
            )
    return arrays


def convert(arrays):
    """{torch name: array} -> {"params", "batch_stats"}, float32, by the names of ResNet.

    A tensor may be there under several prefixes, if all are equal. Raises UsageError for
    a name that no such network has, for values that are no finite floats, and for another
    number of axes than the layer has; other shapes are the network's word.
    """
    found, seen = {"params": {}, "batch_stats": {}}, {}
    for full, array in arrays.items():
        name = PREFIX.sub("", full, count=1)
        if IGNORED.fullmatch(name) or INPUTS.fullmatch(name):
            continue
        branch, path, order = place(name, full)
        leaf = values(array, full, order)
        if not np.array_equal(leaf, found[branch].setdefault(path, leaf)):
            raise UsageError(
                f"{full} and {seen[branch, path]} are the same leaf and differ"
            )
        seen[branch, path] = full
    return {branch: trees.unflatten(leaves) for branch, leaves in found.items()}


def place(name, full):
    """(branch, path, order of the axes) of a name without prefix; full: with it."""
    module, _, leaf = name.rpartition(".")
    for pattern, ours, kind in MODULES:
        match = re.fullmatch(pattern, module)
        if match and (kind, leaf) in LEAVES:
            stage, block, *more = [*match.groups(), "0", "0"][:3]
            branch, last, order = LEAVES[kind, leaf]
            # torch counts blocks from 0.
            return branch, f"{ours.format(stage, int(block) + 1, *more)}/{last}", order
    raise UsageError(
        f"{full} is no name of a torch ResNet (conv1.weight, layer1.0.bn1.running_mean, "
        "layer2.0.downsample.0.weight, fc.bias, ...)"
    )


def values(array, name, order):
    """The array as float32, its axes in another order."""
    if array.dtype.kind != "f":
        raise UsageError(f"{name} must hold floats, got {array.dtype}")
    if array.ndim != len(order):
        raise UsageError(f"{name} must have {len(order)} axes, got {list(array.shape)}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UsageError(f"{name} has values that are not finite")
    if name.endswith("running_var") and (array < 0).any():
        raise UsageError(f"{name} has variances below 0")
    return np.ascontiguousarray(array.transpose(order))


def inputs(arrays):
    """{"mean": (float per channel), "std": ...}: how the checkpoint normalises images, if
    it says so."""
    found = {}
    for full, array in arrays.items():
        match = INPUTS.fullmatch(PREFIX.sub("", full, count=1))
        if match and array.dtype.kind == "f":
            found[match[1]] = tuple(float(value) for value in array.reshape(-1))
    return found
