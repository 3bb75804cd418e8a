"""Networks of real sizes with random weights, exported and computed by other programs.

    pip install torch torchvision timm transformers robustbench
    python tests/benchmarks/real_sizes.py

Each row is written as a folder, which the other program's own class loads, and read again
by `weights.read`. Printed are the largest difference of logits on two images, the deviation
of the logits, and whether all leaves came back bit for bit.
"""

import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import tiny
import torch
from exports.test_torch_folders import load_class
from safetensors.torch import load_file

from advadapters import networks, trees, weights
from advadapters.exports import folders, tensors
from advadapters.models import MODELS
from advadapters.weights import fitting

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DATA = dict(interpolation="bicubic", crop_ratio=0.875)
SMALL, LARGE = 32, 224
VIT = dict(patch=16, pool="class", positions="learned")

# (program, model, size, settings, side of the images)
ROWS = (
    ("torch", "resnet", "50", dict(stem="imagenet"), LARGE),
    ("timm", "resnet", "50", dict(stem="imagenet"), LARGE),
    ("torch", "resnet", "18", dict(stem="cifar"), SMALL),
    ("torch", "preact_resnet", "18", {}, SMALL),
    ("torch", "wide_resnet", "28-10", {}, SMALL),
    ("transformers", "vit", "768x12x3072x12", VIT, LARGE),
    ("timm", "vit", "768x12x3072x12", VIT, LARGE),
)


def build(name, size, more, side):
    """(Network, plain tree, metadata)."""
    classes = 1000 if side == LARGE else 10
    row = MODELS[name]
    settings = dict(size=row.read_size(size), classes=classes, mean=MEAN, std=STD) | more
    settings.pop("positions", None)
    net = networks.make_network(row(**settings), (side, side, 3))
    common = dict(name=name, size=size, mean=MEAN, std=STD, added={}, film={}, resize=0)
    kind = dict(norm="layer" if name == "vit" else "batch", activation="relu")
    about = {
        "classes": [str(i) for i in range(classes)],
        "image": [side, side, 3],
        "source": {"model": common | kind | more},
    }
    return net, tiny.drawn(net, 0), about


def load(program, about, path):
    """The other program's module, of a folder."""
    if program == "timm":
        import timm

        return timm.create_model(f"local-dir:{path}", pretrained=True)
    if program == "transformers":
        from transformers import ViTForImageClassification

        return ViTForImageClassification.from_pretrained(path)
    module = load_class(about)
    module.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    return module


def compare(program, name, size, more, side):
    """Prints a row."""
    net, plain, about = build(name, size, more, side)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        contents = folders.make(program, plain, about, DATA, "soup")
        data = tensors.pack(contents.arrays, {"format": "pt"})
        (path / "model.safetensors").write_bytes(data)
        for file, values in contents.files.items():
            (path / file).write_text(json.dumps(values))
        module = load(program, about, path).eval()
        leaves = weights.read(path).leaves
    flat = {b: fitting.unrolled_blocks(trees.flatten(plain[b])) for b in plain}
    same = all(
        np.array_equal(leaves[b][path], leaf)
        for b in flat
        for path, leaf in flat[b].items()
    )
    images = np.random.default_rng(1).uniform(size=(2, side, side, 3)).astype(np.float32)
    images[0] *= 0.1
    pixels = ((images - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        out = module(torch.from_numpy(np.float32(pixels)))
    theirs = getattr(out, "logits", out).numpy()
    ours = np.asarray(jax.jit(net.evaluate)(plain, images))
    count = sum(leaf.size for leaf in flat["params"].values())
    print(
        f"{program:12} {type(module).__name__:26} {name} {size}: {count:,} parameters, "
        f"difference {np.abs(ours - theirs).max():.1e}, deviation {theirs.std():.2g}, "
        f"{'bitwise' if same else 'CHANGED'}",
        flush=True,
    )


if __name__ == "__main__":
    for row in ROWS:
        compare(*row)
    sys.exit(0)
