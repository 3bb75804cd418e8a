"""The numbers of the papers, and ours beside them.

Source of `ROWS`: the table on the poster of Croce et al. (2023), ViT-B/16 on ImageNet,
top-1 accuracy in percent; "C" is accuracy on ImageNet-C, not mCE; "Conflict" is on all
1,280 images, those whose shape and texture agree included. Soups of their own are judged on
whole test sets, the labelled images that chose them included: 38.27 on A is 2,870 of 7,500
images, 67.03 on Conflict 858 of 1,280. Its means are recomputed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from advadapters.evaluation.studies import spread
from advadapters.markdown import markdown_table

Seed = Mapping[str, float]  # {suite: accuracy in [0, 1]} of one run
# What is called how, the command, and each seed.
Ours = tuple[str, str, list[Seed]]
# Title of a column: the suites that ours may come from, the first that there is.
# Corruptions are those of the published files, or else made on the fly.
COLUMNS = {
    "IN": ("imagenet",),
    "Real": ("imagenet_real",),
    "V2": ("imagenet_v2",),
    "A": ("imagenet_a",),
    "R": ("imagenet_r",),
    "Sketch": ("imagenet_sketch",),
    "Conflict": ("conflict_stimuli/shape",),
    "C": ("imagenet_c", "corruptions mean"),
}
# Name: (forward passes, percents in the order of COLUMNS).
ROWS = {
    "Nominal training": (1, (82.64, 87.33, 71.42, 28.03, 47.94, 34.43, 30.47, 64.45)),
    "Adversarial training": (1, (76.88, 83.91, 64.81, 12.35, 55.76, 40.11, 59.45, 55.44)),
    "Fine-tuned MAE-B16": (1, (83.10, 88.02, 72.80, 37.92, 49.30, 35.69, 27.81, 63.23)),
    "AdvProp": (1, (83.39, 88.06, 73.17, 34.81, 53.04, 39.25, 38.98, 70.39)),
    "Pyramid-AT": (1, (83.14, 87.82, 72.53, 32.72, 51.78, 38.60, 37.27, 67.01)),
    "Independent networks ensemble": (
        2, (82.86, 87.78, 71.73, 25.99, 54.20, 37.33, 46.41, 65.61)
    ),
    "Individual networks ensemble": (
        4, (81.31, 86.97, 70.21, 23.13, 54.82, 39.51, 56.02, 68.17)
    ),
    "Single soup": (1, (82.49, 87.85, 71.99, 34.31, 53.84, 39.84, 38.52, 66.82)),
    "Dataset-specific soups": (1, (82.29, 87.89, 71.95, 38.27, 56.39, 40.73, 67.03, 69.34)),
}  # fmt: skip


def poster_table(ours: Mapping[str, Sequence[Ours]]) -> str:
    """The poster's table, lines of ours below each of its own where there are runs.

    ours: {name: [(what it is called, command, [{suite: accuracy in [0, 1]} of each seed]),
    ...]}; names that the poster has not come last. A cell of ours is the mean over the
    seeds and half of its 95% interval, and empty where a seed has not been evaluated.
    """
    titles = ["setup", "forward passes", *COLUMNS, "mean", "seeds", "command"]
    lines = []
    for name in [*ROWS, *(name for name in ours if name not in ROWS)]:
        if name in ROWS:
            passes, values = ROWS[name]
            cells = [f"{value:.2f}" for value in (*values, np.mean(values))]
            lines.append([f"{name}, published", str(passes), *cells, "", ""])
        for kind, command, seeds in ours.get(name, [("ours", "", [])]):
            cells = our_cells(seeds)
            lines.append([f"{name}, {kind}", "", *cells, str(len(seeds)), command])
    return markdown_table(titles, lines)


def our_cells(seeds: Sequence[Seed]) -> list[str]:
    """Cells of one row, its mean where all columns are there."""
    suites = {title: suite_of(seeds, title) for title in COLUMNS}
    whole = [suite for suite in suites.values() if suite]
    cells = [spread([s[c] for s in seeds], 2) if c else "" for c in suites.values()]
    if len(whole) < len(COLUMNS):
        return [*cells, ""]
    return [*cells, spread([float(np.mean([s[c] for c in whole])) for s in seeds], 2)]


def suite_of(seeds: Sequence[Seed], title: str) -> str:
    """The suite that a column comes from: one that all seeds have, "" for none."""
    common = [c for c in COLUMNS[title] if seeds and all(c in seed for seed in seeds)]
    return common[0] if common else ""


def missing(seeds: Sequence[Seed]) -> list[str]:
    """The suites of the columns that some seed lacks."""
    return [COLUMNS[title][0] for title in COLUMNS if not suite_of(seeds, title)]
