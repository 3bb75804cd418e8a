"""A ViT-B/16 in jimm, an independent implementation in JAX, from the same file both ways.

    pip install jax-image-models transformers
    python tests/benchmarks/jimm_vit.py

Our network with random weights is written with the names of transformers' ViT, which jimm
reads; and jimm's network, with its own random weights, is saved by jimm and read by
`weights.read`. Printed are the largest difference of logits on two images and their
deviation. jimm's norms have an epsilon of 1e-12 whatever the file says, so ours do too.
"""

import json
import pathlib
import sys
import tempfile

import jax
import jimm
import numpy as np
import tiny
from flax import nnx
from weights import pretrained

from advadapters import networks, weights
from advadapters.exports import folders, tensors
from advadapters.models import vit

SIZE, CLASSES, SIDE = "768x12x3072x12", 1000, 224
HALF = (0.5, 0.5, 0.5)
KNOWN = dict(norm_eps=1e-12, mean=HALF, std=HALF, pool="class")


def one_device():
    """The mesh that jimm wants around its networks."""
    kinds = (jax.sharding.AxisType.Auto,)
    return jax.set_mesh(jax.make_mesh((1,), ("fsdp",), axis_types=kinds))


def images():
    """[2, 224, 224, 3], one of them dark."""
    drawn = pretrained.images(side=SIDE)
    drawn[0] *= 0.1
    return drawn


def ours_to_jimm(path):
    """(our logits, jimm's) of our random network."""
    model = vit.ViT(size=vit.read_size(SIZE), classes=CLASSES, patch=16, **KNOWN)
    net = networks.make_network(model, (SIDE, SIDE, 3))
    plain = tiny.drawn(net, 0)
    settings = dict(name="vit", size=SIZE, patch=16, positions="learned", norm="layer")
    about = {
        "classes": [str(i) for i in range(CLASSES)],
        "image": [SIDE, SIDE, 3],
        "source": {"model": settings | KNOWN},
    }
    data = dict(interpolation="bicubic", crop_ratio=0.875)
    contents = folders.make("transformers", plain, about, data, "jimm")
    packed = tensors.pack(contents.arrays, {"format": "pt"})
    (path / "model.safetensors").write_bytes(packed)
    for name, values in contents.files.items():
        (path / name).write_text(json.dumps(values))
    with one_device():
        theirs = jimm_logits(jimm.VisionTransformer.from_pretrained(str(path)))
    return jax.jit(net.evaluate)(plain, images()), theirs


def jimm_to_ours(path):
    """(our logits, jimm's) of jimm's random network."""
    with one_device():
        model = jimm.VisionTransformer(num_classes=CLASSES, rngs=nnx.Rngs(1))
        model.save_pretrained(str(path))
        theirs = jimm_logits(model)
    read = weights.read(path)
    module = pretrained.ours(read, heads=12, **KNOWN)
    return pretrained.logits(module, read.leaves, images()), theirs


def jimm_logits(model):
    """jimm's logits, of images that are normalised before it."""
    model.eval()
    return np.asarray(nnx.jit(lambda model, x: model(x))(model, (images() - 0.5) / 0.5))


def main():
    """Prints both comparisons."""
    jax.config.update("jax_default_matmul_precision", "highest")
    for name, compare in (("ours to jimm", ours_to_jimm), ("jimm to ours", jimm_to_ours)):
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = compare(pathlib.Path(folder))
        apart = np.abs(np.asarray(ours) - theirs).max()
        print(f"{name}: differ by {apart:.1e}, deviation {theirs.std():.2g}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
