"""Pictures of many soups: fronts, simplexes, classes."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from advadapters import soups
from advadapters.evaluation import classes
from advadapters.evaluation.accuracy import Table
from advadapters.evaluation.means import Mean
from advadapters.networks import ENSEMBLE, Identity
from advadapters.shapes import AnyArray, Float


def sheet(rows: int, columns: int, file: Any, draw: Callable[[Any, Any], None]) -> None:
    """Writes a sheet of panels; draw: (axes [rows, columns], figure) fills them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (1 + 4.2 * columns, 0.6 + 3.9 * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots(rows, columns, squeeze=False), figure)
    figure.savefig(file, dpi=120)


def draw_fronts(
    networks: Sequence[Identity], tables: Mapping[str, Table | Mean], file: Any
) -> None:
    """Accuracy in every suite against clean accuracy, a point per soup.

    The line joins those that no other beats in both; the modes, which are mixed, are
    named, ensembles are squares.
    """
    suites = [name for name in tables if name != "clean"] or ["clean"]
    columns = min(4, len(suites))
    clean = 100 * tables["clean"].share.mean(axis=1)
    alone = np.array([network.kind != ENSEMBLE for network in networks])

    def draw(panels: Any, figure: Any) -> None:
        for axes in panels.flat[len(suites) :]:
            axes.axis("off")
        for axes, suite in zip(panels.flat, suites, strict=False):
            value = 100 * tables[suite].share.mean(axis=1)
            axes.plot(clean[alone], value[alone], "o", ms=3, color="0.6")
            axes.plot(clean[~alone], value[~alone], "s", ms=6, mfc="none", color="C2")
            best = np.flatnonzero(alone)[soups.front(clean[alone], value[alone])]
            axes.plot(clean[best], value[best], "-o", ms=4, color="C0")
            for n, network in enumerate(networks):
                if network.kind == "mode":
                    (domain,) = (name for name, w in network.mixture.items() if w)
                    axes.plot(clean[n], value[n], "o", ms=8, mfc="none", color="C3")
                    axes.annotate(
                        domain, (clean[n], value[n]),
                        xytext=(6, -10), textcoords="offset points", fontsize=8,
                        color="C3",
                    )  # fmt: skip
            axes.set_xlabel("clean accuracy, %")
            axes.set_ylabel(f"{suite}, %")
            axes.grid(alpha=0.3)

    sheet(-(-len(suites) // columns), columns, file, draw)


def corners(
    weights: Sequence[Sequence[float]] | Float[AnyArray, "N 3"],
) -> Float[AnyArray, "N 2"]:
    """Places [N, 2] of weights [N, 3] in a triangle of side 1."""
    places = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
    return np.asarray(weights) @ places


def faces(
    networks: Sequence[Identity],
) -> dict[tuple[str, ...], list[tuple[int, list[float]]]]:
    """{three domains: [(number of the network, its weights [3]), ...]} where it is a grid.

    The faces of the simplex of three and more ingredients; a face is there with six soups
    or more.
    """
    alone = [n for n, network in enumerate(networks) if network.kind != ENSEMBLE]
    domains = list(networks[alone[0]].mixture)
    known = {}
    for three in itertools.combinations(domains, 3):
        weights = {n: [networks[n].mixture[name] for name in three] for n in alone}
        inside = [(n, w) for n, w in weights.items() if abs(sum(w) - 1) < 1e-6]
        if len(inside) >= 6:
            known[three] = inside
    return known


def draw_simplex(
    networks: Sequence[Identity], tables: Mapping[str, Table | Mean], file: Any
) -> None:
    """Accuracy over every face of the simplex, a row of triangles for each suite."""
    known = faces(networks)
    values = {suite: 100 * table.share.mean(axis=1) for suite, table in tables.items()}

    def draw(panels: Any, figure: Any) -> None:
        for line, (suite, value) in zip(panels, values.items(), strict=True):
            others = [values[other] for other in values if other != suite]
            shown = [n for inside in known.values() for n, _ in inside]
            span, points = dict(vmin=value[shown].min(), vmax=value[shown].max()), None
            for axes, (three, inside) in zip(line, known.items(), strict=True):
                numbers, weights = map(list, zip(*inside, strict=True))
                x, y = corners(weights).T
                points = axes.scatter(x, y, c=value[numbers], s=110, **span)
                top = soups.best(value[numbers], *(other[numbers] for other in others))
                axes.plot(x[top], y[top], "k*", ms=9)
                for name, (px, py) in zip(three, corners(np.eye(3)), strict=True):
                    below = -0.09 if py == 0 else 0.06
                    axes.text(px, py + below, name, ha="center", fontsize=9)
                axes.set_title(f"{suite}, %", fontsize=9)
                axes.axis("off")
                axes.set_aspect("equal")
                axes.margins(0.12)
            if points is not None:
                figure.colorbar(points, ax=line[-1], shrink=0.7)

    sheet(len(tables), len(known), file, draw)


def draw_classes(
    networks: Sequence[Identity], tables: Mapping[str, Table | Mean], file: Any
) -> None:
    """Clean and robust accuracy of each class along the way from accurate to robust.

    The networks of the front between clean images and each suite, a line per class.
    """
    suites = [name for name in tables if name != "clean"]
    alone = [n for n, network in enumerate(networks) if network.kind != ENSEMBLE]

    def draw(panels: Any, figure: Any) -> None:
        for line, suite in zip(panels, suites, strict=True):
            means = [tables[name].share[alone].mean(axis=1) for name in ("clean", suite)]
            along = [alone[n] for n in soups.front(*means)]
            for axes, name in zip(line, ("clean", suite), strict=True):
                labels, values = classes.accuracies(tables[name])
                for k, label in enumerate(labels[:20]):
                    color = f"C{k % 10}"
                    axes.plot(100 * values[along, k], "-o", ms=3, color=color)
                    end = (len(along) - 1, 100 * values[along[-1], k])
                    axes.annotate(str(label), end, xytext=(5, -3), fontsize=8,
                                  textcoords="offset points", color=color)  # fmt: skip
                axes.plot(100 * tables[name].share[along].mean(axis=1), "k-", lw=2.5)
                axes.set_xlabel(f"front from clean to {suite}")
                axes.set_ylabel(f"{name}, %, by class (black: all)")
                axes.set_xticks([])
                axes.grid(alpha=0.3)

    sheet(len(suites), 2, file, draw)
