"""CPU time of a soup: mapped over in one call, in a loop of one, in calls of its own.

Calls are put in the queue at once, or (waited) each when the one before has ended.

  python tests/benchmarks/soups_at_once.py [--soups=13] [--images=120] [--rounds=5]

Process CPU time of one evaluation batch, all in alternation, on networks of the
configs for digits with random parameters: forward passes and PGD-5. One device.
"""

import argparse
import functools
import os
import statistics
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from advadapters import builders, configs, meshes, networks
from advadapters.attacks.pgd import pgd
from advadapters.evaluation import accuracy, fitting

CONFIGS = {"ViT": "configs/digits.py:cotrain", "convolutional": "configs/digits_conv.py"}
ATTACK = functools.partial(pgd, norm="linf", eps=0.1, steps=5, keep="best")


def forms(network, attack, variables, knobs, batch, mesh):
    """{name: function that evaluates all soups}, compiled."""
    predictor = accuracy.make_predictor(network, attack, mesh=mesh)
    stacked, singles = fitting.stack(knobs), [fitting.stack([knob]) for knob in knobs]

    @jax.jit
    def looped(variables, knobs, batch):
        one = lambda knob: predictor(  # noqa: E731
            variables, jax.tree.map(lambda leaf: leaf[None], knob), batch
        )
        return jax.lax.map(one, knobs)

    mapped = predictor.lower(variables, stacked, batch).compile()
    alone = predictor.lower(variables, singles[0], batch).compile()
    looped = looped.lower(variables, stacked, batch).compile()
    return {
        "mapped": lambda: mapped(variables, stacked, batch),
        "loop": lambda: looped(variables, stacked, batch),
        "calls": lambda: [alone(variables, one, batch) for one in singles],
        "waited": lambda: [
            jax.block_until_ready(alone(variables, one, batch)) for one in singles
        ],
    }


def measure(calls, soups, rounds):
    """{name: (median CPU ms a soup, wall ms)}, in alternation."""
    found = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            before = time.process_time(), time.perf_counter()
            jax.block_until_ready(call())
            after = time.process_time(), time.perf_counter()
            if number:
                spent = zip(before, after, strict=True)
                found[name].append([1e3 * (b - a) / soups for a, b in spent])
    return {
        name: [statistics.median(part) for part in zip(*rows, strict=True)]
        for name, rows in found.items()
    }


def main():
    """Prints a line for each network and attack."""
    parser = argparse.ArgumentParser()
    for name, value in (("soups", 13), ("images", 120), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    mesh = meshes.make(jax.devices()[:1])
    for name, file in CONFIGS.items():
        config = configs.parse([f"--config={file}"], {})[0].to_dict()
        run = builders.build(config, mesh)
        variables = jax.jit(lambda run=run: builders.initial_state(run).variables)()
        weights = np.linspace(0, 1, asked.soups)
        count = len(run.domains)
        rows = [np.array([w, 1 - w] + [0] * (count - 2), np.float32) for w in weights]
        rng = np.random.default_rng(0)
        shape = (asked.images, run.data.image_size, run.data.image_size, run.data.channels)
        batch = {
            "images": rng.integers(0, 256, shape).astype(np.uint8),
            "labels": rng.integers(10, size=asked.images).astype(np.int32),
            "index": np.arange(asked.images, dtype=np.int32),
            "seed": np.zeros(asked.images, np.uint32),
        }
        batch = meshes.global_batch(mesh, batch)
        for attack in (None, ATTACK):
            knobs = [networks.Knob(row) for row in rows]
            calls = forms(run.network, attack, variables, knobs, batch, mesh)
            found = measure(calls, asked.soups, asked.rounds)
            told = "  ".join(f"{k} {c:.1f} ({w:.1f})" for k, (c, w) in found.items())
            what = "PGD-5" if attack else "forward"
            print(f"{name}, {what}: ms of CPU (wall) a soup: {told}", flush=True)


if __name__ == "__main__":
    main()
