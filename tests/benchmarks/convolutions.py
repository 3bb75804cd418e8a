"""The speed of convolutional networks on a CPU, beside the same work in eager torch.

  taskset -c 0 python tests/benchmarks/convolutions.py [--side=32] [--batch=8]
      [--pgd=2] [--rounds=7] [--methods=nominal,adversarial,cotrain] [--size=18]

Steps of a PreActResNet with shared batch norms: PGD of signed steps in evaluation mode,
cross-entropy, SGD with momentum, averaged parameters. Prints milliseconds of CPU for a step
of ours and of torch's, and their ratio (medians and quartiles; each round is a step of
ours, then one of torch's). Pinned to one core both use one thread.
"""

import functools
import statistics
import sys
import time

import jax
import numpy as np

from advadapters import builders, defaults, meshes
from advadapters.models import preact_resnet

OPTIONS = {
    "side": "32",
    "batch": "8",
    "pgd": "2",
    "rounds": "7",
    "methods": "nominal,adversarial,cotrain",
    "size": "18",
}
EPS, DECAY = 8 / 255, 1e-4


def main(argv):
    """Measures what is asked for and prints a row for each method."""
    options = OPTIONS | dict(argument.removeprefix("--").split("=") for argument in argv)
    side, batch, pgd, rounds = (
        int(options[name]) for name in ("side", "batch", "pgd", "rounds")
    )
    print(
        f"jax {jax.__version__}, PreActResNet-{options['size']}, {batch} images of {side}"
    )
    print("| step | ms | torch | times torch (quartiles) | compile s |")
    for method in options["methods"].split(","):
        settings = options["size"], method, side, batch, pgd
        started = time.process_time()
        calls = [ours(*settings)]
        compiling = time.process_time() - started
        try:
            import torch  # noqa: F401
        except ModuleNotFoundError:
            pass
        else:
            calls.append(theirs(*settings))
        for call in calls:
            call()
        seconds = [[timed(call) for call in calls] for _ in range(rounds)]
        middle = [1e3 * statistics.median(column) for column in zip(*seconds, strict=True)]
        row = [f"{value:.0f}" for value in middle]
        if len(calls) > 1:
            ratios = [second / first for first, second in seconds]
            low, mid, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            row.append(f"{mid:.2f} ({low:.2f}-{high:.2f})")
        print(f"| {method} | " + " | ".join(row) + f" | {compiling:.0f} |", flush=True)


def timed(call):
    """CPU seconds of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def ours(size, method, side, batch, pgd):
    """A step as a function of nothing, compiled."""
    config = defaults.config()
    config.model = defaults.model("preact_resnet", size)
    config.data.update(source=f"blank:{64 * batch}", image_size=side, flip=False)
    config.optimizer = defaults.sgd(warmup_epochs=0.0)
    config.batch_size, config.ema_decay = batch, 1 - DECAY
    attack = defaults.pgd("linf", EPS, steps=pgd, step_size=2 * EPS / pgd)
    config.update(defaults.method(method, {"linf": attack}))
    config.adapters = ()
    config.evaluation.suites = {}
    mesh = meshes.make(jax.devices()[:1])
    run = builders.build(config.to_dict(), mesh)
    make = functools.partial(builders.initial_state, run)
    state = jax.jit(make, out_shardings=meshes.replicated(mesh))()
    draw = np.random.default_rng(0)
    placed = meshes.global_batch(
        mesh,
        {
            "images": draw.integers(256, size=(batch, side, side, 3)).astype(np.uint8),
            "labels": draw.integers(10, size=batch).astype(np.int32),
            "index": np.arange(batch, dtype=np.int32),
        },
    )
    seed = np.uint32(0)
    compiled = builders.train_step(run, mesh).lower(state, placed, seed).compile()
    held = [state]

    def once():
        held[0], metrics = compiled(held[0], placed, seed)
        jax.block_until_ready((held[0], metrics))

    return once


def theirs(size, method, side, batch, pgd):
    """The same work in torch as a function of nothing."""
    import torch
    from torch.nn import functional as F

    model = torch_network(preact_resnet.read_size(size))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True
    )
    average = [parameter.detach().clone() for parameter in model.parameters()]
    images = torch.rand(batch, 3, side, side)
    labels = torch.randint(10, (batch,))

    def attacked():
        model.eval()
        moved = (images + EPS * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
        for _ in range(pgd):
            moved.requires_grad_(True)
            loss = F.cross_entropy(model(moved), labels)
            slope = torch.autograd.grad(loss, moved)[0]
            moved = moved.detach() + 2 * EPS / pgd * slope.sign()
            moved = torch.clamp(torch.clamp(moved, images - EPS, images + EPS), 0, 1)
        model.train()
        return moved

    def step():
        seen = {"nominal": [images]}.get(method) or [attacked()]
        seen = [images, *seen] if method == "cotrain" else seen
        loss = F.cross_entropy(model(torch.cat(seen)), labels.repeat(len(seen)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(average, list(model.parameters()), DECAY)

    return step


def torch_network(size):
    """A PreActResNet of this size in torch, for ten classes."""
    import torch
    from torch import nn

    from advadapters.models import layers

    def conv(before, after, kernel, stride=1):
        return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)

    class Block(nn.Module):
        """Norm and activation before each of two convolutions."""

        def __init__(self, before, width, stride):
            super().__init__()
            self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(width)
            self.conv1, self.conv2 = conv(before, width, 3, stride), conv(width, width, 3)
            changed = stride > 1 or before != width
            self.shortcut = conv(before, width, 1, stride) if changed else None

        def forward(self, x):
            """x [B, C, H, W] and the branch's result, added."""
            active = torch.relu(self.norm1(x))
            branch = self.conv2(torch.relu(self.norm2(self.conv1(active))))
            return branch + (self.shortcut(active) if self.shortcut else x)

    blocks, before = [conv(3, size.stem, 3)], size.stem
    for _, width, stride in layers.stages(size.width, size.depths):
        blocks.append(Block(before, width, stride))
        before = width
    end = [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*blocks, *end, nn.Linear(before, 10))


if __name__ == "__main__":
    main(sys.argv[1:])
