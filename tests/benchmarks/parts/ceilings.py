"""What the device can do at most: matrix products, copies, and starting a program.

Everything else is told as a share of these. Inputs are random, and several in rotation, so
that no cache holds them.
"""

import functools

import jax
import jax.numpy as jnp

from parts import timing
from parts.worker import Case

# Side of the products' matrices; MiB of an array that is copied.
SIZES = {"full": (8192, 1024), "cpu": (1024, 256), "small": (128, 1)}
SAMPLES = 30
SETS = 3
# Name of a product: type, precision of its factors.
PRODUCTS = {
    "bfloat16": (jnp.bfloat16, "default"),
    "float32": (jnp.float32, "highest"),
    "float32, default precision": (jnp.float32, "default"),
}


def cases(setting):
    """Products, a copy and an empty program."""
    made = [
        Case(f"product, {name}", 4, functools.partial(product, dtype, precision))
        for name, (dtype, precision) in PRODUCTS.items()
    ]
    return [*made, Case("copy", 4, copy), Case("start of a program", 2, start)]


def rate(rows, dtype):
    """FLOP/s of products of a type ("bfloat16", "float32"), None before it is measured."""
    row = rows.get("ceilings", {}).get(f"product, {dtype}", {})
    return row.get("flops_per_second")


def bandwidth(rows):
    """Bytes per second of a copy, read and written, None before it is measured."""
    return rows.get("ceilings", {}).get("copy", {}).get("bytes_per_second")


def product(dtype, precision, setting, clock, rows):
    """Square matrices times each other."""
    side = SIZES[setting.size][0]
    draw = jax.jit(lambda key: jax.random.normal(key, (side, side), dtype))
    drawn = [draw(key) for key in jax.random.split(jax.random.key(0), 2 * SETS)]
    multiply = jax.jit(functools.partial(jnp.matmul, precision=precision))
    sets = list(zip(drawn[:SETS], drawn[SETS:], strict=True))
    seconds = timing.sampled(multiply, sets, clock, SAMPLES)
    return {"flops_per_second": 2 * side**3 / seconds[1], "seconds": seconds, "side": side}


def copy(setting, clock, rows):
    """An array is read, one is written."""
    count = SIZES[setting.size][1] * 2**18
    draw = jax.jit(lambda key: jax.random.normal(key, (count,)))
    sets = [(draw(key),) for key in jax.random.split(jax.random.key(0), SETS)]
    seconds = timing.sampled(jax.jit(lambda x: x + 1), sets, clock, SAMPLES)
    return {"bytes_per_second": 8 * count / seconds[1], "seconds": seconds}


def start(setting, clock, rows):
    """A program that does next to nothing, waited for each time."""
    tiny = [(jnp.ones(()),)]
    add = jax.jit(lambda x: x + 1)
    jax.block_until_ready(add(*tiny[0]))
    took = [timing.timed(lambda: add(*tiny[0]))[1] for _ in range(100)]
    return {"seconds": timing.quartiles(took)}
