"""Tables and pictures of a study: cases by seeds, made from the runs' result rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from advadapters.evaluation.rows import Row
from advadapters.markdown import markdown_table
from advadapters.networks import Identity, mixture_case


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRow:
    """How one case of a study did in one suite: a row of study.json.

    Attributes:
      case: its name, and lambda where the network is conditioned on it.
      parameters_per_domain: how many the adapters of one domain have.
      suite: the suite.
      network: which of the case's networks was asked.
      values: the accuracy of each seed.
      low, high: Student's 95% interval of the mean, None for one seed.
      n: images.
    """

    case: str
    parameters_per_domain: int
    suite: str
    network: Identity
    values: Sequence[float]
    low: float | None
    high: float | None
    n: int

    @property
    def mean(self) -> float:
        """The mean accuracy of the seeds."""
        return float(np.mean(self.values))

    def plain(self) -> dict[str, Any]:
        """The row as plain values, those of its network and its name among them."""
        return {
            "case": self.case,
            "parameters_per_domain": self.parameters_per_domain,
            "suite": self.suite,
            "mode": str(self.network),
            **self.network.plain(),
            "values": list(self.values),
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "n": self.n,
        }


def rows(case: str, parameters: int, results: Sequence[Sequence[Row]]) -> list[StudyRow]:
    """One row per suite of a case; of a network conditioned on lambda, of each lambda.

    results: the result rows of each seed's run. Clean accuracy is that of the first mode
    that was evaluated; robust accuracy that of the mode named like the end of the suite
    ("pgd20_linf": linf) or else of the last; where there are soups only, that of the first
    network. The interval is Student's over the seeds; one seed alone has none.
    """
    suites = dict.fromkeys(row.suite for row in results[0])
    networks = dict.fromkeys(row.network for row in results[0])
    first = next(iter(networks))
    if first.kind == "lambda":
        cases = [(f"{case}, {n}", n, suite) for n in networks for suite in suites]
    else:
        domains = list(first.mixture)
        modes = {domain: identity_of(domain, domains) for domain in domains}
        modes = {name: mode for name, mode in modes.items() if mode in networks}
        cases = [
            (case, modes[mode_of(s, list(modes))] if modes else first, s) for s in suites
        ]
    return [
        study_row(label, parameters, suite, network, results)
        for label, network, suite in cases
    ]


def study_row(
    label: str,
    parameters: int,
    suite: str,
    network: Identity,
    results: Sequence[Sequence[Row]],
) -> StudyRow:
    """The row of one case's network in one suite, over the seeds."""
    values = [value_of(seed, suite, network) for seed in results]
    mean, half = float(np.mean(values)), half_width(values)
    return StudyRow(
        case=label,
        parameters_per_domain=parameters,
        suite=suite,
        network=dataclasses.replace(network, statistics=None),
        values=values,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        n=results[0][0].n,
    )


def mode_of(suite: str, domains: Sequence[str]) -> str:
    """The domain whose mode a suite is read in: that of the longest name it ends with."""
    named = [domain for domain in domains if suite.endswith(f"_{domain}")]
    return domains[0] if suite == "clean" else max(named or domains[-1:], key=len)


def identity_of(mode: str, domains: Sequence[str]) -> Identity:
    """The network that is a domain's mode."""
    return mixture_case(domains, [float(domain == mode) for domain in domains]).identity


def value_of(rows: Sequence[Row], suite: str, network: Identity) -> float:
    """The accuracy of one run's network in a suite; raises ValueError if it has none."""
    for row in rows:
        if row.suite == suite and row.network == network:
            return row.value
    raise ValueError(f"no row for suite {suite} of {network}")


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95% interval of the mean by Student's t, None for a single value."""
    if len(values) < 2:
        return None
    spread = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(stats.t.ppf(0.975, len(values) - 1) * spread)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """ "81.2 ± 0.9": percent, the mean of seeds and half of its 95% interval."""
    half = half_width(values)
    interval = "" if half is None else f" ± {100 * half:.{digits}f}"
    return f"{100 * np.mean(values):.{digits}f}{interval}"


def by_case(rows: Sequence[StudyRow]) -> dict[str, dict[str, StudyRow]]:
    """{case: {suite: row}} in the order of the rows."""
    table: dict[str, dict[str, StudyRow]] = {}
    for row in rows:
        table.setdefault(row.case, {})[row.suite] = row
    return table


def study_table(rows: Sequence[StudyRow]) -> str:
    """A line per case: parameters per domain, then each suite: mean ± half interval."""
    suites = list(dict.fromkeys(row.suite for row in rows))
    titles = ["clean, %" if suite == "clean" else f"{suite}, %" for suite in suites]
    lines = []
    for case, results in by_case(rows).items():
        first = next(iter(results.values()))
        cells = [cell(results[suite]) if suite in results else "" for suite in suites]
        count, seeds = f"{first.parameters_per_domain:,}", str(len(first.values))
        lines.append([case, count, *cells, seeds])
    return markdown_table(
        ["case", "parameters per domain", *titles, "seeds"], lines, right=[1]
    )


def cell(row: StudyRow) -> str:
    """ "98.7 ± 0.4 (clean mode)"."""
    return f"{spread(row.values)} ({row.network})"


def draw(rows: Sequence[StudyRow], file: Any) -> None:
    """Writes a picture: accuracy against parameters per domain, a panel per suite.

    A dot per seed, a bar for the mean.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    suites = list(dict.fromkeys(row.suite for row in rows))
    figure = Figure(figsize=(1 + 4.8 * len(suites), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(suites), squeeze=False)[0]
    for axes, suite in zip(panels, suites, strict=True):
        draw_suite(axes, [row for row in rows if row.suite == suite], suite)
    figure.savefig(file, dpi=120)


def draw_suite(axes: Any, rows: Sequence[StudyRow], suite: str) -> None:
    """One panel; where all cases have the same size, they stand side by side."""
    sizes = [row.parameters_per_domain for row in rows]
    apart = len(set(sizes)) > 1
    for number, row in enumerate(rows):
        place = max(row.parameters_per_domain, 1) if apart else number
        values = [100 * value for value in row.values]
        color = f"C{number % 10}"
        axes.plot([place] * len(values), values, "o", ms=4, color=color, alpha=0.6)
        axes.plot([place], [100 * row.mean], "_", ms=18, mew=2, color=color)
        label = {"xytext": (4, 8), "textcoords": "offset points", "fontsize": 7}
        axes.annotate(row.case, (place, 100 * row.mean), **label)
    if apart:
        axes.set_xscale("log")
        axes.set_xlabel("adapter parameters per domain (none: at 1)")
    else:
        axes.set_xticks([])
    title = "clean accuracy, %" if suite == "clean" else f"accuracy under {suite}, %"
    axes.set_ylabel(title)
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
