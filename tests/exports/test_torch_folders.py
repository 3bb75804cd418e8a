"""Residual networks as folders of torch's: the same logits, and the same leaves again."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
import tiny

from advadapters import networks, trees, weights
from advadapters.errors import UsageError
from advadapters.exports import folders, tensors, torch_files
from advadapters.models import MODELS

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
DATA = dict(interpolation="bilinear", crop_ratio=0.875)

# (model, size, more settings, side of the images); in the sizes that torch's classes have.
KINDS = {
    "resnet18": ("resnet", "basic-64x1x1x1x1", dict(stem="imagenet"), 64),
    "resnet50": ("resnet", "bottleneck-64x1x1x1x1", dict(stem="imagenet"), 64),
    "cifar": ("resnet", "basic-64x1x1x1x1", dict(stem="cifar"), 32),
    "preact": ("preact_resnet", "64x1x1x1x1", {}, 32),
    "wide": ("wide_resnet", "10-2", {}, 32),
}


def network(kind, **fields):
    """(Network, plain tree, metadata) of a row."""
    name, size, more, side = KINDS[kind]
    row = MODELS[name]
    settings = dict(size=row.read_size(size), classes=5, mean=MEAN, std=STD) | more
    net = networks.make_network(row(**settings), (side, side, 3))
    plain = tiny.plain(net)
    model = dict(
        name=name, size=size, mean=MEAN, std=STD, norm="batch", activation="relu",
        resize=0, added={}, film={},
    )  # fmt: skip
    source = {"source": {"model": model | more | fields}}
    return net, plain, {"classes": list("abcde"), "image": [side, side, 3]} | source


def load_class(about):
    """The module that the model card makes, without weights; skips without its package."""
    pytest.importorskip("torch")
    row = torch_files.constructor_of(about)
    package, *parts = row.module.split(".")
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed")
    # The package itself would import whatever all of its networks need.
    file = pathlib.Path(found.origin).parent.joinpath(*parts).with_suffix(".py")
    if package == "torchvision":
        module = importlib.import_module(row.module)
    else:
        spec = importlib.util.spec_from_file_location(parts[-1], file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return eval(row.call, vars(module))


@pytest.mark.parametrize("kind", KINDS)
def test_torch_computes_the_same_logits(kind):
    """In the class that the model card names, with strict loading."""
    net, plain, about = network(kind)
    module = load_class(about)
    import torch

    folder = folders.make("torch", plain, about, DATA, "soup")
    state = {name: torch.from_numpy(array.copy()) for name, array in folder.arrays.items()}
    module.load_state_dict(state, strict=True)
    side = about["image"][0]
    images = np.random.default_rng(1).uniform(size=(2, side, side, 3)).astype(np.float32)
    images[0] *= 0.1
    with torch.no_grad():
        pixels = ((images - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2)
        logits = module.eval()(torch.from_numpy(np.float32(pixels))).numpy()
    expected = jax.jit(net.evaluate)(plain, images)
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_read_again_bit_for_bit(kind, tmp_path):
    _, plain, about = network(kind)
    folder = folders.make("torch", plain, about, DATA, "soup")
    data = tensors.pack(folder.arrays, {"format": "pt"})
    (tmp_path / "model.safetensors").write_bytes(data)
    workdir_json(tmp_path / "config.json", folder.files["config.json"])
    read = weights.read(tmp_path)
    assert read.model["name"] == KINDS[kind][0]
    assert read.model["mean"] == MEAN and read.data["crop_ratio"] == 0.875
    for branch, tree in plain.items():
        expected = trees.flatten(tree)
        assert read.leaves[branch].keys() == expected.keys()
        for path, leaf in expected.items():
            np.testing.assert_array_equal(read.leaves[branch][path], leaf)


def workdir_json(path, values):
    """Writes JSON as the program does."""
    from advadapters.runs import workdir

    workdir.write_json(path, values)


@pytest.mark.parametrize("kind", ["resnet18", "resnet50"])
def test_timm_loads_the_folder_of_a_resnet(kind, tmp_path):
    timm = pytest.importorskip("timm")
    import torch

    net, plain, about = network(kind)
    folder = folders.make("timm", plain, about, DATA, "soup")
    data = tensors.pack(folder.arrays, {"format": "pt"})
    (tmp_path / "model.safetensors").write_bytes(data)
    workdir_json(tmp_path / "config.json", folder.files["config.json"])
    module = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = np.random.default_rng(1).uniform(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = ((images - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2)
        logits = module(torch.from_numpy(np.float32(pixels))).numpy()
    expected = jax.jit(net.evaluate)(plain, images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_the_card_says_which_class_it_is():
    _, _, about = network("wide")
    text = torch_files.usage(about, "soup")
    assert "from robustbench.model_zoo.architectures.wide_resnet import WideResNet" in text
    assert "model = WideResNet(depth=10, widen_factor=2, num_classes=5)" in text
    assert 'load_file("soup/model.safetensors")' in text
    about["source"]["model"]["width"] = 0.5
    assert torch_files.constructor_of(about) is None
    assert "has to be written" in torch_files.usage(about, "soup")
    _, _, about = network("preact")
    about["source"]["model"]["width"] = 0.5
    assert torch_files.constructor_of(about) is None


@pytest.mark.parametrize(
    "kind, to, fields, message",
    [
        ("wide", "torch", dict(norm="group"), "norm='batch', this one has 'group'"),
        ("wide", "torch", dict(activation="silu"), "activation='relu', this one has"),
        ("wide", "torch", dict(film={"size": 1}), "config.model.film"),
        ("wide", "torch", dict(name="vit"), "written of residual networks, and this is"),
        ("wide", "timm", {}, "use --to=torch"),
        ("cifar", "timm", {}, "use --to=torch"),
        ("wide", "transformers", {}, "written of a vit, and this is wide_resnet"),
        ("wide", "keras", {}, "unknown program for a folder 'keras'"),
    ],
)
def test_what_the_others_cannot_be_is_refused(kind, to, fields, message):
    about = {"source": {"model": {"name": KINDS[kind][0], "size": KINDS[kind][1]}}}
    about["source"]["model"] |= KINDS[kind][2] | fields
    with pytest.raises(UsageError, match=message):
        folders.make(to, {"params": {}, "batch_stats": {}}, about, DATA, "soup")
