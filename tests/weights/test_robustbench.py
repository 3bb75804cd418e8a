"""WideResNets and PreActResNets as RobustBench writes them in torch, against ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import pretrained

from advadapters import trees, weights
from advadapters.models import MODELS

torch = pytest.importorskip("torch")
nn = torch.nn


def conv(inputs, outputs, side, stride=1):
    """A convolution without bias."""
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)


class WideBlock(nn.Module):
    """Zagoruyko's block, by RobustBench's names."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.conv2 = conv(outputs, outputs, 3)
        self.convShortcut = conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x):
        active = torch.relu(self.bn1(x))
        y = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return (self.convShortcut(active) if self.convShortcut else x) + y


class Stage(nn.Module):
    """Blocks under the name "layer"."""

    def __init__(self, *blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-10-2."""

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 16, 3)
        for stage, (inputs, outputs) in enumerate(((16, 32), (32, 64), (64, 128)), 1):
            block = WideBlock(inputs, outputs, 1 if stage == 1 else 2)
            setattr(self, f"block{stage}", Stage(block))
        self.bn1, self.fc = nn.BatchNorm2d(128), nn.Linear(128, pretrained.CLASSES)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(torch.relu(self.bn1(x)).mean((2, 3)))


class PreActBlock(nn.Module):
    """The block of PreActResNet-18."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.conv2 = conv(outputs, outputs, 3)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride))

    def forward(self, x):
        active = torch.relu(self.bn1(x))
        y = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return (self.shortcut(active) if hasattr(self, "shortcut") else x) + y


class PreActResNet(nn.Module):
    """Two stages, with the norm before pooling."""

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8, 3)
        self.layer1 = nn.Sequential(PreActBlock(8, 8, 1), PreActBlock(8, 8, 1))
        self.layer2 = nn.Sequential(PreActBlock(8, 16, 2))
        self.bn, self.linear = nn.BatchNorm2d(16), nn.Linear(16, pretrained.CLASSES)

    def forward(self, x):
        x = self.layer2(self.layer1(self.conv1(x)))
        return self.linear(torch.relu(self.bn(x)).mean((2, 3)))


def stirred(module):
    """In evaluation mode, with random weights and statistics."""
    torch.manual_seed(0)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            tensor.data.uniform_(0.5, 1.5)
        else:
            tensor.data.normal_(std=0.2)
    return module.eval()


@pytest.mark.parametrize(
    "make, model, size",
    [(WideResNet, "wide_resnet", "10-2"), (PreActResNet, "preact_resnet", "8x2x1")],
)
def test_logits_are_those_of_torch(make, model, size, tmp_path):
    module = stirred(make())
    state = {f"module.model.{k}": v for k, v in module.state_dict().items()}
    state["module.mu"] = torch.tensor([0.5, 0.5, 0.5]).reshape(1, 3, 1, 1)
    state["module.sigma"] = torch.tensor([0.5, 0.5, 0.5]).reshape(1, 3, 1, 1)
    torch.save({"model_state_dict": state}, tmp_path / "w.pt")
    read = weights.read(tmp_path / "w.pt")
    assert read.model["name"] == model and read.model["mean"] == (0.5,) * 3
    row = MODELS[model]
    ours = row(
        size=row.read_size(size),
        classes=pretrained.CLASSES,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    pictures = pretrained.images()
    tree = {branch: trees.unflatten(flat) for branch, flat in read.leaves.items()}
    found = jax.jit(ours.apply)(tree, jnp.asarray(pictures))
    expected = pretrained.torch_logits(module, pictures)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert np.ptp(expected, axis=0).max() > 0.1
