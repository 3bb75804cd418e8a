"""Pictures of the evidence on co-training, from the study's folder.

python docs/evidence_pictures.py DIR OUTPUT.png, with the folder of `advadapters study
--config=configs/evidence/cotrain_fashion.py --workdir=DIR`: on the left the networks of
each seed, on the right the accuracies on training images as they were logged.
"""

import json
import pathlib
import sys

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from advadapters.evaluation.rows import by_network, load  # noqa: E402

SUITES = ("clean", "pgd20_linf")
VARIANTS = {
    "cotrain": ("co-trained, class tokens: soups", "o-", "C0"),
    "norms": ("co-trained, norms: modes", "^:", "C2"),
    "nothing": ("the same losses, everything shared", "P", "C4"),
    "nominal": ("nominal training", "s", "0.3"),
    "adversarial": ("adversarial training", "D", "0.6"),
    "independent": ("half nominal + half adversarial network", "X", "C3"),
}
CURVES = {"cotrain": ("clean", "linf"), "nominal": ("clean",), "adversarial": ("linf",)}


def points(run: pathlib.Path) -> np.ndarray:
    """Percent [networks, 2] of a run's networks, clean and under attack."""
    rows = by_network(load((run / "results.json").read_text()))
    pairs = [[results[suite].value for suite in SUITES] for results in rows.values()]
    return 100 * np.array(pairs)


def draw_front(axes: plt.Axes, folder: pathlib.Path) -> None:
    """The networks of all seeds: one line or point for each run."""
    for variant, (label, style, color) in VARIANTS.items():
        for seed, run in enumerate(sorted(folder.glob(f"{variant}-seed[0-9]"))):
            about = {} if seed else {"label": label}
            axes.plot(*points(run).T, style, ms=6, lw=1.2, color=color, alpha=0.75, **about)
    axes.set_xlabel("accuracy on clean images, %")
    axes.set_ylabel("accuracy under PGD-20, Linf 0.1, %")
    axes.set_title("10,000 test images", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="center left")


def draw_curves(axes: plt.Axes, folder: pathlib.Path) -> None:
    """Accuracies on the training images, in bins between two logged steps."""
    for variant, views in CURVES.items():
        for view in views:
            style = "-" if view == "clean" else "--"
            for seed, run in enumerate(sorted(folder.glob(f"{variant}-seed[0-9]"))):
                lines = (run / "metrics.jsonl").read_text().splitlines()
                rows = [json.loads(line) for line in lines]
                rows = [row for row in rows if row.get(f"accuracy/{view}") is not None]
                about = (
                    {}
                    if seed
                    else {"label": f"{VARIANTS[variant][0].split(':')[0]}, {view}"}
                )
                axes.plot(
                    [row["step"] for row in rows],
                    [100 * row[f"accuracy/{view}"] for row in rows],
                    style,
                    lw=1.2,
                    color=VARIANTS[variant][2],
                    **about,
                )
    axes.set_xlabel("step")
    axes.set_ylabel("accuracy on training images, %")
    axes.set_title("while training; dashed: under the attack of training", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def main(folder: pathlib.Path, output: str) -> None:
    """Writes the picture."""
    figure = plt.figure(figsize=(10, 4.4), layout="constrained")
    for axes, draw in zip(figure.subplots(1, 2), (draw_front, draw_curves), strict=True):
        draw(axes, folder)
        axes.grid(alpha=0.3)
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
