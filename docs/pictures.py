"""The picture of the README, from finished runs of configs/fashion_mnist.py.

python docs/pictures.py DIR OUTPUT.png, with the runs DIR/cotrain-0, DIR/cotrain-1, ...,
DIR/nominal-0, ... and DIR/adversarial-0, ...; prints the README's table.
"""

import pathlib
import sys

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from advadapters.evaluation.rows import by_network, load  # noqa: E402

SUITES = ("clean", "pgd10_linf")


def values(folder, variant):
    """{name of a network: percent [seeds, 2]} of all runs of a variant."""
    found = {}
    for run in sorted(folder.glob(f"{variant}-[0-9]")):
        rows = load((run / "results.json").read_text())
        for network, results in by_network(rows).items():
            pair = [100 * results[suite].value for suite in SUITES]
            found.setdefault(str(network), []).append(pair)
    return {name: np.array(pairs) for name, pairs in found.items()}


def line(title, pairs):
    """A row of the table: mean and standard deviation over the seeds."""
    spread = pairs.mean(axis=0), pairs.std(axis=0, ddof=1)
    cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(*spread, strict=True)]
    return f"| {title} | {' | '.join(cells)} |"


def main(folder, output):
    """Prints the table and writes the picture."""
    soups = values(folder, "cotrain")
    figure = plt.figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    print("| network | clean | robust |\n| --- | --- | --- |")
    for variant, mark in (("nominal", "s"), ("adversarial", "D")):
        (pairs,) = values(folder, variant).values()
        print(line(f"`configs/fashion_mnist.py:{variant}`", pairs))
        axes.plot(*pairs.T, mark, ms=6, color="0.55", label=f"{variant} training")
    for name, pairs in soups.items():
        print(line(f"co-trained, {name}", pairs))
    seeds = np.stack(list(soups.values()), axis=1)  # [seeds, soups, 2]
    for number, seed in enumerate(seeds):
        about = {"label": "one network, co-trained: its soups"} if not number else {}
        axes.plot(*seed.T, "o-", ms=4, lw=1, color="C0", alpha=0.35, **about)
    mean = seeds.mean(axis=0)
    axes.plot(*mean.T, "o-", ms=7, lw=2, color="C0", label="mean of the seeds")
    places = {0: ((8, -12), "left"), len(mean) - 1: ((-8, 6), "right")}  # of the ends
    for number, (point, name) in enumerate(zip(mean, soups, strict=True)):
        offset, side = places.get(number, ((8, 5), "left"))
        about = dict(xytext=offset, ha=side, textcoords="offset points", fontsize=8)
        axes.annotate(name, point, **about)
    axes.set_xlabel("accuracy on clean images, %")
    axes.set_ylabel("accuracy under PGD-10, Linf 0.1, %")
    axes.set_title("2,000 test images of Fashion-MNIST, three seeds", fontsize=10)
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
