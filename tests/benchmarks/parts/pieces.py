"""What parts of a training step cost, each against doing without it.

Attention at the shapes of ViT-B/16, its two dense layers around it: every implementation,
and none (the values as they are), which is the floor; forward, with the gradient of its
input (what a step of an attack needs), and of input and weights (what training needs).
GELU as it is here, jax's exact and approximate ones, and none. RandAugment of a batch on
the device. The head and the loss in float32, as they are, against bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from advadapters import meshes, rng
from advadapters.data.randaugment import make_randaugment
from advadapters.models import attention, layers
from parts import settings, timing
from parts.shapes import SHAPES
from parts.worker import Case

# Images, and the network whose shapes are taken.
SIZES = {"full": (128, "b16"), "cpu": (8, "ti16"), "small": (4, "micro")}
SAMPLES = {"full": 30, "cpu": 10, "small": 3}
SETS = 2
PASSES = ("forward", "input_gradient", "all_gradients")


ATTENTION = attention.IMPLEMENTATIONS | {"none": lambda query, key, value: value}
GELUS = {
    "ours": layers.gelu,
    "jax exact": functools.partial(jax.nn.gelu, approximate=False),
    "jax tanh": functools.partial(jax.nn.gelu, approximate=True),
    "none": lambda x: x,
}


def cases(setting):
    """Attention in training's type and in evaluation's, GELU, RandAugment, logits."""
    dtypes = dict.fromkeys((setting.dtype, "float32"))
    fused = setting.device.platform == "gpu"
    made = [
        Case(f"attention {name}, {dtype}", 8, functools.partial(attend, way, dtype))
        for dtype in dtypes
        for name, way in ATTENTION.items()
        if name != "cudnn" or (fused and dtype == "bfloat16")
    ]
    made.append(Case("RandAugment", 25, augment))
    made += [
        Case(f"GELU {name}", 3, functools.partial(gelu, way)) for name, way in GELUS.items()
    ]
    made += [
        Case(f"head and loss, {dtype}", 3, functools.partial(head, dtype))
        for dtype in ("float32", "bfloat16")
    ]
    return made


def shape_of(setting):
    """(images, Shape, tokens)."""
    count, name = SIZES[setting.size]
    shape = SHAPES[name]
    return count, shape, (shape.side // shape.patch) ** 2 + 1


def normal(dtype, *shapes):
    """SETS of random arrays of these shapes, on the device."""

    def draw(key):
        keys = jax.random.split(key, len(shapes))
        return [jax.random.normal(*pair, dtype) for pair in zip(keys, shapes, strict=True)]

    return [jax.jit(draw)(key) for key in jax.random.split(jax.random.key(0), SETS)]


def passes(function, sets, weights, setting, clock):
    """Quartiles of seconds of `PASSES` of function(x, *weights).

    sets: of x, a cotangent of its result, and the weights, whose number is `weights`.
    """

    def input_gradient(x, back, *rest):
        return jax.vjp(lambda x: function(x, *rest), x)[1](back)

    def all_gradients(x, back, *rest):
        return jax.vjp(function, x, *rest)[1](back)

    programs = {
        "forward": lambda x, back, *rest: function(x, *rest),
        "input_gradient": input_gradient,
    }
    if weights:
        programs["all_gradients"] = all_gradients
    samples = SAMPLES[setting.size]
    return {
        name: timing.sampled(jax.jit(run), sets, clock, samples)
        for name, run in programs.items()
    }


def attend(way, dtype, setting, clock, rows):
    """Dense layer, attention, dense layer; x, and what comes of it: [B, N, D]."""
    count, shape, tokens = shape_of(setting)
    heads, width = shape.heads, shape.width

    def layer(x, qkv, proj):
        with jax.default_matmul_precision("highest" if dtype == "float32" else None):
            made = (x.reshape(-1, width) @ qkv).reshape(count, tokens, 3 * width)
            split = (count, tokens, heads, width // heads)
            made = way(*(part.reshape(split) for part in jnp.split(made, 3, axis=2)))
            return (made.reshape(-1, width) @ proj).reshape(count, tokens, width)

    x = (count, tokens, width)
    sets = normal(dtype, x, x, (width, 3 * width), (width, width))
    scale = width**-0.5
    sets = [(x, back, scale * qkv, scale * proj) for x, back, qkv, proj in sets]
    return passes(layer, sets, 2, setting, clock)


def gelu(way, setting, clock, rows):
    """The activations of the MLP [B N, hidden]."""
    count, shape, tokens = shape_of(setting)
    sets = normal(setting.dtype, *[(count * tokens, shape.hidden)] * 2)
    # The factor is there for "none", which would be no program without it.
    return passes(lambda x: way(2 * x), sets, 0, setting, clock)


def augment(setting, clock, rows):
    """RandAugment of magnitude 9 in two layers, as in the ImageNet config."""
    count, shape, _ = shape_of(setting)
    mesh = meshes.make([setting.device])
    run = make_randaugment(mesh, layers=2, magnitude=9.0, std=0.5, fill=(0.5, 0.5, 0.5))

    def drawn(key, images):
        return run(rng.by_index(key, jnp.arange(count)), images)

    images = jnp.asarray(settings.batch_of(shape, count)["images"])
    keys = jax.random.split(jax.random.key(0), 8)  # others draw other operations
    sets = [(key, images) for key in keys]
    seconds = timing.sampled(jax.jit(drawn), sets, clock, SAMPLES[setting.size])
    return {"forward": seconds, "images_per_second": count / seconds[1]}


def head(dtype, setting, clock, rows):
    """Features [2 B, D] of two views -> logits -> their loss."""
    count, shape, _ = shape_of(setting)
    labels = jnp.arange(2 * count) % 1000

    def loss(x, kernel):
        logits = (x @ kernel).astype(dtype)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    sets = normal(dtype, (2 * count, shape.width), (2 * count,), (shape.width, 1000))
    return passes(loss, sets, 1, setting, clock)
