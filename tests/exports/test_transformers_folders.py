"""Vision transformers as folders that transformers' own ViT loads: the same logits."""

import jax
import numpy as np
import pytest
from exports.test_timm import IMAGES, KINDS, MEAN, STD, network, torch_logits

from advadapters import weights
from advadapters.errors import UsageError
from advadapters.exports import folders, tensors
from advadapters.runs import workdir

DATA = dict(interpolation="area", crop_ratio=0.8)
CLASS = dict(pool="class")
FOLDERS = {
    "class token": CLASS,
    "sincos": CLASS | dict(positions="sincos"),
    "scanned": CLASS | dict(scan=True),
    "LoRA": CLASS | KINDS["LoRA"],
    "LayerScale": CLASS | dict(layer_scale=0.1),
    "no biases": CLASS | dict(qkv_bias=False, patch_bias=False, class_position=False),
    "tanh": CLASS | dict(gelu="tanh", norm_eps=1e-5),
    "quick": CLASS | dict(gelu="quick"),
}


def write(path, kind):
    """Writes a folder; returns (Network, plain tree)."""
    net, plain, about = network(**FOLDERS[kind])
    folder = folders.make("transformers", plain, about, DATA, "soup")
    data = tensors.pack(folder.arrays, {"format": "pt"})
    (path / "model.safetensors").write_bytes(data)
    for name, values in folder.files.items():
        workdir.write_json(path / name, values)
    return net, plain


@pytest.mark.parametrize("kind", FOLDERS)
def test_transformers_computes_the_same_logits(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    net, plain = write(tmp_path, kind)
    module, report = transformers.ViTForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    expected = jax.jit(net.evaluate)(plain, IMAGES)
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(torch_logits(module.eval()), expected, rtol=0, atol=1e-4)
    assert module.config.id2label[2] == "c"


def test_its_image_processor_prepares_images(tmp_path):
    """Those of the network's size come through, normalised."""
    transformers = pytest.importorskip("transformers")
    write(tmp_path, "class token")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    images = np.round(IMAGES * 255).astype(np.uint8)
    larger = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    pixels = np.stack(
        [np.asarray(x) for x in processor(list(larger), return_tensors="np").pixel_values]
    )
    expected = (images / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(pixels, expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_the_folder_is_read_again_bit_for_bit(tmp_path):
    net, plain = write(tmp_path, "class token")
    read = weights.read(tmp_path)
    assert read.family == "transformers ViT" and read.model["heads"] == 2
    assert read.model["pool"] == "class" and read.model["mean"] == MEAN
    assert read.data == dict(image_size=16, crop_ratio=0.8, interpolation="bicubic")
    expected = weights.trees.flatten(plain["params"])
    assert read.leaves["params"].keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(read.leaves["params"][path], leaf)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "config.model.pool='class', this one has 'tokens'"),
        (CLASS | dict(prompts=2), "config.model.prompts=0, this one has 2"),
        (CLASS | dict(pre_norm=True), "config.model.pre_norm=False, this one has True"),
    ],
)
def test_what_transformers_cannot_be_is_refused(fields, message):
    _, plain, about = network(**fields)
    with pytest.raises(UsageError, match=message):
        folders.make("transformers", plain, about, DATA, "soup")
