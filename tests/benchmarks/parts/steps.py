"""The training step, and the same work in torch: images and FLOPs per second, memory.

Both do the same: PGD of signed steps on the images, cross-entropy with smoothed labels,
AdamW, averaged parameters; bfloat16 products on accelerators (torch: autocast, compiled,
fused attention), float32 on CPUs (torch: eager). They take turns, a step each. FLOPs are
those on paper, of the traced program; peak is what the device says was in use at most,
where it says so and this row made it grow, planned what the compiler tells.
"""

import functools
import tempfile

import jax
import numpy as np

from advadapters import builders, costs, hlo, meshes, profiles
from parts import ceilings, settings, timing
from parts.shapes import SHAPES
from parts.worker import Case

# {network: images in a batch}, most telling first; methods likewise.
SIZES = {
    "full": {"b16": 128, "s16": 256, "s4": 512},
    "cpu": {"tiny": 16, "ti16": 8},
    "small": {"micro": 8},
}
METHODS = {
    "full": ("cotrain", "nominal", "adversarial"),
    "cpu": ("cotrain", "nominal", "adversarial"),
    "small": ("cotrain",),
}
ROUNDS = {"full": 15, "cpu": 9, "small": 3}
# Seconds of a row, with its compiling, ours and torch's.
ESTIMATES = {"cotrain": 110, "adversarial": 90, "nominal": 60}
SEED = np.uint32(0)
PROFILED = 3  # steps
FULL = ("RESOURCE_EXHAUSTED", "out of memory")  # what jax and torch say of the device


def cases(setting):
    """Every method, of every network."""
    options, sizes = setting.options, SIZES[setting.size]
    methods = options["methods"] or METHODS[setting.size]
    networks = [name for name in options["networks"] or sizes if name in SHAPES]
    return [
        Case(
            f"{network}, {method}",
            ESTIMATES[method],
            functools.partial(
                row, network, method, options["batch"] or sizes.get(network, 16)
            ),
        )
        for method in methods
        for network in networks
    ]


def row(network, method, batch, setting, clock, rows):
    """A row of the table; with half the images, and again, where memory is too small."""
    while True:
        try:
            found = measure(SHAPES[network], method, batch, setting, clock)
            break
        except Exception as error:
            if batch < 2 or not any(word in str(error) for word in FULL):
                raise
            batch //= 2
    rate = ceilings.rate(rows, setting.dtype)
    share = {"share": found["flops_per_second"] / rate} if rate else {}
    return {"network": network, "method": method, "batch": batch} | found | share


def measure(shape, method, batch, setting, clock):
    """Times our step, and torch's in alternation."""
    pgd, peak = setting.options["pgd"], peak_of(setting.device)
    program, state, placed, flops, compiling = ours(shape, method, batch, pgd, setting)
    held = [state]

    def step():
        held[0], metrics = program(held[0], placed, SEED)
        return metrics

    calls, told = [step], {"compile_seconds": compiling}
    if setting.torch:
        from parts import in_torch

        other, told["torch_compile_seconds"] = in_torch.training_step(
            shape, method, batch, pgd, setting.fast
        )
        calls.append(other)
    seconds = timing.alternate(calls, clock, ROUNDS[setting.size])
    own = timing.quartiles([one[0] for one in seconds])
    told |= {
        "seconds": own,
        "images_per_second": batch / own[1],
        "flops_per_image": flops / batch,
        "flops_per_second": flops / own[1],
        "memory_planned": costs.memory(program)["peak"],
        "memory_peak": peak_of(setting.device) if peak_of(setting.device) > peak else None,
        "loss": float(step()["loss"]),
    }
    if method == "cotrain":
        told["profile"] = profile(step, program.as_text())
    if setting.torch:
        told["torch_seconds"] = timing.quartiles([one[1] for one in seconds])
        told["times_torch"] = timing.quartiles([two / one for one, two in seconds])
    return told


def profile(step, text):
    """Shares of the device's time by kind of kernel and part of the step; of its waiting.

    text: the program's, for where its instructions come from.

    A profile that cannot be made or read costs no row: {"error"}.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                for _ in range(PROFILED):
                    jax.block_until_ready(step())
            found = profiles.read(folder)
    except Exception as error:
        return {"error": str(error)[:300]}
    scopes = hlo.scopes(text)
    return {
        "kinds": shares(profiles.by_kind(found, scopes)),
        "parts": shares(profiles.by_scope(found, scopes)),
        "waiting": 1 - found.busy / found.span,
    }


def shares(seconds):
    """{name: seconds} as shares of their sum."""
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}


def peak_of(device):
    """Bytes that were in use at most since the process began, 0 if the device is silent."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use", 0)


def ours(shape, method, batch, pgd, setting):
    """(compiled step, state, batch, FLOPs on paper, seconds of compiling)."""
    mesh = meshes.make([setting.device])
    run = settings.run_of(shape, method, batch, pgd, setting.dtype, mesh)
    step = builders.train_step(run, mesh)
    make = functools.partial(builders.initial_state, run)
    state = jax.jit(make, out_shardings=meshes.replicated(mesh))()
    placed = meshes.global_batch(mesh, settings.batch_of(shape, batch))
    program, traced, seconds = timing.compiled(step, state, placed, SEED)
    return program, state, placed, costs.products(traced.jaxpr.jaxpr), seconds
