"""Torch's ResNets in numpy, as torchvision names and lays them out, against ours."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import small

from advadapters import trees
from advadapters.__main__ import main
from advadapters.errors import UsageError
from advadapters.weights import resnets, rules

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SHORT = [
    "--config.epochs=0.1", "--config.optimizer.warmup_epochs=0.0",
    "--config.evaluation.suites.pgd20_linf.steps=1",
    "--config.evaluation.soup_weights=(1.0,)",
]  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torch_weights(width, depths, bottleneck, classes=5, channels=3, stem=7, seed=0):
    """{torchvision's name: float32 array}, all random; made without our code."""
    draw, found = np.random.default_rng(seed), {}

    def conv(name, inputs, outputs, side):
        noise = draw.normal(size=(outputs, inputs, side, side))
        found[f"{name}.weight"] = noise / np.sqrt(inputs * side**2)

    def norm(name, count):
        found[f"{name}.weight"] = draw.uniform(0.5, 1.5, count)
        found[f"{name}.bias"] = 0.2 * draw.normal(size=count)
        found[f"{name}.running_mean"] = 0.2 * draw.normal(size=count)
        found[f"{name}.running_var"] = draw.uniform(0.5, 1.5, count)
        found[f"{name}.num_batches_tracked"] = np.array(7)

    conv("conv1", channels, width, stem)
    norm("bn1", width)
    inputs = width
    for stage, depth in enumerate(depths):
        middle = width * 2**stage
        outputs = middle * (4 if bottleneck else 1)
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            sides = (1, 3, 1) if bottleneck else (3, 3)
            counts = [inputs, *[middle] * (len(sides) - 1), outputs]
            for i, side in enumerate(sides):
                conv(f"{name}.conv{i + 1}", counts[i], counts[i + 1], side)
                norm(f"{name}.bn{i + 1}", counts[i + 1])
            if block == 0 and (stage or inputs != outputs):
                conv(f"{name}.downsample.0", inputs, outputs, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    found["fc.weight"] = draw.normal(size=(classes, inputs)) / np.sqrt(inputs)
    found["fc.bias"] = draw.normal(size=classes)
    return {
        name: array if array.dtype.kind == "i" else array.astype(np.float32)
        for name, array in found.items()
    }


def convert(arrays):
    """{"params", "batch_stats"} of arrays by torch's names."""
    leaves = rules.read(resnets.RESNET, arrays).leaves
    return {branch: trees.unflatten(flat) for branch, flat in leaves.items()}


class Torch:
    """Forward passes in evaluation mode, [B, C, H, W] and float64."""

    def __init__(self, weights):
        self.weights = weights

    def conv(self, x, name, stride=1):
        kernel = self.weights[f"{name}.weight"].astype(float)
        pad = kernel.shape[-1] // 2
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (2, 3))
        return np.einsum("bihwyx,oiyx->bohw", windows[:, :, ::stride, ::stride], kernel)

    def norm(self, x, name):
        weight, bias, mean, variance = (
            self.weights[f"{name}.{leaf}"].astype(float)[:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias

    def block(self, x, name, stride):
        if f"{name}.conv3.weight" in self.weights:
            strides = (1, stride, 1)
        else:
            strides = (stride, 1)
        y = x
        for i, step in enumerate(strides):
            y = self.norm(self.conv(y, f"{name}.conv{i + 1}", step), f"{name}.bn{i + 1}")
            y = y if i == len(strides) - 1 else np.maximum(y, 0)
        if f"{name}.downsample.0.weight" in self.weights:
            x = self.conv(x, f"{name}.downsample.0", stride)
            x = self.norm(x, f"{name}.downsample.1")
        return np.maximum(x + y, 0)

    def logits(self, images, depths, mean=MEAN, std=STD):
        """images [B, H, W, C] in [0, 1]."""
        x = ((np.asarray(images, float) - mean) / std).transpose(0, 3, 1, 2)
        large = self.weights["conv1.weight"].shape[-1] == 7
        x = np.maximum(self.norm(self.conv(x, "conv1", 2 if large else 1), "bn1"), 0)
        if large:
            x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
            x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
            x = x[:, :, ::2, ::2].max(axis=(-2, -1))
        for stage, depth in enumerate(depths):
            for block in range(depth):
                stride = 2 if stage and not block else 1
                x = self.block(x, f"layer{stage + 1}.{block}", stride)
        weight, bias = (self.weights[f"fc.{leaf}"] for leaf in ("weight", "bias"))
        return x.mean(axis=(2, 3)) @ weight.T + bias


@pytest.mark.parametrize(
    "size, depths, side",
    [("basic-8x1x1", (1, 1), 33), ("basic-4x2x1x1", (2, 1, 1), 40),
     ("bottleneck-4x2x1", (2, 1), 32)],
)  # fmt: skip
def test_logits_are_those_of_torch(size, depths, side, rng):
    weights = torch_weights(int(size.split("-")[1][0]), depths, "bottleneck" in size)
    net = small.model("resnet", size, 3, stem="imagenet", mean=MEAN, std=STD)
    images = rng.uniform(size=(3, side, side, 3)).astype(np.float32)
    logits = jax.jit(net.apply)(convert(weights), images)
    expected = Torch(weights).logits(images, depths)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.1  # the images matter


@pytest.mark.parametrize("size", ["18", "34", "50"])
def test_names_and_shapes_of_the_published_sizes(size):
    """Leaf by leaf those of torch, whose counts are known (tests/models)."""
    depths = (2, 2, 2, 2) if size == "18" else (3, 4, 6, 3)
    weights = torch_weights(64, depths, size == "50", classes=1000)
    net = small.model("resnet", size, 3, classes=1000, stem="imagenet")
    shapes = trees.flatten(small.shapes(net, 64))
    found = trees.flatten(convert(weights))
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in shapes.items()}


def wrapped(weights):
    """As MadryLab's robustness saves it: everything twice, and the normalisation."""
    both = {
        f"module.{prefix}{name}": array
        for prefix in ("model.", "attacker.model.")
        for name, array in weights.items()
    }
    for name in ("module.normalizer", "module.attacker.normalize"):
        both[f"{name}.new_mean"] = np.float32(MEAN)[:, None, None]
        both[f"{name}.new_std"] = np.float32(STD)[:, None, None]
    return both


def test_prefixes_and_duplicates():
    weights = torch_weights(4, (1, 1), False)
    expected = convert(weights)
    renamed = {
        name.replace("downsample", "shortcut").replace("fc.", "linear."): array
        for name, array in weights.items()
    }
    plain = [{f"{p}{n}": a for n, a in weights.items()} for p in ("module.", "model.")]
    for other in (wrapped(weights), renamed, *plain):
        found = convert(other)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    inputs = resnets.inputs(wrapped(weights))
    assert inputs == {"mean": pytest.approx(MEAN), "std": pytest.approx(STD)}
    assert resnets.inputs(weights) == {}
    both = wrapped(weights)
    both["module.attacker.model.fc.bias"] = both["module.model.fc.bias"] + 1
    with pytest.raises(UsageError, match="attacker.model.fc.bias and module.model.fc.bias"):
        convert(both)


def test_half_precision_becomes_float32():
    weights = {"conv1.weight": np.ones((2, 3, 7, 7), np.float16)}
    (kernel,) = jax.tree.leaves(convert(weights))
    assert kernel.dtype == np.float32 and kernel.shape == (7, 7, 3, 2)


FOREIGN = {
    "another name": (
        {"blocks.0.attn.qkv.weight": np.ones((3, 3))},
        "has no such name",
    ),
    "a bias of a convolution": (
        {"conv1.bias": np.ones(3)},
        "conv1.bias: torch ResNet has no such name; near",
    ),
    "integers": ({"bn1.weight": np.ones(3, int)}, "bn1.weight must hold floats, got int64"),
    "axes": ({"conv1.weight": np.ones((3, 3))}, "conv1.weight must have 4 axes"),
    "not finite": ({"bn1.bias": np.float32([0, np.inf])}, "bn1.bias has values that are"),
    "too large": ({"bn1.bias": np.array([1e300])}, "bn1.bias has values that are not"),
    "variance": ({"bn1.running_var": -np.ones(3)}, "bn1.running_var has variances below 0"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_arrays_are_refused(name):
    arrays, message = FOREIGN[name]
    with pytest.raises(UsageError, match=message):
        convert(arrays)


@pytest.fixture
def train(tmp_path, capsys):
    """(flags, arrays of the file or None) -> (exit code, what was printed)."""
    path, old = tmp_path / "resnet.py", '"wide_resnet", "10-1", '
    text = (CONFIGS / "digits_conv.py").read_text()
    assert old in text
    path.write_text(text.replace(old, '"resnet", "basic-4x1x1", '))

    def run(*argv, arrays=None):
        if arrays is not None:
            np.savez(tmp_path / "w.npz", **arrays)
        flags = [f"--config={path}:nominal", f"--workdir={tmp_path}/run", *SHORT]
        flags += [f"--config.start.weights={tmp_path}/w.npz", *argv]
        code = main(["train", *flags])
        out = capsys.readouterr()
        if code:
            assert out.out == "" and out.err.count("\n") == 1 and code == 2, out
            assert not (tmp_path / "run").exists()
        return code, out.out + out.err

    return run


def digits_weights(classes=10):
    return torch_weights(4, (1, 1), False, classes, channels=1, stem=3)


def test_training_starts_from_the_file(train, tmp_path):
    from advadapters.runs import opening, starting, workdir

    code, out = train("--config.start.fresh=('head/.*',)", arrays=digits_weights(classes=7))
    assert code == 0 and f"first parameters: {tmp_path}/w.npz" in out
    opened = opening.open_run(workdir.read_config(tmp_path / "run"), tmp_path / "run")
    found = starting.read(opened.run).plain
    expected = convert(digits_weights(classes=7))
    for branch, path in (("params", "stem/kernel"), ("batch_stats", "norm/var")):
        leaf = trees.flatten(found[branch])[path]
        np.testing.assert_array_equal(leaf, trees.flatten(expected[branch])[path])
    assert found["params"]["head"]["kernel"].shape == (8, 10)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 8, 8, 1)), jnp.float32)
    logits = opened.run.network.evaluate(found, images)
    weights = digits_weights() | {
        "fc.weight": np.asarray(found["params"]["head"]["kernel"]).T,
        "fc.bias": np.asarray(found["params"]["head"]["bias"]),
    }
    by_hand = Torch(weights | {k: v for k, v in digits_weights(7).items() if k[:2] != "fc"})
    np.testing.assert_allclose(logits, by_hand.logits(images, (1, 1), 0.5, 0.5), atol=1e-5)


def test_files_that_do_not_fit_are_one_line(train, tmp_path):
    weights = digits_weights()
    less = {k: v for k, v in weights.items() if k != "layer1.0.bn2.running_var"}
    group = ["--config.model.norm=group", "--config.statistics=pooled"]
    means = {"normalizer.new_mean": np.float32([0.4]), "normalizer.new_std": [0.5]}
    for arrays, flags, message in (
        (digits_weights(7), [], "head/bias is [10] here and [7] there"),
        (less, [], "stage1_block1/norm2/var is [4] here and missing there"),
        (torch_weights(4, (1, 2), False, 10, 1, 3), [], "has stage2_block2/"),
        (torch_weights(4, (1, 1), False, 10, 1, 7), [], "stem/kernel is [3, 3, 1, 4] here"),
        (weights, group, "set config.model.norm=batch, which is group"),
        (weights | means, [], "set config.model.mean=(0.4,), which is (0.5,)"),
        ({"x": np.ones(3)}, [], "w.npz: no family of weights has such names: 'x'"),
        ({"conv1.weight": np.array([{}], object)}, [], "cannot read weights from"),
        (weights, ["--config.start.workdir=/no/run"], "takes the place of a run"),
        (weights, ["--config.start.mixture={'clean': 1.0}"], "takes the place of a run"),
    ):
        code, out = train(*flags, arrays=arrays)
        assert code == 2 and message in out, out


def test_damaged_files_are_one_line(train, tmp_path):
    file = tmp_path / "w.npz"
    assert "cannot read weights" in train()[1]  # not there
    np.savez(file, **digits_weights())
    whole = file.read_bytes()
    for data in (b"", b"text", whole[:-100], whole[:300], whole[:500] + b"x" + whole[501:]):
        file.write_bytes(data)
        assert "cannot read weights" in train()[1]
    with file.open("wb") as raw:
        np.save(raw, np.ones(3))
    assert "a single array" in train()[1]
    import zipfile

    with zipfile.ZipFile(file, "w") as archive:  # as torch.save writes it
        archive.writestr("w/data.pkl", b"\x80\x02}q\x00.")
    assert "cannot read weights" in train()[1]
