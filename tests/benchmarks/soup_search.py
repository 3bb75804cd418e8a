"""What choosing a soup costs: every mixture of a grid, successive halving, learned weights.

  python tests/benchmarks/soup_search.py [--images=1000] [--tune=100] [--rounds=3]

A small ViT learns the digits and is fine-tuned into four networks: for clean, attacked
(Linf, PGD-2), noisy and faint images. Among their 286 soups (step 0.1) the best for each
of some shifts is sought with `--images` labelled images, none of them trained on. Forward
passes are pairs of a soup and an image; seconds are the process's CPU seconds, the median
of the rounds, compiling left out.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from advadapters import networks, rng, soups, trees
from advadapters.attacks.pgd import pgd
from advadapters.models import vit

OPTIONS = {"images": 1000, "tune": 100, "rounds": 3}
SIZE = vit.Size(32, 2, 64, 4)
LABELS = (10, 50, 100, 500)


def noisy(images, key, strength=0.35):
    """Gaussian noise."""
    return jnp.clip(images + strength * jax.random.normal(key, images.shape), 0, 1)


def faint(images, key, strength=0.2):
    """Less contrast."""
    return 0.5 + strength * (images - 0.5)


def blurred(images, key):
    """A mean over neighbours."""
    shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return sum(jnp.roll(images, shift, (1, 2)) for shift in shifts) / len(shifts)


SHIFTS = {
    "none": lambda images, key: images,
    "noise": noisy,
    "contrast": faint,
    "noise and contrast": lambda images, key: noisy(faint(images, key, 0.4), key, 0.15),
    "blur": blurred,
}


def train(net, plain, domain, images, labels, steps):
    """The network after Adam's steps on batches of 64 images of a domain."""
    adam = optax.adam(2e-3)

    @jax.jit
    def step(plain, state, number):
        key = rng.fold(jax.random.key(0), "train")
        key = jax.random.fold_in(key, number)
        rows = jax.random.choice(key, len(images), (64,), replace=False)
        clean, answers = images[rows], labels[rows]
        batch = domain(lambda x: net.apply(plain, x), clean, answers, key)

        def loss(plain):
            logits = net.apply(plain, batch)
            return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()

        updates, state = adam.update(jax.grad(loss)(plain), state)
        return optax.apply_updates(plain, updates), state

    state = adam.init(plain)
    for number in range(steps):
        plain, state = step(plain, state, number)
    return plain


def attacked(logits_fn, images, labels, key):
    """PGD-2 at Linf 0.12."""
    return pgd(logits_fn, images, labels, key, norm="linf", eps=0.12, steps=2)


def ingredients(net, images, labels, tune):
    """Four networks [4, ...] fine-tuned from one for `tune` steps."""
    plain = jax.jit(net.init)(jax.random.key(0))
    unchanged = lambda logits_fn, images, labels, key: images  # noqa: E731
    base = train(net, plain, unchanged, images, labels, 400)
    domains = [unchanged, attacked] + [
        lambda logits_fn, images, labels, key, shift=shift: shift(images, key)
        for shift in (noisy, faint)
    ]
    return soups.stack([train(net, base, d, images, labels, tune) for d in domains])


def timed(rounds, run):
    """(result, median CPU seconds) of a function that is compiled already."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        result = run()
        seconds.append(time.process_time() - start)
    return result, statistics.median(seconds)


def compare(many, few, learn, images, labels, rounds):
    """One line of figures for each way to choose; many, few: scorers by batch size."""
    grid = np.array(soups.simplex(4, 0.1))
    for score in (many, few):
        score(grid[:1], images[:1], labels[:1])
    learn(images, labels)
    table, brute_s = timed(rounds, lambda: many(grid, images, labels))
    whole = soups.select(table)
    best = grid[whole.winner]
    print(f"  every mixture: {whole.accuracy.max():.1%} at {best.round(1).tolist()}, "
          f"{whole.tied.sum()} tied; {table.size} passes, {brute_s:.2f} s")  # fmt: skip
    singles = [whole.accuracy[np.argmax(grid[:, k])] for k in range(4)]
    print("  ingredients:", ", ".join(f"{value:.1%}" for value in singles))
    tied = {n: int(soups.select(table[:, :n]).tied.sum()) for n in LABELS}
    print("  tied with the winner of so many labels:", tied)
    for budget in (0.25, 0.125):
        found, seconds = timed(rounds, lambda budget=budget: soups.halving(
            lambda part, where: few(part, images[where], labels[where]),
            grid, len(images), budget=budget,
        ))  # fmt: skip
        same = "the same" if found.winner == whole.winner else "another"
        print(f"  halving, {budget}: {whole.accuracy[found.winner]:.1%}, {same} soup, "
              f"{'tied' if whole.tied[found.winner] else 'worse'}; {found.passes} passes = "
              f"{found.passes / table.size:.3f}, {seconds:.2f} s = {seconds / brute_s:.3f}"
              )  # fmt: skip
    learned, seconds = timed(rounds, lambda: learn(images, labels))
    mine = many(learned.weights[None], images, labels).mean()
    print(f"  learned: {mine:.1%} at {learned.weights.round(2).tolist()}, cross-entropy "
          f"{learned.losses[0]:.3f} to {learned.losses[-1]:.3f} in "
          f"{len(learned.losses) - 1} steps, {seconds:.2f} s = {seconds / brute_s:.3f}",
          flush=True)  # fmt: skip


def main(argv):
    """Trains the ingredients, then compares the ways to choose on each shift."""
    given = dict(argument.removeprefix("--").split("=") for argument in argv)
    options = OPTIONS | {name: int(value) for name, value in given.items()}
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = np.float32(digits.images[order, :, :, None] / 16)
    labels = digits.target[order].astype(np.int32)
    held, count = slice(None, options["images"]), options["images"]
    model = vit.ViT(size=SIZE, classes=10, patch=2, mean=(0.3,), std=(0.37,))
    rest = jnp.asarray(images[count:]), jnp.asarray(labels[count:])
    net = networks.make_network(model, (8, 8, 1))
    stacked = ingredients(net, *rest, options["tune"])
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {options}")
    print(f"{trees.count(stacked) // 4} parameters each; relative distances",
          soups.relative_distances(stacked).round(2).tolist())  # fmt: skip
    print(soups.ancestor_warning(stacked) or "no warning: one ancestor")
    many, few = (
        soups.make_scorer(net.apply, trees.mix, stacked, at_once=8, batch=batch)
        for batch in (128, 32)
    )

    def learn(images, labels):
        start, bounds = (0.25,) * 4, dict(low=-0.2, high=1.6)
        return soups.learn(net.apply, trees.mix, stacked, images, labels, start, **bounds)

    for name, shift in SHIFTS.items():
        print(name, flush=True)
        shifted = np.asarray(shift(images[held], jax.random.key(1)))
        compare(many, few, learn, shifted, labels[held], options["rounds"])


if __name__ == "__main__":
    main(sys.argv[1:])
