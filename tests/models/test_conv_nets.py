"""Convolutional networks: published parameter counts, names, and numpy by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from advadapters import trees
from advadapters.errors import UsageError
from advadapters.models import (
    MODELS,
    layers,
    preact_resnet,
    resnet,
    vit,
    wide_resnet,
)

CONV_NETS = ("resnet", "preact_resnet", "wide_resnet")

# Ten classes at 32x32: the papers' repositories and their common reimplementations.
CIFAR = {
    ("resnet", "18"): 11_173_962,
    ("resnet", "34"): 21_282_122,
    ("resnet", "50"): 23_520_842,
    ("preact_resnet", "18"): 11_172_170,
    ("wide_resnet", "16-8"): 10_961_370,
    ("wide_resnet", "28-10"): 36_479_194,
    ("wide_resnet", "34-10"): 46_160_474,
    ("wide_resnet", "40-2"): 2_243_546,
    ("wide_resnet", "70-16"): 266_796_506,
}
# torchvision, 1000 classes at 224x224.
IMAGENET = {"18": 11_689_512, "34": 21_797_672, "50": 25_557_032}

NORM_PATH = r"(.*/)?(\w+_)?norm\d?/.*"


def count(name, size, side=32, **fields):
    model = small.model(name, size, channels=3, **fields)
    return trees.count(small.shapes(model, side)["params"])


@pytest.mark.parametrize("name, size", CIFAR)
def test_parameter_counts(name, size):
    assert count(name, size, classes=10) == CIFAR[name, size]


@pytest.mark.parametrize("size", IMAGENET)
def test_parameter_counts_of_imagenet(size):
    assert count("resnet", size, 224, classes=1000, stem="imagenet") == IMAGENET[size]


@pytest.mark.parametrize("name", CONV_NETS)
def test_parameter_counts_are_those_of_any_norm_and_activation(name):
    expected = count(name, "")
    for fields in (dict(norm="group"), dict(norm="layer"), dict(activation="silu")):
        assert count(name, "", **fields) == expected


def test_every_size_is_counted():
    tables = {"resnet": resnet, "preact_resnet": preact_resnet, "wide_resnet": wide_resnet}
    assert set(CIFAR) == {(name, s) for name, table in tables.items() for s in table.SIZES}
    assert set(IMAGENET) == set(resnet.SIZES)


def modules(model):
    """Names of the modules that have parameters."""
    paths = trees.flatten(small.shapes(model)["params"])
    return {path.rsplit("/", 1)[0] for path in paths}


def test_names():
    parts = [f"{layer}{i}" for layer in ("conv", "norm") for i in (1, 2, 3)]
    parts += ["shortcut", "shortcut_norm"]
    blocks = {f"stage{s}_block1/{part}" for s in (1, 2) for part in parts}
    found = modules(small.model("resnet", "bottleneck-4x1x1"))
    assert found == {"stem", "norm", "head"} | blocks
    parts = ["conv1", "conv2", "norm1", "norm2"]
    blocks = {
        f"stage{s}_block{b}/{part}" for s in (1, 2, 3) for b in (1, 2) for part in parts
    }
    shortcuts = {f"stage{s}_block1/shortcut" for s in (2, 3)}
    found = modules(small.model("wide_resnet", "16-1"))
    assert found == {"stem", "norm", "head"} | blocks | shortcuts


@pytest.mark.parametrize("norm", layers.NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_one_pattern_finds_the_norms(name, norm):
    paths = trees.flatten(small.shapes(small.model(name, norm=norm))["params"])
    found = {path for path in paths if re.fullmatch(NORM_PATH, path)}
    scales = {path for path in paths if path.endswith("/scale")}
    assert scales and found == scales | {p.replace("/scale", "/bias") for p in scales}


@pytest.mark.parametrize(
    "name, text",
    [
        ("vit", "C"),
        ("vit", "10x1x8x3"),
        ("resnet", "19"),
        ("resnet", "basic-16"),
        ("resnet", "basic-0x1"),
        ("resnet", "wide-16x1"),
        ("preact_resnet", "16"),
        ("preact_resnet", "16x0"),
        ("wide_resnet", "28"),
        ("wide_resnet", "29-10"),
        ("wide_resnet", "4-1"),
        ("wide_resnet", "10-0"),
        ("wide_resnet", ""),
    ],
)
def test_sizes_that_are_none(name, text):
    with pytest.raises(UsageError, match=f"^config.model.size='{text}'[^\n]+$"):
        MODELS[name].read_size(text)


def test_sizes():
    assert vit.read_size("8x2x16x2") == vit.Size(8, 2, 16, 2)
    assert resnet.read_size("bottleneck-8x1x2") == resnet.Size(8, (1, 2), True)
    for name, (text, size) in {
        "resnet": ("basic-64x3x4x6x3", "34"),
        "preact_resnet": ("64x2x2x2x2", "18"),
    }.items():
        assert MODELS[name].read_size(text) == MODELS[name].read_size(size)


class ByHand:
    """Networks in numpy (float64), one image [H, W, C] at a time."""

    def __init__(self, model, variables):
        to64 = lambda leaf: np.asarray(leaf, np.float64)  # noqa: E731
        self.leaves = {p: to64(leaf) for p, leaf in trees.flatten(variables).items()}
        self.model = model

    def has(self, name):
        return f"params/{name}/kernel" in self.leaves

    def conv(self, x, name, stride=1):
        kernel = self.leaves[f"params/{name}/kernel"]
        side, pad = kernel.shape[0], kernel.shape[0] // 2
        x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(0, 1))
        return np.einsum("hwcij,ijco->hwo", windows[::stride, ::stride], kernel)

    def norm(self, x, name):
        scale, bias = (self.leaves[f"params/{name}/{part}"] for part in ("scale", "bias"))
        if self.model.norm == "batch":
            mean, var = (self.leaves[f"batch_stats/{name}/{p}"] for p in ("mean", "var"))
            return (x - mean) / np.sqrt(var + 1e-5) * scale + bias
        # Where the networks here have few channels, a group is two of them.
        groups = x.shape[-1] // 2 if self.model.norm == "group" else 1
        y = x.reshape(*x.shape[:2], groups, -1)
        mean, var = (f(y, axis=(0, 1, 3), keepdims=True) for f in (np.mean, np.var))
        return ((y - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias

    def act(self, x):
        return np.maximum(x, 0) if self.model.activation == "relu" else x / (1 + np.exp(-x))

    def resnet_block(self, x, name, stride):
        last = 3 if self.has(f"{name}/conv3") else 2
        y = x
        for i in range(1, last + 1):
            y = self.conv(y, f"{name}/conv{i}", stride if i == last - 1 else 1)
            y = self.norm(y, f"{name}/norm{i}")
            y = self.act(y) if i < last else y
        if self.has(f"{name}/shortcut"):
            x = self.conv(x, f"{name}/shortcut", stride)
            x = self.norm(x, f"{name}/shortcut_norm")
        return self.act(x + y)

    def preact_block(self, x, name, stride):
        active = self.act(self.norm(x, f"{name}/norm1"))
        y = self.conv(active, f"{name}/conv1", stride)
        y = self.conv(self.act(self.norm(y, f"{name}/norm2")), f"{name}/conv2")
        if self.has(f"{name}/shortcut"):
            x = self.conv(active, f"{name}/shortcut", stride)
        return x + y

    def logits(self, image):
        post = isinstance(self.model, resnet.ResNet)
        x = (np.asarray(image, np.float64) - 0.5) / 0.25
        large = post and self.model.stem == "imagenet"
        x = self.conv(x, "stem", 2 if large else 1)
        x = self.act(self.norm(x, "norm")) if post else x
        if large:
            x = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
            windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))
            x = windows[::2, ::2].max(axis=(3, 4))
        for s in range(len(self.model.size.depths)):
            block = self.resnet_block if post else self.preact_block
            x = block(x, f"stage{s + 1}_block1", 2 if s else 1)
        x = x if post else self.act(self.norm(x, "norm"))
        kernel, bias = (self.leaves[f"params/head/{part}"] for part in ("kernel", "bias"))
        return x.mean(axis=(0, 1)) @ kernel + bias


@pytest.mark.parametrize(
    "name, size, fields",
    [
        ("resnet", "basic-4x1x1", dict()),
        ("resnet", "bottleneck-4x1x1", dict(stem="imagenet")),
        ("resnet", "basic-4x1x1", dict(norm="group")),
        ("preact_resnet", "4x1x1", dict(activation="silu")),
        ("preact_resnet", "4x1x1", dict(norm="layer")),
        ("wide_resnet", "10-1", dict()),
    ],
)
def test_forward_pass_against_numpy(name, size, fields):
    """In evaluation, and one image at a time: an image's logits ignore its batch."""
    model = small.model(name, size, **fields)
    variables, images = small.variables(model), small.images(3)
    logits = jax.jit(model.apply)(variables, images)
    expected = [ByHand(model, variables).logits(image) for image in images]
    np.testing.assert_allclose(logits, np.stack(expected), atol=2e-5)


@pytest.mark.parametrize("norm", layers.NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_layers_and_float32_logits(name, norm):
    model = small.model(name, norm=norm, dtype=jnp.bfloat16)
    shapes = small.shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    logits, seen = jax.eval_shape(
        lambda v, images: model.apply(
            v, images, train=True, capture_intermediates=True, mutable=True
        ),
        shapes,
        small.images(2),
    )
    assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
    stats = jax.tree.leaves(seen.get("batch_stats", {}))
    assert all(leaf.dtype == jnp.float32 for leaf in stats)
    layer = r"(stem|patch_embed|(stage|blocks_)\d.*)/__call__.*"
    outputs = jax.tree_util.tree_leaves_with_path(seen["intermediates"])
    named = {"/".join(str(k.key) for k in p if hasattr(k, "key")): x for p, x in outputs}
    inner = [x for path, x in named.items() if re.fullmatch(layer, path)]
    assert len(inner) > 6 and {x.dtype for x in inner} == {jnp.dtype("bfloat16")}
