"""Tables and pictures made from result rows (see `accuracy.row`)."""

from advadapters.markdown import markdown_table
from advadapters.networks import key_of


def name_of(told):
    """What people call a row's network: "0.9 clean + 0.1 linf", "clean mode" if one-hot, or
    "lambda 0.1", "lambda 0.1, width 0.5", "ensemble of 0.5 clean + 0.5 linf"; told: a row,
    or what `networks.Case` tells.
    """
    kind = told["kind"]
    if kind == "lambda":
        return ", ".join(f"{k} {told[k]:g}" for k in ("lambda", "width") if k in told)
    parts = {name: weight for name, weight in told["mixture"].items() if weight}
    if kind == "mode":
        return f"{next(iter(parts))} mode"
    mixed = " + ".join(f"{round(weight, 4):g} {name}" for name, weight in parts.items())
    return f"ensemble of {mixed}" if kind == "ensemble" else mixed


def by_network(rows):
    """[{suite: row}, ...] of each network in the order of the rows."""
    table = {}
    for row in rows:
        table.setdefault(key_of(row), {})[row["suite"]] = row
    return list(table.values())


def name_of_all(found):
    """What the network of {suite: row} is called."""
    return name_of(next(iter(found.values())))


def markdown(rows):
    """A markdown table: a line per network, a column per suite, percent with interval.

    Where networks cost differently, their MFLOP per image are the last column.
    """
    networks = by_network(rows)
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    metrics = {row["suite"]: row["metric"] for row in rows}
    words = {"accuracy": "accuracy, %", "robust_accuracy": "robust, %", "shape_bias": "%"}
    titles = [f"{suite} {words[metrics[suite]]}" for suite in suites]
    costs = any("flops" in row for row in rows)
    titles += ["MFLOP per image"] * costs
    kind = "lambda" if any(row["kind"] == "lambda" for row in rows) else "mixture"
    lines = []
    for found in networks:
        cells = [percent(found[suite]) if suite in found else "" for suite in suites]
        if costs:
            cells.append(f"{next(iter(found.values()))['flops'] / 1e6:.1f}")
        lines.append([name_of_all(found), *cells])
    return markdown_table([kind, *titles], lines)


def percent(row):
    """ "97.5 (95.3-98.7)": value and 95% interval."""
    value, low, high = (100 * row[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


def draw_tradeoff(rows, path):
    """Writes a picture: accuracies along the networks, then robust against clean.

    The first panel shows every suite over the networks in the order of the rows, the
    others one suite each against clean accuracy; bars are 95% intervals.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    suites = list(dict.fromkeys(row["suite"] for row in rows))
    robust = [suite for suite in suites if suite != "clean"]
    columns = 1 + len(robust)
    figure = Figure(figsize=(1 + 4.8 * columns, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, columns, squeeze=False)[0]
    draw_along(panels[0], by_network(rows), suites)
    for axes, suite in zip(panels[1:], robust, strict=True):
        for number, width in enumerate(dict.fromkeys(row.get("width") for row in rows)):
            same = [row for row in rows if row.get("width") == width]
            draw_against(axes, by_network(same), suite, f"C{number}")
    figure.savefig(path, dpi=120)


def bars(rows):
    """(values, (below, above)) in percent."""
    values = [100 * row["value"] for row in rows]
    below = [100 * (row["value"] - row["low"]) for row in rows]
    above = [100 * (row["high"] - row["value"]) for row in rows]
    return values, (below, above)


def draw_along(axes, table, suites):
    """Accuracy under every suite, a place on the axis for each network."""
    for number, suite in enumerate(suites):
        found = [(x, r[suite]) for x, r in enumerate(table) if suite in r]
        places, rows = zip(*found, strict=True)
        values, spread = bars(rows)
        axes.errorbar(
            places, values, spread, fmt="o-", ms=4, lw=1.5, elinewidth=0.7,
            color=f"C{number}", label=suite,
        )  # fmt: skip
    names = [name_of_all(found) for found in table]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("accuracy, %")
    axes.set_title("accuracy of every network", fontsize=10)
    # Above the data, never over it.
    above = dict(loc="lower left", bbox_to_anchor=(0, 1.06))
    axes.legend(frameon=False, fontsize=8, ncols=3, **above)
    axes.grid(alpha=0.3)


def draw_against(axes, table, suite, color):
    """One suite against clean accuracy; modes and lambdas are marked and named.

    The clean axis spans 10 points at least: a difference within the intervals looks small.
    """
    found = [(r["clean"], r[suite]) for r in table if {"clean", suite} <= r.keys()]
    clean, robust = zip(*found, strict=True) if found else ((), ())
    (x, across), (y, along) = bars(clean), bars(robust)
    axes.errorbar(x, y, along, across, fmt="o-", color=color, ecolor="0.8", ms=4)
    for px, py, row in zip(x, y, clean, strict=True):
        if row["kind"] in ("mode", "lambda"):
            axes.plot([px], [py], "o", ms=9, mfc="none", color="C3")
            axes.annotate(
                name_of(row), (px, py), xytext=(8, 8), fontsize=8,
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
