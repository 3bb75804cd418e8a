"""The speed of the training step, and of the same work in torch where it is installed.

  python tests/benchmarks/train_step.py [--networks=tiny,ti16,s16,b16] [--rounds=7]
      [--methods=nominal,adversarial,cotrain] [--batch=16] [--pgd=2] [--json=FILE]

Prints for each network and method: images per second, FLOP/s by the count on paper, their
share of the device's own measured rate of matrix products, what the compiler plans in
memory, and torch's images per second with the ratio of the two (median and quartiles over
the rounds; each round is a step of ours, then one of torch's). Both do the same: PGD of
signed steps on the images, cross-entropy with smoothed labels, AdamW, averaged parameters;
bfloat16 products on accelerators (torch: autocast, compiled, fused attention), float32 on
CPUs (torch: eager). Images are blank: values do not change the time of dense products.
"""

import functools
import importlib.machinery
import json
import pathlib
import statistics
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import builders, costs
from advadapters import mesh as meshes

OPTIONS = {
    "networks": "tiny,ti16",
    "methods": "nominal,adversarial,cotrain",
    "batch": "16",
    "pgd": "2",
    "rounds": "7",
    "json": "",
}
CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "imagenet_vit_b16.py"


class Shape(NamedTuple):
    """A network's size as torch needs it too, and the side of its images in pixels."""

    width: int
    depth: int
    hidden: int
    heads: int
    patch: int
    side: int


SHAPES = {
    "tiny": Shape(64, 4, 256, 4, 4, 28),
    "ti16": Shape(192, 12, 768, 3, 16, 224),
    "s16": Shape(384, 12, 1536, 6, 16, 224),
    "b16": Shape(768, 12, 3072, 12, 16, 224),
}


def main(argv):
    """Measures what is asked for and prints a row for each."""
    options = OPTIONS | dict(argument.removeprefix("--").split("=") for argument in argv)
    device = jax.devices()[0]
    fast = device.platform != "cpu"
    rate = matmul_rate(jnp.bfloat16 if fast else jnp.float32, 8192 if fast else 1024)
    print(
        f"{device.device_kind}, jax {jax.__version__}: {rate / 1e12:.3f} TFLOP/s measured"
    )
    rows = []
    for name in options["networks"].split(","):
        for method in options["methods"].split(","):
            numbers = (int(options[key]) for key in ("batch", "pgd", "rounds"))
            row = measure(SHAPES[name], method, *numbers, fast, rate)
            rows.append({"network": name, "method": method} | row)
            print(describe(rows[-1]), flush=True)
            if options["json"]:
                told = {"device": device.device_kind, "rate": rate, "rows": rows}
                pathlib.Path(options["json"]).write_text(json.dumps(told, indent=1))


def describe(row):
    """One line of the table."""
    line = (
        f"| {row['network']} | {row['method']} | {row['images_per_second']:.1f} | "
        f"{row['flops_per_second'] / 1e12:.3f} | {100 * row['share']:.0f}% | "
        f"{row['memory'] / 2**30:.2f} GiB |"
    )
    if "torch" not in row:
        return line
    low, middle, high = row["ratio"]
    return f"{line} {row['torch']:.1f} | {middle:.2f} ({low:.2f}-{high:.2f}) |"


def matmul_rate(dtype, size):
    """FLOP/s of the best of fifty products of two square matrices."""
    left = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: (a @ b).astype(dtype))
    product(left, left).block_until_ready()
    best = min(timed(lambda: product(left, left).block_until_ready()) for _ in range(50))
    return 2 * size**3 / best


def timed(call):
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def run_of(shape, method, batch, pgd, fast, mesh):
    """The Run of the ImageNet config with another network and no augmentation."""
    module = importlib.machinery.SourceFileLoader("config", str(CONFIG)).load_module()
    config = module.get_config(method)
    config.model.size = "x".join(
        map(str, (shape.width, shape.depth, shape.hidden, shape.heads))
    )
    config.model.patch, config.data.image_size = shape.patch, shape.side
    config.model.drop_path = config.data.mixup = config.data.cutmix = 0.0
    config.model.dtype = "bfloat16" if fast else "float32"
    config.data.randaugment.layers = 0
    config.data.source, config.data.validation = f"blank:{64 * batch}", 0.0
    config.data.flip = False
    config.validate_every, config.batch_size = 0, batch
    config.evaluation.batch_size = batch
    if method != "nominal":
        config.attacks.linf.steps = pgd
    return builders.build(config.to_dict(), mesh)


def ours(shape, method, batch, pgd, fast):
    """(a step as a function of nothing, FLOPs on paper, bytes in memory)."""
    mesh = meshes.make(jax.devices()[:1])
    run = run_of(shape, method, batch, pgd, fast, mesh)
    step = builders.train_step(run, mesh)
    make = functools.partial(builders.initial_state, run)
    state = jax.jit(make, out_shardings=meshes.replicated(mesh))()
    placed = meshes.global_batch(
        mesh,
        {
            "images": np.zeros((batch, shape.side, shape.side, 3), np.uint8),
            "labels": np.zeros(batch, np.int32),
            "index": np.arange(batch, dtype=np.int32),
        },
    )
    traced = step.trace(state, placed)
    compiled = traced.lower().compile()
    held = [state]

    def once():
        held[0], metrics = compiled(held[0], placed)
        jax.block_until_ready(metrics)

    flops = costs.products(traced.jaxpr.jaxpr)
    return once, flops, costs.memory(compiled)["peak"]


def measure(shape, method, batch, pgd, rounds, fast, rate):
    """A row of the table."""
    step, flops, memory = ours(shape, method, batch, pgd, fast)
    others = []
    try:
        import torch_step
    except ModuleNotFoundError:
        pass
    else:
        others.append(torch_step.make(shape, method, batch, pgd, fast))
    for call in (step, *others):
        for _ in range(2):
            call()
    seconds = [[timed(call) for call in (step, *others)] for _ in range(rounds)]
    own = statistics.median(row[0] for row in seconds)
    row = {
        "batch": batch,
        "images_per_second": batch / own,
        "flops_per_second": flops / own,
        "share": flops / own / rate,
        "memory": memory,
        "seconds": seconds,
    }
    if others:
        ratios = [second / first for first, second in seconds]
        row["torch"] = batch / statistics.median(second for _, second in seconds)
        row["ratio"] = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return row


if __name__ == "__main__":
    main(sys.argv[1:])
