"""The ledger of evidence: a row of plain values for each claim, and a page of them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from advadapters.evaluation import claims
from advadapters.markdown import markdown_table

LedgerRow = Mapping[str, Any]
MOST = 4  # comparisons of a claim that are shown one by one
HEAD = """# Evidence

What was claimed, what came out here, and by which command. `advadapters report
--ledger={name} --output=evidence.md` makes this page of `{name}`, and a study with
`--ledger` does so by itself: nothing here is changed by hand.

A claim **holds** if every seed has the claimed sign and the 95% interval, over the test
images, of the mean paired difference excludes the margin on the claimed side. It **does
not hold** if the same is true on the other side. Everything else is **not tested**, with
what would tell. Pairs are formed by image and averaged over the seeds; several comparisons
in one claim share the 5% by Holm's steps. Intervals are over images and say how far these
networks differ; whether other networks would is told by the seeds alone. Accuracies are in
percent, differences in points, each network is attacked through itself. CPU hours are of
all runs that a claim rests on; claims share runs.
"""


def row(
    experiment: str,
    claim: claims.Claim,
    outcomes: Sequence[claims.Outcome],
    seeds: Sequence[int],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The ledger's row of a judged claim; outcomes: of its comparisons.

    experiment: its name. seeds: their numbers. about: further fields, such as the command.
    """
    means, pairs = {}, []
    for comparison, result in zip(claims.comparisons(claim), outcomes, strict=True):
        for number, place in enumerate((comparison.first, comparison.second)):
            values = [pair[number] for pair in result.values]
            means[place] = {"row": list(place), "values": values, "mean": mean(values)}
        pairs.append(
            {
                "first": list(comparison.first),
                "second": list(comparison.second),
                "margin": comparison.margin,
                "by_seed": result.by_seed,
                "difference": result.difference,
                "low": result.low,
                "high": result.high,
                "p": result.p,
                "images": result.images,
            }
        )
    word, why = claims.verdict(outcomes, claim["test"])
    return start(experiment, claim, seeds, about) | {
        "rows": [means[place] for place in claims.rows(claim)],
        "comparisons": pairs,
        "verdict": word,
        "why": why,
    }


def untested(
    experiment: str,
    claim: claims.Claim,
    seeds: Sequence[int],
    about: Mapping[str, Any],
    why: str,
) -> dict[str, Any]:
    """The row of a claim that could not be judged."""
    empty = {"rows": [], "comparisons": [], "verdict": claims.UNTESTED, "why": why}
    return start(experiment, claim, seeds, about) | empty


def start(
    experiment: str, claim: claims.Claim, seeds: Sequence[int], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields that every row begins with."""
    return {
        "experiment": experiment,
        "id": claim["id"],
        "claim": claim["sentence"],
        "place": claim["place"],
        "test": claim["test"],
        "margin": claim.get("margin", 0.0),
        "seeds": list(seeds),
        **about,
    }


def mean(values: Sequence[float]) -> float:
    """Of a list."""
    return sum(values) / len(values)


def merged(old: Sequence[LedgerRow], new: Sequence[LedgerRow]) -> list[LedgerRow]:
    """The rows of a ledger with new ones: in the place of their like, or at the end."""
    fresh = {(row["experiment"], row["id"]): row for row in new}
    kept = [fresh.pop((row["experiment"], row["id"]), row) for row in old]
    return kept + list(fresh.values())


def dump(rows: Sequence[LedgerRow]) -> str:
    """One line of JSON for each row."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(text: str) -> list[LedgerRow]:
    """The rows of `dump`; raises ValueError for what is none."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def evidence_page(rows: Sequence[LedgerRow], name: str = "ledger.jsonl") -> str:
    """The page: for each experiment how it was run, and a table of its claims."""
    parts = [HEAD.format(name=name)]
    for experiment in dict.fromkeys(row["experiment"] for row in rows):
        parts.append(section([row for row in rows if row["experiment"] == experiment]))
    return "\n".join(parts)


def section(rows: Sequence[LedgerRow]) -> str:
    """How an experiment was run, and a line for each of its claims."""
    lines = [f"## {rows[0]['experiment']}", "", f"{together(rows, 'paper')}", ""]
    for command in dict.fromkeys(row["command"] for row in rows):
        lines += ["```bash", command, "```", ""]
    lines += [
        f"Data: {together(rows, 'data')}. Device: {together(rows, 'device')}. "
        f"Commit {together(rows, 'commit')}, jax {together(rows, 'jax')}, "
        f"{together(rows, 'date')}.",
        "",
    ]
    if scale := together(rows, "at_scale"):
        lines += [f"At the paper's size: {scale}", ""]
    cells = [
        [
            row["claim"],
            row["place"],
            ours(row),
            str(len(row["seeds"])),
            verdict(row),
            f"{row['cpu_seconds'] / 3600:.1f}",
        ]
        for row in rows
    ]
    titles = ("claim", "place", "ours", "seeds", "verdict", "CPU hours")
    return "\n".join([*lines, markdown_table(titles, cells, right=(3, 5))]) + "\n"


def together(rows: Sequence[LedgerRow], key: str) -> str:
    """The different values of a field, in the order of the rows; "" where none has it."""
    values = (row.get(key) for row in rows)
    return "; ".join(dict.fromkeys(value for value in values if value))


def verdict(row: LedgerRow) -> str:
    """ "**holds**", "**not tested**: one seed only"."""
    return f"**{row['verdict']}**" + (f": {row['why']}" if row["why"] else "")


def ours(row: LedgerRow) -> str:
    """What was measured, in a cell: values of the rows, and differences with intervals."""
    if not row["rows"]:
        return ""
    if row["test"] == "front":
        return "<br>".join([*series(row), *map(difference, row["comparisons"][:2])])
    pairs = row["comparisons"][:: 2 if row["test"] == "within" else 1]
    means = {tuple(result["row"]): result["mean"] for result in row["rows"]}
    lines = []
    if len(pairs) > MOST:
        lines.append(f"{len(pairs)} comparisons; the clearest {MOST}:")
        pairs = sorted(pairs, key=lambda pair: pair["p"])[:MOST]
    lines += [f"{against(pair, means)}, {difference(pair)}" for pair in pairs]
    return "<br>".join(lines)


def against(pair: Mapping[str, Any], means: Mapping[tuple[str, ...], float]) -> str:
    """ "cotrain (clean=1) 84.1, nominal 83.0, clean" of a comparison."""
    first, second = (tuple(pair[key]) for key in ("first", "second"))
    suites = dict.fromkeys((first[2], second[2]))
    both = (f"{called(place)} {100 * means[place]:.1f}" for place in (first, second))
    return f"{' and '.join(suites)}: {', '.join(both)}"


def called(place: tuple[str, ...]) -> str:
    """ "cotrain (clean=1)": a row without its suite."""
    return f"{place[0]} ({place[1]})" if place[1] else place[0]


def difference(pair: Mapping[str, Any]) -> str:
    """ "+1.1 (0.6 to 1.6)", points."""
    value, low, high = (100 * pair[key] for key in ("difference", "low", "high"))
    return f"{value:+.1f} ({low:.1f} to {high:.1f})"


def series(row: LedgerRow) -> list[str]:
    """A line for each suite of a front: its networks' values in their order."""
    means: dict[str, dict[str, float]] = {}
    for result in row["rows"]:
        _, network, suite = result["row"]
        means.setdefault(suite, {})[network] = result["mean"]
    order = list(next(iter(means.values())))
    lines = [
        f"{suite}: " + ", ".join(f"{100 * values[name]:.1f}" for name in order)
        for suite, values in means.items()
    ]
    return [f"{row['rows'][0]['row'][0]} at {'; '.join(order)}", *lines]
