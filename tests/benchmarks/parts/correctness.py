"""What the device computes, against the CPU's result for the same inputs in one process.

Evaluation in float32 is compared with the same network in float64. Where the CPU is the
device itself, all else is compared with itself: it then says that rows run, are finite, and
that attacks stay in their ball.

The network is a ViT of a few blocks, wide enough that its products go through the kernels
of large ones; every leaf of it is random. Errors are ||device - CPU|| / ||CPU||, of all
leaves together, unless the row says otherwise; each has a tolerance, and a row passes if it
holds. What float32 has to bear: products rounded to TF32 or bfloat16 are off by 3e-4 and
more, float32 in another order by about 1e-6. Attacks follow signs of gradients, and a sign
that rounding turns moves a whole step, so they and what is trained on their images are told
with wider tolerances, and the share of the pixels that moved.
"""

import functools
import re

import jax
import numpy as np
import optax

from advadapters import builders, meshes, networks, trees
from advadapters.attacks.apgd import apgd
from advadapters.attacks.pgd import pgd
from advadapters.balls import BALLS
from advadapters.evaluation import accuracy
from parts import settings
from parts.shapes import Shape
from parts.worker import Case

EPS, PIXEL = 4 / 255, 1e-3  # PIXEL: of eps, by which a pixel has moved
NETWORKS = {
    "full": Shape(768, 2, 3072, 12, 16, 224),
    "cpu": Shape(192, 2, 768, 3, 16, 224),
    "small": Shape(16, 1, 32, 2, 4, 8),
}
COUNT = {"full": 16, "cpu": 8, "small": 8}  # images
# Tolerances of errors.
LOGITS = 2e-5  # of float32 evaluation
# Of the gradient that a training step takes. On a CPU bfloat16 is off from float32 by 4e-3
# (both networks of CPUs), which the first must tell apart and the second allow.
STEP = {"float32": 2e-4, "bfloat16": 2e-2}
MOVED = 0.02  # share of an attacked image's pixels
WORTH = 1e-2  # of the loss that an attack reaches
SAME = 1e-6  # of one program in another sharding


def cases(setting):
    """Evaluation, training steps, attacks, soups; and but for the small form, sharding."""
    attacks = {
        "PGD": functools.partial(pgd, steps=5),
        "APGD": functools.partial(apgd, steps=5, loss="dlr"),
    }
    made = [
        Case("evaluation in float32", 15, evaluation),
        *(
            Case(f"co-training step, {dtype}", 25, functools.partial(step, dtype))
            for dtype in dict.fromkeys(("float32", setting.dtype))
        ),
        Case("soups", 12, grid),
        *(Case(name, 12, functools.partial(attack, one)) for name, one in attacks.items()),
        Case("sharding over one device", 20, sharding),
    ]
    return made[:4] if setting.size == "small" else made


def checked(**pairs):
    """A row of {name: (error, tolerance)}."""
    return {
        "errors": {name: float(error) for name, (error, _) in pairs.items()},
        "tolerances": {name: tolerance for name, (_, tolerance) in pairs.items()},
        "passed": all(bool(error <= tolerance) for error, tolerance in pairs.values()),
    }


def apart(found, right):
    """||found - right|| / ||right|| of all leaves, in float64; NaN fails any tolerance."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True))
    pairs = [(np.asarray(a, float), np.asarray(b, float)) for a, b in pairs]
    off = sum(np.sum((a - b) ** 2) for a, b in pairs)
    return np.sqrt(off / sum(np.sum(b**2) for _, b in pairs))


def doubled(tree):
    """The leaves in float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def cpu():
    """The device that all is compared with."""
    return jax.devices("cpu")[0]


def on(device, function, *arguments):
    """What a function of arrays gives on a device, as numpy."""
    with jax.default_device(device):  # for what has no arguments
        found = jax.jit(function)(*settings.place(arguments, device))
    return jax.tree.map(np.asarray, found)


def both(setting, function, *arguments):
    """(the device's result, the CPU's)."""
    right = on(cpu(), function, *arguments)
    same = setting.device == cpu()
    return (right if same else on(setting.device, function, *arguments)), right


@functools.cache
def example(size):
    """(Run, its first state, images, labels) as numpy."""
    shape = NETWORKS[size]
    run = settings.run_of(shape, "cotrain", COUNT[size], 2, "float32", here(cpu()))
    state = on(cpu(), lambda: builders.initial_state(run))
    state = state.replace(variables=settings.drawn(state.variables))
    batch = settings.batch_of(shape, COUNT[size])
    images = batch["images"].astype(np.float32) / np.float32(255)
    return run, state, images, batch["labels"]


def here(device):
    """The mesh of one device."""
    return meshes.make([device])


def evaluation(setting, clock, rows):
    """Logits of the network that is evaluated; and whether its program asks for float32."""
    run, state, images, _ = example(setting.size)
    plain = trees.plain(state.variables, (0.5, 0.5))
    found, default = (
        on(setting.device, apply, plain, images)
        for apply in (run.network.evaluate, run.network.apply)
    )
    with jax.enable_x64(True):
        model = settings.model_of(NETWORKS[setting.size]).clone(dtype=np.float64)
        right = on(
            cpu(), model.apply, {"params": doubled(plain["params"])}, doubled(images)
        )
    text = jax.jit(run.network.evaluate).lower(plain, images).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution)\b.*", text)
    rounded = [line for line in products if line.count("HIGHEST") != 2]
    row = checked(logits=(apart(found, right), LOGITS), rounded=(len(rounded), 0))
    # What it would be if nothing were asked for: where products are rounded, far off.
    return row | {
        "default_precision": float(apart(default, right)),
        "products": len(products),
    }


def attack(one, setting, clock, rows):
    """An attack's images: in ball and box, as good as the CPU's, and mostly the same."""
    run, state, images, labels = example(setting.size)
    plain = trees.plain(state.variables, (0.0, 1.0))

    def run_it(plain, images, labels):
        logits_fn = lambda x: run.network.evaluate(plain, x)  # noqa: E731
        points = one(logits_fn, images, labels, jax.random.key(0), norm="linf", eps=EPS)
        logits = logits_fn(points)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return points, loss, BALLS["linf"].norm(points - images)

    (points, loss, norm), (other, goal, _) = both(setting, run_it, plain, images, labels)
    outside = max(norm.max() / EPS - 1, -points.min(), points.max() - 1)
    return checked(
        outside=(outside, 1e-5),
        moved=(np.mean(np.abs(points - other) > PIXEL * EPS), MOVED),
        loss=(apart(loss, goal), WORTH),
    )


def grid(setting, clock, rows):
    """Soups in one program: logits, and classes wherever the CPU's is not a near tie."""
    run, state, images, labels = example(setting.size)
    variables = state.variables
    mixtures = np.array([(w, 1 - w) for w in (-0.5, 0.0, 0.3, 1.0)], np.float32)
    knobs = networks.Knob(mixtures)
    batch = {
        "images": np.uint8(images * 255),
        "labels": labels,
        "index": np.arange(len(labels)),
        "seed": np.zeros(len(labels), np.uint32),
    }

    def logits(variables, knobs, images):
        one = lambda knob: run.network.evaluate(run.network.at(variables, knob), images)  # noqa: E731
        return jax.vmap(one)(knobs)

    def classes(device):
        predict = accuracy.make_predictor(run.network, None, mesh=here(device))
        return np.asarray(predict(*settings.place((variables, knobs, batch), device)))

    found, right = both(setting, logits, variables, knobs, images)
    first, second = np.sort(right, axis=-1)[..., [-1, -2]].transpose(2, 0, 1)
    clear = first - second > 1e-3 * np.abs(first)
    other = classes(setting.device) != classes(cpu())
    return checked(
        logits=(apart(found, right), LOGITS), classes=((clear & other).mean(), 0)
    )


@functools.cache
def stepped(size, device, dtype, sharding="replicated"):
    """(gradients that the first moments hold, loss) of one co-training step."""
    shape, count, mesh = NETWORKS[size], COUNT[size], here(device)
    with jax.default_matmul_precision("highest" if dtype == "float32" else None):
        run = settings.run_of(shape, "cotrain", count, 2, dtype, mesh, sharding=sharding)
        _, start, _, _ = example(size)
        places = jax.tree.map(
            lambda leaf: leaf.sharding, builders.abstract_state(run, mesh)
        )
        batch = meshes.global_batch(mesh, settings.batch_of(shape, count))
        arguments = meshes.put(start, places), batch, np.uint32(0)
        state, metrics = builders.train_step(run, mesh)(*arguments)
    gradients = optax.tree_utils.tree_get(state.optimizer, "mu")
    return jax.tree.map(np.asarray, (gradients, metrics["loss"]))


def step(dtype, setting, clock, rows):
    """Gradient and loss of one co-training step, PGD-2 inside."""
    found, right = (
        stepped(setting.size, where, dtype) for where in (setting.device, cpu())
    )
    return checked(
        gradient=(apart(found[0], right[0]), STEP[dtype]),
        loss=(apart(found[1], right[1]), WORTH),
    )


def sharding(setting, clock, rows):
    """A state split over the one device there is, against one that is not split."""
    whole, split = (
        stepped(setting.size, setting.device, "float32", kind) for kind in meshes.SHARDINGS
    )
    return checked(gradient=(apart(split, whole), SAME))
