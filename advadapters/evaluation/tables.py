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
    """Writes a picture: robust against clean accuracy of every mixture, a panel a suite."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    suites = [s for s in dict.fromkeys(row["suite"] for row in rows) if s != "clean"]
    if not suites:
        return
    figure = Figure(figsize=(6.4 * len(suites), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(suites), squeeze=False)[0]
    for axes, suite in zip(panels, suites, strict=True):
        draw_panel(axes, by_mixture(rows), suite)
    figure.savefig(path, dpi=120)


def draw_panel(axes, table, suite):
    """One suite: points joined in the order of the rows, modes marked and named."""
    found = [(m, r["clean"], r[suite]) for m, r in table if {"clean", suite} <= r.keys()]
    x = [100 * clean["value"] for _, clean, _ in found]
    y = [100 * robust["value"] for _, _, robust in found]
    below = [v - 100 * r["low"] for v, (_, _, r) in zip(y, found, strict=True)]
    above = [100 * r["high"] - v for v, (_, _, r) in zip(y, found, strict=True)]
    axes.errorbar(x, y, (below, above), fmt="o-", color="C0", ecolor="0.8", ms=4)
    for px, py, (mixture, _, _) in zip(x, y, found, strict=True):
        mode = name_of(mixture).endswith("mode")
        if mode:
            axes.plot([px], [py], "o", ms=9, mfc="none", color="C3")
        axes.annotate(
            name_of(mixture),
            (px, py),
            xytext=(6, 3),
            textcoords="offset points",
            fontsize=9 if mode else 6,
            color="C3" if mode else "0.4",
        )
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel(f"robust accuracy under {suite}, %")
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
