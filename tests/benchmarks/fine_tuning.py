"""What fine-tuning costs: everything, LoRA, LNLoRA, biases or the head alone.

  python tests/benchmarks/fine_tuning.py [--memory=NETWORK:PGD,...] [--time=NETWORK:PGD,...]
      [--rounds=11] [--json=FILE]

NETWORK is digits, vit_ti_32 or vit_b16_224, PGD the steps of the attack, 0 for clean
images; an empty list leaves the part out. Memory is what the compiled training step needs
(arguments, temporaries and outputs, less what is aliased), by the compiler's word: nothing
is allocated. A loop's memory does not depend on its length. The state is parameters, Adam's
moments and averages. Time is measured in alternation, one step of every method a round,
and compared with full fine-tuning in the same round: wall and CPU seconds of the process.
"""

import json
import os
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import checkpoints, defaults, meshes, trees
from advadapters.attacks.pgd import pgd
from advadapters.data.augment import make_augment
from advadapters.models import vit
from advadapters.models.added import Added
from advadapters.networks import make_network
from advadapters.training import optim, states, step, views

SEED = np.uint32(0)
OPTIONS = {
    "memory": "digits:10,vit_b16_224:0,vit_b16_224:10",
    "time": "digits:0,digits:10,vit_ti_32:0,vit_ti_32:2",
    "rounds": "11",
    "json": "",
}
# A row of defaults.FINE_TUNING and the rank.
METHODS = (
    ("full", 0), ("lnlora", 8), ("lnlora", 24), ("lora", 24), ("bitfit", 0),
    ("linear_probe", 0),
)  # fmt: skip


class Shape(NamedTuple):
    """A network's size, the patch, side and channels of its images, and the batch."""

    size: str
    patch: int
    side: int
    channels: int
    batch: int
    classes: int = 10


SHAPES = {
    "digits": Shape("64x4x256x4", 2, 8, 1, 128),
    "vit_ti_32": Shape("Ti", 4, 32, 3, 16),
    "vit_b16_224": Shape("B", 16, 224, 3, 64),
}


def main(argv):
    """Measures what is asked for and prints a table for each."""
    options = OPTIONS | dict(argument.removeprefix("--").split("=") for argument in argv)
    results = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    for part, measure in (("memory", memory), ("time", times)):
        results[part] = {}
        for case in filter(None, options[part].split(",")):
            name, _, attacked = case.partition(":")
            print(f"\n{part}, {name}, {attacked} steps of PGD: {SHAPES[name]}", flush=True)
            found = measure(SHAPES[name], int(attacked), int(options["rounds"]))
            results[part][case] = found
            if options["json"]:
                text = json.dumps(results, indent=1) + "\n"
                pathlib.Path(options["json"]).write_text(text)


def title(method, rank):
    """A row's name."""
    return f"{method}, rank {rank}" if rank else method


def training(shape, method, rank, attacked):
    """(jitted step, function that makes its first state, mesh) of one method."""
    keys = defaults.fine_tuning(method, rank, "")
    added = keys.get("model", {}).get("added", {})
    model = vit.ViT(
        size=vit.read_size(shape.size), classes=shape.classes, patch=shape.patch,
        mean=(0.5,) * shape.channels, std=(0.5,) * shape.channels,
        added=tuple(Added(name=name, **fields) for name, fields in added.items()),
    )  # fmt: skip
    net = make_network(model, (shape.side, shape.side, shape.channels))
    tx = optim.make(
        optim.adam(0.9, 0.95), learning_rate=lambda _: 1e-3, weight_decay=0.05,
        decayed=(".*kernel",), clip_norm=1.0,
    )  # fmt: skip
    augment = make_augment(
        shape.classes, flip_horizontal=False, pad=0, mixup_alpha=0.0, cutmix_alpha=0.0,
        label_smoothing=0.0,
    )  # fmt: skip

    def attack(logits_fn, images, labels, key):
        eps = 8 / 255
        return pgd(logits_fn, images, labels, key, norm="linf", eps=eps, steps=attacked)

    seen = [views.View("all", (1.0,), 1.0, (attack,) if attacked else ())]
    mesh = meshes.make(jax.devices()[:1])
    function = step.make_step(
        views.views_loss(net, seen, axis="data"), augment, tx, ema_decay=0.99,
        accumulate=1, mesh=mesh,
    )  # fmt: skip

    def create():
        plain = net.init(jax.random.key(0))
        return states.create(states.branches(plain, (), 1, trained=keys["trained"]), tx)

    return function, create, mesh


def batch_of(shape, mesh):
    """Random images and labels."""
    draw = np.random.default_rng(0)
    images = (shape.batch, shape.side, shape.side, shape.channels)
    batch = {
        "images": draw.integers(0, 256, images).astype(np.uint8),
        "labels": draw.integers(shape.classes, size=shape.batch).astype(np.int32),
        "index": np.arange(shape.batch, dtype=np.int32),
    }
    return meshes.global_batch(mesh, batch)


def memory(shape, attacked, _):
    """[{method, trained share, bytes of the state and of the step}, ...]."""
    rows = []
    for method, rank in METHODS:
        began = time.monotonic()
        function, create, mesh = training(shape, method, rank, attacked)
        first = jax.eval_shape(create)
        placed = checkpoints.abstract(first, meshes.replicated(mesh))
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            batch_of(shape, mesh),
        )
        # How the machine code is optimized does not change the buffers.
        quick = {"xla_backend_optimization_level": 0}
        told = function.lower(placed, batch, SEED).compile(quick).memory_analysis()
        peak = told.argument_size_in_bytes + told.temp_size_in_bytes
        peak += told.output_size_in_bytes - told.alias_size_in_bytes
        parameters = trees.count({k: first.variables[k] for k in ("shared", "frozen")})
        rows.append(
            {
                "method": title(method, rank),
                "trained": trees.count(first.variables["shared"]) / parameters,
                "state": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(first)),
                "step": peak,
                "temporaries": told.temp_size_in_bytes,
                "compile_seconds": time.monotonic() - began,
            }
        )
        row = rows[-1]
        print(
            f"| {row['method']} | {100 * row['trained']:.2f} | {row['state'] / 1e6:,.1f} | "
            f"{peak / 1e6:,.1f} | {peak / rows[0]['step']:.2f} |  "
            f"({row['compile_seconds']:.0f} s)",
            flush=True,
        )
    return rows


def times(shape, attacked, rounds):
    """[{method, wall and CPU seconds of each round}, ...], measured in alternation."""
    running = {}
    for method, rank in METHODS:
        function, create, mesh = training(shape, method, rank, attacked)
        batch = batch_of(shape, mesh)
        first = jax.jit(create, out_shardings=meshes.replicated(mesh))()
        current, metrics = function(first, batch, SEED)
        jax.block_until_ready(metrics)
        running[title(method, rank)] = [function, current, batch]
    seconds = {name: {"wall": [], "cpu": []} for name in running}
    for turn in range(rounds):
        for name in sorted(running, key=lambda name: hash((turn, name))):
            function, current, batch = running[name]
            wall, cpu = time.perf_counter(), time.process_time()
            current, metrics = function(current, batch, SEED)
            jax.block_until_ready((current, metrics))
            seconds[name]["wall"].append(time.perf_counter() - wall)
            seconds[name]["cpu"].append(time.process_time() - cpu)
            running[name][1] = current
            assert jnp.isfinite(metrics["loss"])
    base = next(iter(seconds.values()))
    for name, own in seconds.items():
        cells = [f"{1e3 * np.median(own['wall']):,.0f}"]
        for kind in ("wall", "cpu"):
            ratios = np.divide(own[kind], base[kind])
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return [{"method": name} | own for name, own in seconds.items()]


if __name__ == "__main__":
    print(f"load: {os.getloadavg()}")
    main(sys.argv[1:])
