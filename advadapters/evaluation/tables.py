"""Tables and pictures made from result rows (see `accuracy.row`)."""


def name_of(mixture):
    """{"clean": 0.9, "linf": 0.1} -> "0.9 clean + 0.1 linf"; one-hot -> "clean mode"."""
    parts = {name: weight for name, weight in mixture.items() if weight}
    if len(parts) == 1 and set(parts.values()) == {1.0}:
        return f"{next(iter(parts))} mode"
    return " + ".join(f"{round(weight, 4):g} {name}" for name, weight in parts.items())


def by_mixture(rows):
    """[(mixture, {suite: row}), ...] in the order of the rows."""
    table = {}
    for row in rows:
        key = tuple(row["mixture"].items())
        table.setdefault(key, (row["mixture"], {}))[1][row["suite"]] = row
    return list(table.values())


def markdown(rows):
    """A markdown table: a line per mixture, a column per suite, percent with interval."""
    table = by_mixture(rows)
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    titles = [f"{s} accuracy, %" if s == "clean" else f"{s} robust, %" for s in suites]
    lines = [
        "| mixture | " + " | ".join(titles) + " |",
        "| --- |" + " --- |" * len(suites),
    ]
    for mixture, found in table:
        cells = [percent(found[suite]) if suite in found else "" for suite in suites]
        lines.append(f"| {name_of(mixture)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def percent(row):
    """ "97.5 (95.3-98.7)": value and 95% interval."""
    value, low, high = (100 * row[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


def draw_tradeoff(rows, path):
    """Writes a picture: accuracies along the mixtures, then robust against clean.

    The first panel shows every suite over the mixtures in the order of the rows, the
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
    draw_along(panels[0], by_mixture(rows), suites)
    for axes, suite in zip(panels[1:], robust, strict=True):
        draw_against(axes, by_mixture(rows), suite)
    figure.savefig(path, dpi=120)


def bars(rows):
    """(values, (below, above)) in percent."""
    values = [100 * row["value"] for row in rows]
    below = [100 * (row["value"] - row["low"]) for row in rows]
    above = [100 * (row["high"] - row["value"]) for row in rows]
    return values, (below, above)


def draw_along(axes, table, suites):
    """Accuracy under every suite, a place on the axis for each mixture."""
    for number, suite in enumerate(suites):
        found = [(x, r[suite]) for x, (_, r) in enumerate(table) if suite in r]
        places, rows = zip(*found, strict=True)
        values, spread = bars(rows)
        axes.errorbar(
            places, values, spread, fmt="o-", ms=4, lw=1.5, elinewidth=0.7,
            color=f"C{number}", label=suite,
        )  # fmt: skip
    names = [name_of(mixture) for mixture, _ in table]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("accuracy, %")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)


def draw_against(axes, table, suite):
    """One suite against clean accuracy; the modes are marked and named."""
    found = [(m, r["clean"], r[suite]) for m, r in table if {"clean", suite} <= r.keys()]
    mixtures, clean, robust = zip(*found, strict=True) if found else ((), (), ())
    (x, _), (y, spread) = bars(clean), bars(robust)
    axes.errorbar(x, y, spread, fmt="o-", color="C0", ecolor="0.85", ms=4)
    for px, py, mixture in zip(x, y, mixtures, strict=True):
        if name_of(mixture).endswith("mode"):
            axes.plot([px], [py], "o", ms=9, mfc="none", color="C3")
            axes.annotate(
                name_of(mixture), (px, py), xytext=(8, -12),
                textcoords="offset points", color="C3",
            )  # fmt: skip
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel(f"robust accuracy under {suite}, %")
    axes.margins(x=0.25)
    axes.grid(alpha=0.3)
