"""The networks of tests/reference as logits_fn, and the official results."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from advadapters import trees
from advadapters.models import vit

FOLDER = pathlib.Path(__file__).parent / "reference"
OFFICIAL = json.loads((FOLDER / "official.json").read_text())


def arrays(name):
    """An .npz file of the reference as a dict."""
    with (FOLDER / name).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def data(count=500):
    """(images float32 [N, 28, 28, 1] in [0, 1], labels int32 [N])."""
    file = arrays("fashion_mnist_500.npz")
    images = file["images"][:count, :, :, None].astype(np.float32) / np.float32(255)
    return images, file["labels"][:count].astype(np.int32)


def robust_after(anchor, stage, count=500):
    """bool [N]: what the official suite left after a stage of an anchor."""
    packed = arrays("fashion_mnist_500.npz")[f"{anchor}/robust_after_{stage}"]
    return np.unpackbits(packed)[:count].astype(bool)


def cnn(weights, images):
    """Two strided convolutions and two dense layers."""
    x = (images - 0.2860) / 0.3530
    for name in ("conv1", "conv2"):
        x = jax.lax.conv_general_dilated(
            x,
            weights[f"{name}.weight"].transpose(2, 3, 1, 0),
            window_strides=(2, 2),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + weights[f"{name}.bias"])
    x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # torch flattens channels first
    x = jax.nn.relu(x @ weights["fc1.weight"].T + weights["fc1.bias"])
    return x @ weights["fc2.weight"].T + weights["fc2.bias"]


def vit_params(weights):
    """torch names and layouts -> the tree of our ViT."""
    flat = {
        "class_token": weights["cls_token"],
        "pos_embed": weights["pos_embed"],
        "patch_embed/kernel": weights["patch_embed.weight"]
        .transpose(2, 3, 1, 0)
        .reshape(49, 64),
        "patch_embed/bias": weights["patch_embed.bias"],
    }
    dense = {"head": "head"}
    norms = {"norm": "norm"}
    for i in range(4):
        block = f"blocks.{i}"
        norms |= {f"blocks_{i}/{n}": f"{block}.{n}" for n in ("norm1", "norm2")}
        dense |= {f"blocks_{i}/attn/{n}": f"{block}.{n}" for n in ("qkv", "proj")}
        dense |= {f"blocks_{i}/mlp/{n}": f"{block}.{n}" for n in ("fc1", "fc2")}
    for ours, theirs in dense.items():
        flat[f"{ours}/kernel"] = weights[f"{theirs}.weight"].T
        flat[f"{ours}/bias"] = weights[f"{theirs}.bias"]
    for ours, theirs in norms.items():
        flat[f"{ours}/scale"] = weights[f"{theirs}.weight"]
        flat[f"{ours}/bias"] = weights[f"{theirs}.bias"]
    return trees.unflatten(flat)


def network(name):
    """ "cnn" or "vit" -> logits_fn, its weights as leaves."""
    weights = arrays(f"{name}.npz")
    if name == "cnn":
        return Partial(cnn, jax.tree.map(jnp.asarray, weights))
    model = vit.ViT(
        size=vit.Size(64, 4, 256, 4),
        classes=10,
        patch=7,
        mean=(0.2860,),
        std=(0.3530,),
        pool="class",
    )
    params = jax.tree.map(jnp.asarray, vit_params(weights))
    return Partial(lambda p, images: model.apply({"params": p}, images), params)
