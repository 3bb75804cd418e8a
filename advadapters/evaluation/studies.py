"""Tables and pictures of a study: cases by seeds, made from the runs' result rows."""

import numpy as np
from scipy import stats

from advadapters.evaluation.tables import name_of
from advadapters.markdown import markdown_table
from advadapters.networks import key_of, mixture_case

FIELDS = ("kind", "mixture", "lambda", "width")  # of the network, in a study's rows


def rows(case, parameters, results):
    """One row per suite of a case; of a network conditioned on lambda, of each lambda.

    results: the result rows of each seed's run. Clean accuracy is that of the first mode
    that was evaluated; robust accuracy that of the mode named like the end of the suite
    ("pgd20_linf": linf) or else of the last; where there are soups only, that of the first
    network. The interval is Student's over the seeds;
    one seed alone has none.
    """
    found, first = [], results[0][0]
    suites = dict.fromkeys(row["suite"] for row in results[0])
    if first["kind"] == "lambda":
        seen = {key_of(row): row for row in results[0]}.values()
        cases = [
            (f"{case}, {name_of(row)}", row, suite) for row in seen for suite in suites
        ]
    else:
        domains, seen = list(first["mixture"]), {key_of(row) for row in results[0]}
        modes = {domain: told_of(domain, domains) for domain in domains}
        modes = {name: told for name, told in modes.items() if key_of(told) in seen}
        cases = [
            (case, modes[mode_of(s, list(modes))] if modes else first, s) for s in suites
        ]
    for label, told, suite in cases:
        values = [value_of(seed, suite, told) for seed in results]
        mean = float(np.mean(values))
        half = half_width(values)
        found.append(
            {
                "case": label,
                "parameters_per_domain": parameters,
                "suite": suite,
                "mode": name_of(told),
                **{key: told[key] for key in FIELDS if key in told},
                "values": values,
                "mean": mean,
                "low": None if half is None else mean - half,
                "high": None if half is None else mean + half,
                "n": results[0][0]["n"],
            }
        )
    return found


def mode_of(suite, domains):
    """The domain whose mode a suite is read in: that of the longest name it ends with."""
    named = [domain for domain in domains if suite.endswith(f"_{domain}")]
    return domains[0] if suite == "clean" else max(named or domains[-1:], key=len)


def told_of(mode, domains):
    """What `networks.Case` tells of a domain's mode."""
    return mixture_case(domains, [float(domain == mode) for domain in domains]).told


def value_of(result, suite, told):
    """The accuracy of one run's network that is told of."""
    for row in result:
        if row["suite"] == suite and key_of(row) == key_of(told):
            return row["value"]
    raise ValueError(f"no row for suite {suite} of {name_of(told)}")


def half_width(values):
    """Half of the 95% interval of the mean by Student's t, None for a single value."""
    if len(values) < 2:
        return None
    spread = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(stats.t.ppf(0.975, len(values) - 1) * spread)


def spread(values, digits=1):
    """ "81.2 ± 0.9": percent, the mean of seeds and half of its 95% interval."""
    half = half_width(values)
    told = "" if half is None else f" ± {100 * half:.{digits}f}"
    return f"{100 * np.mean(values):.{digits}f}{told}"


def by_case(rows):
    """{case: {suite: row}} in the order of the rows."""
    table = {}
    for row in rows:
        table.setdefault(row["case"], {})[row["suite"]] = row
    return table


def markdown(rows):
    """A line per case: parameters per domain, then each suite: mean ± half interval."""
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    titles = ["clean, %" if suite == "clean" else f"{suite}, %" for suite in suites]
    lines = []
    for case, found in by_case(rows).items():
        first = next(iter(found.values()))
        cells = [cell(found[suite]) if suite in found else "" for suite in suites]
        count, seeds = f"{first['parameters_per_domain']:,}", str(len(first["values"]))
        lines.append([case, count, *cells, seeds])
    return markdown_table(
        ["case", "parameters per domain", *titles, "seeds"], lines, right=[1]
    )


def cell(row):
    """ "98.7 ± 0.4 (clean mode)"."""
    return f"{spread(row['values'])} ({row['mode']})"


def draw(rows, file):
    """Writes a picture: accuracy against parameters per domain, a panel per suite.

    A dot per seed, a bar for the mean.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    suites = list(dict.fromkeys(row["suite"] for row in rows))
    figure = Figure(figsize=(1 + 4.8 * len(suites), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(suites), squeeze=False)[0]
    for axes, suite in zip(panels, suites, strict=True):
        found = [row for row in rows if row["suite"] == suite]
        draw_suite(axes, found, suite)
    figure.savefig(file, dpi=120)


def draw_suite(axes, rows, suite):
    """One panel; where all cases have the same size, they stand side by side."""
    sizes = [row["parameters_per_domain"] for row in rows]
    apart = len(set(sizes)) > 1
    for number, row in enumerate(rows):
        place = max(row["parameters_per_domain"], 1) if apart else number
        values = [100 * value for value in row["values"]]
        color = f"C{number % 10}"
        axes.plot([place] * len(values), values, "o", ms=4, color=color, alpha=0.6)
        axes.plot([place], [100 * row["mean"]], "_", ms=18, mew=2, color=color)
        label = {"xytext": (4, 8), "textcoords": "offset points", "fontsize": 7}
        axes.annotate(row["case"], (place, 100 * row["mean"]), **label)
    if apart:
        axes.set_xscale("log")
        axes.set_xlabel("adapter parameters per domain (none: at 1)")
    else:
        axes.set_xticks([])
    title = "clean accuracy, %" if suite == "clean" else f"accuracy under {suite}, %"
    axes.set_ylabel(title)
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
