"""Pictures of the evidence, from the folders of studies.

python docs/evidence_pictures.py NAME DIR OUTPUT.png, with the NAME of an experiment in
configs/evidence and the folder of `advadapters study --config=configs/evidence/NAME.py
--workdir=DIR`. Each run is a line or a point of its own, so that seeds show their spread.
"""

import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from advadapters.evaluation.rows import Row, by_network, load  # noqa: E402

CLEAN, LINF, L2 = "clean", "pgd20_linf", "pgd20_l2"
LABELS = {
    CLEAN: "accuracy on clean images, %",
    LINF: "accuracy under PGD-20, Linf 0.1, %",
    L2: "accuracy under PGD-20, L2 1.5, %",
}
Draw = Callable[[plt.Axes, pathlib.Path], None]


class Line(NamedTuple):
    """The networks of a variant's runs, in two suites.

    file: that holds the rows. only: domains; networks that mix others are left out.
    """

    variant: str
    label: str
    style: str
    color: str
    file: str = "results"
    only: tuple[str, ...] = ()


class Curve(NamedTuple):
    """A number of metrics.jsonl of a variant's runs."""

    variant: str
    key: str
    label: str
    style: str
    color: str


def runs(folder: pathlib.Path, variant: str) -> list[pathlib.Path]:
    """The folders of a variant's runs, a seed after the other."""
    return sorted(folder.glob(f"{variant}-seed[0-9]"))


def points(file: pathlib.Path, suites: Sequence[str], only: Sequence[str]) -> np.ndarray:
    """Percent [networks, 2] of a run's networks in two suites."""
    groups: Mapping[Any, Mapping[str, Row]] = by_network(load(file.read_text()))
    pairs = [
        [results[suite].value for suite in suites]
        for results in groups.values()
        if not only or _mixes(next(iter(results.values())), only)
    ]
    return 100 * np.array(sorted(pairs))


def _mixes(row: Row, domains: Sequence[str]) -> bool:
    """Whether a row's network is a mixture of these domains alone."""
    return all(name in domains for name, weight in row.network.mixture.items() if weight)


def front(title: str, suites: tuple[str, str], lines: Sequence[Line]) -> Draw:
    """A panel of networks: the first suite to the right, the second upwards."""

    def draw(axes: plt.Axes, folder: pathlib.Path) -> None:
        for line in lines:
            for seed, run in enumerate(runs(folder, line.variant)):
                place = points(run / f"{line.file}.json", suites, line.only)
                label = {} if seed else {"label": line.label}
                style = dict(ms=6, lw=1.2, color=line.color, alpha=0.75)
                axes.plot(*place.T, line.style, **style, **label)
        axes.set_xlabel(LABELS[suites[0]])
        axes.set_ylabel(LABELS[suites[1]])
        axes.set_title(title, fontsize=10)
        axes.legend(frameon=False, fontsize=8)

    return draw


def curves(title: str, ylabel: str, lines: Sequence[Curve]) -> Draw:
    """A panel of what was logged, in percent, against steps."""

    def draw(axes: plt.Axes, folder: pathlib.Path) -> None:
        for line in lines:
            for seed, run in enumerate(runs(folder, line.variant)):
                texts = (run / "metrics.jsonl").read_text().splitlines()
                rows = [row for row in map(json.loads, texts) if row.get(line.key)]
                steps = [row["step"] for row in rows]
                values = [100 * row[line.key] for row in rows]
                label = {} if seed else {"label": line.label}
                axes.plot(steps, values, line.style, lw=1.2, color=line.color, **label)
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        axes.set_title(title, fontsize=10)
        axes.legend(frameon=False, fontsize=8)

    return draw


TRAINING = "accuracy on training images, %"
HELD_OUT = "robust accuracy on held-out images, %"
PICTURES: dict[str, tuple[Draw, Draw]] = {
    "cotrain_fashion": (
        front(
            "10,000 test images",
            (CLEAN, LINF),
            (
                Line("cotrain", "co-trained, class tokens: soups", "o-", "C0"),
                Line("norms", "co-trained, norms: modes", "^:", "C2"),
                Line("nothing", "the same losses, everything shared", "P", "C4"),
                Line("nominal", "nominal training", "s", "0.3"),
                Line("adversarial", "adversarial training", "D", "0.6"),
                Line("independent", "half nominal + half adversarial network", "X", "C3"),
            ),
        ),
        curves(
            "while training; dashed: under the attack of training",
            TRAINING,
            (
                Curve("cotrain", "accuracy/clean", "co-trained, clean", "-", "C0"),
                Curve("cotrain", "accuracy/linf", "co-trained, linf", "--", "C0"),
                Curve("nominal", "accuracy/clean", "nominal training", "-", "0.3"),
                Curve("adversarial", "accuracy/linf", "adversarial training", "--", "0.6"),
            ),
        ),
    ),
    "season_fashion": (
        front(
            "soups of an Linf- and an L2-robust network",
            (L2, LINF),
            (Line("soup", "linf and l2", "o-", "C0", "lines", ("linf", "l2")),),
        ),
        front(
            "soups of a robust and a nominal network",
            (CLEAN, LINF),
            (Line("soup", "linf and nominal", "o-", "C1", "lines", ("linf", "nominal")),),
        ),
    ),
    "oat_fashion": (
        front(
            "4,000 test images",
            (CLEAN, LINF),
            (
                Line("oat", "one network, lambdas 0 to 1", "o-", "C0"),
                Line("fixed_0", "a network of its own, lambda 0", "s", "0.2"),
                Line("fixed_20", "lambda 0.2", "D", "0.45"),
                Line("fixed_100", "lambda 1", "^", "0.65"),
            ),
        ),
        curves(
            "while training; dashed: under the attack of training",
            TRAINING,
            (
                Curve("oat", "accuracy/clean", "OAT, clean", "-", "C0"),
                Curve("oat", "accuracy/attacked", "OAT, attacked", "--", "C0"),
                Curve("fixed_100", "accuracy/linf", "lambda 1, attacked", "--", "0.65"),
            ),
        ),
    ),
    "twins_fashion": (
        front(
            "5,000 test images, last epoch",
            (CLEAN, LINF),
            (
                Line("twins_at", "TWINS-AT", "o", "C0"),
                Line("at", "adversarial fine-tuning", "D", "0.5"),
            ),
        ),
        curves(
            "while fine-tuning",
            HELD_OUT,
            (
                Curve("twins_at", "validation/attacked", "TWINS-AT", "-", "C0"),
                Curve("at", "validation/linf", "adversarial fine-tuning", "-", "0.5"),
            ),
        ),
    ),
    "lora_fashion": (
        front(
            "5,000 test images",
            (CLEAN, LINF),
            (
                Line("lnlora", "LNLoRA", "o", "C0"),
                Line("lora", "LoRA", "^", "C1"),
                Line("full", "full fine-tuning", "D", "0.5"),
                Line("linear_probe", "the head alone", "P", "C4"),
                Line("nominal", "the network that all start from", "s", "0.2"),
            ),
        ),
        curves(
            "while fine-tuning, under the attack of training",
            TRAINING,
            (
                Curve("lnlora", "accuracy/linf", "LNLoRA", "-", "C0"),
                Curve("lora", "accuracy/linf", "LoRA", "-", "C1"),
                Curve("full", "accuracy/linf", "full fine-tuning", "-", "0.5"),
                Curve("linear_probe", "accuracy/linf", "the head alone", "-", "C4"),
            ),
        ),
    ),
}


def main(name: str, folder: pathlib.Path, output: str) -> None:
    """Writes the picture."""
    figure = plt.figure(figsize=(10, 4.4), layout="constrained")
    for axes, draw in zip(figure.subplots(1, 2), PICTURES[name], strict=True):
        draw(axes, folder)
        axes.grid(alpha=0.3)
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3])
