"""Accurate and robust vision networks whose trade-off stays adjustable.

    import advadapters as aa

    run = aa.load("runs/fashion")               # a trained run; reads no images
    soup = run.soup(clean=0.3, linf=0.7)        # a Classifier: one ordinary network
    soup.predict(images)                        # uint8 or floats in [0, 1]
    rows = run.evaluate(images, labels, soups=aa.line(11))
    print(aa.table(rows))

Importing this costs nothing, since names are looked up when they are used. `aa.soups` and
`aa.trees` therefore need jax and numpy only.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from advadapters import attacks, soups, trees
    from advadapters.attacks import Report
    from advadapters.errors import UsageError
    from advadapters.evaluation.rows import Row
    from advadapters.exports.reading import Exported, load_exported
    from advadapters.front import (
        Classifier,
        Run,
        autoattack,
        config,
        line,
        load,
        pgd,
        plot_tradeoff,
        table,
        train,
    )
    from advadapters.soups import simplex

HOMES = {
    "front": (
        "Classifier", "Run", "autoattack", "config", "line", "load", "pgd",
        "plot_tradeoff", "table", "train",
    ),
    "attacks": ("Report",),
    "errors": ("UsageError",),
    "evaluation.rows": ("Row",),
    "soups": ("simplex",),
    "exports.reading": ("Exported", "load_exported"),
}  # fmt: skip
MODULES = ("attacks", "soups", "trees")
__all__ = [
    "Classifier",
    "Exported",
    "Report",
    "Row",
    "Run",
    "UsageError",
    "attacks",
    "autoattack",
    "config",
    "line",
    "load",
    "load_exported",
    "pgd",
    "plot_tradeoff",
    "simplex",
    "soups",
    "table",
    "train",
    "trees",
]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f"advadapters.{name}")
    for home, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"advadapters.{home}"), name)
    raise AttributeError(f"module 'advadapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
