"""Tables and pictures made from result rows."""

from collections.abc import Sequence
from typing import Any

from advadapters.evaluation.rows import Row, by_network
from advadapters.markdown import markdown_table


def results_table(rows: Sequence[Row]) -> str:
    """A markdown table: a line per network, a column per suite, percent with interval.

    Where networks cost differently, their MFLOP per image are the last column.
    """
    networks = by_network(rows)
    metrics = {row.suite: row.metric for row in rows}
    suites = list(metrics)
    words = {
        "accuracy": "accuracy, %",
        "robust_accuracy": "robust, %",
        "shape_bias": "%",
        "mCE": "%",
    }
    titles = [f"{suite} {words[metrics[suite]]}" for suite in suites]
    costs = any(row.flops is not None for row in rows)
    titles += ["MFLOP per image"] * costs
    kinds = {network.kind for network in networks}
    kind = "lambda" if "lambda" in kinds else "mixture"
    lines = []
    for network, results in networks.items():
        cells = [percent(results[suite]) if suite in results else "" for suite in suites]
        if costs:
            flops = next(iter(results.values())).flops or 0.0
            cells.append(f"{flops / 1e6:.1f}")
        lines.append([str(network), *cells])
    return markdown_table([kind, *titles], lines)


def percent(row: Row) -> str:
    """ "97.5 (95.3-98.7)": the value and its 95% interval, where it has one."""
    if row.low is None or row.high is None:
        return f"{100 * row.value:.1f}"
    return f"{100 * row.value:.1f} ({100 * row.low:.1f}-{100 * row.high:.1f})"


def draw_tradeoff(rows: Sequence[Row], path: Any) -> None:
    """Writes a picture: accuracies along the networks, then robust against clean.

    The first panel shows every suite over the networks in the order of the rows, the
    others one suite each against clean accuracy; bars are 95% intervals.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    suites = list(dict.fromkeys(row.suite for row in rows))
    robust = [suite for suite in suites if suite != "clean"]
    columns = 1 + len(robust)
    figure = Figure(figsize=(1 + 4.8 * columns, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, columns, squeeze=False)[0]
    draw_along(panels[0], rows, suites)
    for axes, suite in zip(panels[1:], robust, strict=True):
        for number, width in enumerate(dict.fromkeys(row.network.width for row in rows)):
            same = [row for row in rows if row.network.width == width]
            draw_against(axes, same, suite, f"C{number}")
    figure.savefig(path, dpi=120)


Bars = tuple[list[float], tuple[list[float], list[float]]]


def bars(rows: Sequence[Row]) -> Bars:
    """(values, (below, above)) in percent; bars of no length where there is no interval."""
    values = [100 * row.value for row in rows]
    lows = [row.value if row.low is None else row.low for row in rows]
    highs = [row.value if row.high is None else row.high for row in rows]
    below = [100 * (row.value - low) for row, low in zip(rows, lows, strict=True)]
    above = [100 * (high - row.value) for row, high in zip(rows, highs, strict=True)]
    return values, (below, above)


def draw_along(axes: Any, rows: Sequence[Row], suites: Sequence[str]) -> None:
    """Accuracy under every suite, a place on the axis for each network."""
    table = by_network(rows)
    for number, suite in enumerate(suites):
        numbered = enumerate(table.values())
        points = [(x, results[suite]) for x, results in numbered if suite in results]
        places, same = zip(*points, strict=True)
        values, spread = bars(same)
        axes.errorbar(
            places, values, spread, fmt="o-", ms=4, lw=1.5, elinewidth=0.7,
            color=f"C{number}", label=suite,
        )  # fmt: skip
    names = list(map(str, table))
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("accuracy, %")
    axes.set_title("accuracy of every network", fontsize=10)
    # Above the data, never over it.
    above = dict(loc="lower left", bbox_to_anchor=(0, 1.06))
    axes.legend(frameon=False, fontsize=8, ncols=3, **above)
    axes.grid(alpha=0.3)


def draw_against(axes: Any, rows: Sequence[Row], suite: str, color: str) -> None:
    """One suite against clean accuracy; modes and lambdas are marked and named.

    The clean axis spans 10 points at least: a difference within the intervals looks small.
    """
    table = by_network(rows).values()
    pairs = [(r["clean"], r[suite]) for r in table if {"clean", suite} <= r.keys()]
    clean, robust = zip(*pairs, strict=True) if pairs else ((), ())
    (x, across), (y, along) = bars(clean), bars(robust)
    axes.errorbar(x, y, along, across, fmt="o-", color=color, ecolor="0.8", ms=4)
    for px, py, row in zip(x, y, clean, strict=True):
        if row.network.kind in ("mode", "lambda"):
            axes.plot([px], [py], "o", ms=9, mfc="none", color="C3")
            axes.annotate(
                str(row.network), (px, py), xytext=(8, 8), fontsize=8,
                textcoords="offset points", color="C3",
            )  # fmt: skip
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel(f"robust accuracy under {suite}, %")
    axes.set_title(f"{suite} against clean accuracy", fontsize=10)
    axes.margins(x=0.25)
    low, high = axes.get_xlim()
    if high - low < 10:
        middle = (low + high) / 2
        axes.set_xlim(middle - 5, middle + 5)
    axes.grid(alpha=0.3)
