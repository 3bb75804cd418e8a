"""A robust network of 124 classes from what any machine can have: letters of typefaces.

  python tests/benchmarks/glyphs.py FOLDER --file=FILE.npz [--epochs=4]

Classes are the Latin letters, with and without accents, and the digits. FOLDER holds
typefaces (.ttf, .otf), one folder below it for each family; every fifth family is for
tests alone. Draws each letter white on black at 28x28, trains the convolutional network
of tests/reference adversarially (PGD-3, Linf 0.1), and writes its weights and the test
images in a random order. Needs Pillow.
"""

import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[1])]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import reference_networks as reference  # noqa: E402
from jax.tree_util import Partial  # noqa: E402

from advadapters import losses  # noqa: E402
from advadapters.balls import LINF  # noqa: E402

LATIN = [chr(n) for n in range(0xC0, 0x100) if n not in (0xD7, 0xF7)]
CLASSES = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", *LATIN]
THREATS = {"glyphs_linf": ("linf", 0.1), "glyphs_l2": ("l2", 1.0), "glyphs_l1": ("l1", 5.0)}
EPS, STEPS, BATCH = 0.1, 3, 128


def load(file):
    """(logits_fn, images float32 [N, 28, 28, 1], labels int32 [N]) of a file."""
    with np.load(file) as arrays:
        arrays = dict(arrays)
    images, labels = arrays.pop("images"), arrays.pop("labels")
    weights = jax.tree.map(jnp.asarray, arrays)
    images = images[..., None].astype(np.float32) / np.float32(255)
    return Partial(reference.cnn, weights), images, labels


def letters(face):
    """uint8 [classes, 28, 28] of one typeface file, or None where it lacks some."""
    from PIL import Image, ImageDraw, ImageFont

    try:
        font = ImageFont.truetype(str(face), 19)
        boxes = [font.getbbox(letter, anchor="ms") for letter in CLASSES]
    except (OSError, ValueError):
        return None
    found = []
    for letter, box in zip(CLASSES, boxes, strict=True):
        image = Image.new("L", (28, 28))
        middle = 14 - (box[0] + box[2]) / 2
        ImageDraw.Draw(image).text((middle, 21), letter, 255, font=font, anchor="ms")
        found.append(np.asarray(image))
    found = np.stack(found)
    # A letter that is not there is drawn as the same box as others, or not at all.
    return found if len({image.tobytes() for image in found}) == len(CLASSES) else None


def draw(folder):
    """((images, labels) to train on, (images, labels) of other families)."""
    parts = [], []
    families = sorted(path for path in pathlib.Path(folder).iterdir() if path.is_dir())
    for number, family in enumerate(families):
        faces = sorted(p for p in family.rglob("*") if p.suffix in (".ttf", ".otf"))
        known = [images for face in faces if (images := letters(face)) is not None]
        parts[number % 5 == 0].extend(known)
    print(f"{len(families)} families, faces: {[len(part) for part in parts]}", flush=True)
    numbers = np.arange(len(CLASSES), dtype=np.int32)
    return [(np.concatenate(part), np.tile(numbers, len(part))) for part in parts]


def initial(seed):
    """Weights of the reference's network, with as many classes."""
    shapes = {
        "conv1": (32, 1, 3, 3), "conv2": (64, 32, 3, 3),
        "fc1": (256, 3136), "fc2": (len(CLASSES), 256),
    }  # fmt: skip
    random, weights = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weights[f"{name}.weight"] = (scale * random.normal(size=shape)).astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    return weights


def train(images, labels, epochs):
    """Weights after adversarial training."""
    weights, count = initial(0), len(labels) // BATCH * epochs
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, count))

    @jax.jit
    def step(weights, state, images, labels, key):
        images = images[..., None].astype(jnp.float32) / 255

        def loss(weights, points):
            return losses.cross_entropy(reference.cnn(weights, points), labels).mean()

        points = images + jax.random.uniform(key, images.shape, minval=-EPS, maxval=EPS)
        for _ in range(STEPS):  # unrolled, as convolutions in loops are slow on CPUs
            slope = jax.grad(loss, argnums=1)(weights, points)
            points = LINF.project(points + EPS / 2 * jnp.sign(slope), images, EPS)
        value, slopes = jax.value_and_grad(loss)(weights, points)
        updates, state = tx.update(slopes, state)
        return optax.apply_updates(weights, updates), state, value

    state, random = tx.init(weights), np.random.default_rng(0)
    for epoch in range(epochs):
        order = random.permutation(len(labels))[: len(labels) // BATCH * BATCH]
        for number, rows in enumerate(order.reshape(-1, BATCH)):
            key = jax.random.fold_in(jax.random.key(epoch), number)
            weights, state, value = step(weights, state, images[rows], labels[rows], key)
        print(f"epoch {epoch + 1}: loss {value:.3f}", flush=True)
    return jax.tree.map(np.asarray, weights)


def main(argv):
    """Draws, trains, writes."""
    flags = dict(a.removeprefix("--").split("=") for a in argv if a.startswith("--"))
    (folder,) = (a for a in argv if not a.startswith("--"))
    (images, labels), (test, answers) = draw(folder)
    weights = train(images, labels, int(flags.get("epochs", 4)))
    order = np.random.default_rng(1).permutation(len(answers))[:2000]
    arrays = dict(images=test[order], labels=answers[order])
    np.savez_compressed(flags["file"], **weights, **arrays)
    network, images, labels = load(flags["file"])
    right = (np.asarray(network(images)).argmax(1) == labels).mean()
    print(f"{len(CLASSES)} classes, test images right: {100 * right:.1f}%")


if __name__ == "__main__":
    main(sys.argv[1:])
