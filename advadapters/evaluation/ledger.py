"""The ledger of evidence: a row of plain values for each claim, and a page of them."""

import json

from advadapters.evaluation import claims
from advadapters.markdown import markdown_table

MOST = 4  # comparisons of a claim that are told one by one
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


def row(experiment, claim, found, seeds, about):
    """The ledger's row of a judged claim; found: [claims.Found] of its comparisons.

    experiment: its name. seeds: their numbers. about: further fields, such as the command.
    """
    told = claims.comparisons(claim)
    means, pairs = {}, []
    for one, result in zip(told, found, strict=True):
        for place, which in enumerate((one.first, one.second)):
            values = [pair[place] for pair in result.values]
            means[which] = {"row": list(which), "values": values, "mean": mean(values)}
        pairs.append(
            {
                "first": list(one.first),
                "second": list(one.second),
                "margin": one.margin,
                "by_seed": result.by_seed,
                "difference": result.difference,
                "low": result.low,
                "high": result.high,
                "p": result.p,
                "images": result.images,
            }
        )
    word, why = claims.verdict(found, claim["test"])
    return start(experiment, claim, seeds, about) | {
        "rows": [means[which] for which in claims.rows(claim)],
        "comparisons": pairs,
        "verdict": word,
        "why": why,
    }


def untested(experiment, claim, seeds, about, why):
    """The row of a claim that could not be judged."""
    empty = {"rows": [], "comparisons": [], "verdict": claims.UNTESTED, "why": why}
    return start(experiment, claim, seeds, about) | empty


def start(experiment, claim, seeds, about):
    """The fields that every row begins with."""
    return {
        "experiment": experiment,
        "id": claim["id"],
        "claim": claim["sentence"],
        "place": claim["place"],
        "test": claim["test"],
        "margin": claim.get("margin", 0.0),
        "seeds": list(seeds),
    } | about


def mean(values):
    """Of a list."""
    return sum(values) / len(values)


def merged(old, new):
    """The rows of a ledger with new ones: in the place of their like, or at the end."""
    fresh = {(row["experiment"], row["id"]): row for row in new}
    kept = [fresh.pop((row["experiment"], row["id"]), row) for row in old]
    return kept + list(fresh.values())


def dump(rows):
    """One line of JSON for each row."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(text):
    """The rows of `dump`; raises ValueError for what is none."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def markdown(rows, name="ledger.jsonl"):
    """The page: for each experiment how it was run, and a table of its claims."""
    parts = [HEAD.format(name=name)]
    for experiment in dict.fromkeys(row["experiment"] for row in rows):
        parts.append(section([row for row in rows if row["experiment"] == experiment]))
    return "\n".join(parts)


def section(rows):
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


def together(rows, key):
    """The different values of a field, in the order of the rows."""
    return "; ".join(dict.fromkeys(row[key] for row in rows))


def verdict(row):
    """ "**holds**", "**not tested**: one seed only"."""
    return f"**{row['verdict']}**" + (f": {row['why']}" if row["why"] else "")


def ours(row):
    """What was measured, in a cell: values of the rows, and differences with intervals."""
    if not row["rows"]:
        return ""
    if row["test"] == "front":
        return "<br>".join([*series(row), *map(difference, row["comparisons"][:2])])
    pairs = row["comparisons"][:: 2 if row["test"] == "within" else 1]
    means = {tuple(one["row"]): one["mean"] for one in row["rows"]}
    told = []
    if len(pairs) > MOST:
        told.append(f"{len(pairs)} comparisons; the clearest {MOST}:")
        pairs = sorted(pairs, key=lambda pair: pair["p"])[:MOST]
    told += [f"{against(pair, means)}, {difference(pair)}" for pair in pairs]
    return "<br>".join(told)


def against(pair, means):
    """ "cotrain (clean=1) 84.1, nominal 83.0, clean" of a comparison."""
    first, second = (tuple(pair[key]) for key in ("first", "second"))
    suites = dict.fromkeys((first[2], second[2]))
    told = ", ".join(f"{called(one)} {100 * means[one]:.1f}" for one in (first, second))
    return f"{' and '.join(suites)}: {told}"


def called(row):
    """ "cotrain (clean=1)": a row without its suite."""
    return f"{row[0]} ({row[1]})" if row[1] else row[0]


def difference(pair):
    """ "+1.1 (0.6 to 1.6)", points."""
    value, low, high = (100 * pair[key] for key in ("difference", "low", "high"))
    return f"{value:+.1f} ({low:.1f} to {high:.1f})"


def series(row):
    """A line for each suite of a front: its networks' values in their order."""
    lines = {}
    for one in row["rows"]:
        lines.setdefault(one["row"][2], {})[one["row"][1]] = one["mean"]
    order = list(next(iter(lines.values())))
    told = [
        f"{suite}: " + ", ".join(f"{100 * values[name]:.1f}" for name in order)
        for suite, values in lines.items()
    ]
    return [f"{row['rows'][0]['row'][0]} at {'; '.join(order)}", *told]
