"""usage: advadapters season --config=FILE --variants=FIRST,OTHER,... --workdir=DIR

Seasoning model soups (Croce et al. 2023) in one command. Trains the first variant of the
config, say an Linf-robust network, in DIR/FIRST; fine-tunes it into the others, which start
from it whatever their config says, in DIR/OTHER; puts them together as DIR/soup (see
`soup`); and evaluates the soups of a grid over the simplex in all suites.

  --grid=0.25                    steps of the soups' weights
  --extrapolation=0.0            how far below 0 a weight may go
  --ensemble=linf=0.5,l2=0.5     these as well, see `evaluate`
  --statistics=1000              batch statistics of each soup estimated anew, see there
  --suite=... --examples=1000    passed to `evaluate` too
  --config.KEY=VALUE             changes all variants

A second call goes on where the first was cut off. Writes to DIR/soup what `soup` and
`evaluate` write, and season.md: the table, the best of each suite, and whether the
networks belong together. Choosing on the images that are evaluated flatters the best: see
`select`.
"""

import itertools
import json
import os
import pathlib

from advadapters import configs, hosts
from advadapters.errors import UsageError
from advadapters.markdown import markdown_table

PASSED = {"grid": "0.25", "extrapolation": "0.0"} | dict.fromkeys(
    ("ensemble", "statistics", "suite", "examples"), ""
)
FLAGS = {"workdir": None, "variants": None} | PASSED


def main(argv):
    """Returns the exit code."""
    _, flags = configs.parse(argv, FLAGS)
    from advadapters import defaults, soups
    from advadapters.training import cases

    names = [name for name in flags["variants"].split(",") if name]
    if len(names) < 2 or len(set(names)) != len(names):
        raise UsageError(f"--variants must be two or more different ones, got {names}")
    try:
        soups.check_names(names)
    except ValueError as error:
        raise UsageError(f"--variants: {error}") from None
    cases.read_grid(flags, len(names))
    cases.read_mixtures("ensemble", flags["ensemble"], names)
    from advadapters import builders, meshes
    from advadapters.commands import assembling, measuring, runs, workdir

    folder = os.path.abspath(os.path.expanduser(flags["workdir"]))
    folders = {name: os.path.join(folder, name) for name in names}
    made = {
        name: configs.parse(configs.vary(argv, name), FLAGS)[0].to_dict() for name in names
    }
    for name, config in made.items():
        if name != names[0]:
            config["start"] |= defaults.NO_START | {"workdir": folders[names[0]]}
    output, mesh = os.path.join(folder, "soup"), meshes.make()
    for config in made.values():  # all of them before the first is trained
        builders.build(config, mesh)
    assembling.need_alike(list(made), list(made.values()))
    there = workdir.holds_run(output)
    if there and workdir.read_config(output)["domains"] != tuple(names):
        made_of = ", ".join(workdir.read_config(output)["domains"])
        raise UsageError(
            f"{output} is made of {made_of}: name these variants, or another workdir"
        )
    for name, config in made.items():
        print(f"--- {name}", flush=True)
        runs.train(runs.open_run(config, folders[name], configs.given(argv)))
    if not there:
        assembling.assemble(list(folders.values()), output)
    passed = {key: flags[key] for key in PASSED if flags[key]}
    measuring.evaluate({"workdir": output} | passed)
    told = summarise(pathlib.Path(output))
    print(f"{told}\nwritten to {output}: season.md")
    return 0


@hosts.once
def summarise(folder):
    """Writes season.md from evaluation.json; returns the table of the best."""
    from advadapters.commands import workdir
    from advadapters.evaluation import tables

    rows = json.loads((folder / "evaluation.json").read_text())
    told = best(rows) + "\n\n" + barriers(rows)
    text = tables.markdown(rows) + "\n\n" + told + "\n"
    workdir.write_text(folder / "season.md", text)
    return told


def barriers(rows):
    """A table: how far clean accuracy falls below the straight line between ingredients.

    On the soups of two that were evaluated; networks that do not belong together show a
    deep valley (Frankle et al. 2020).
    """
    from advadapters import soups

    mixed = [row for row in rows if row["kind"] != "ensemble"]
    clean = [row for row in mixed if row["suite"] == "clean"]
    names = list(clean[0]["mixture"])
    errors = {key_of(row["mixture"].values()): 1 - row["value"] for row in clean}
    lines = []
    for first, second in itertools.combinations(range(len(names)), 2):
        edge = [m for m in errors if m[first] >= 0 <= m[second]]
        edge = [m for m in edge if abs(m[first] + m[second] - 1) < 1e-6]
        score = lambda mixtures: [errors[key_of(m)] for m in mixtures]  # noqa: E731
        found = soups.barrier(score, len(names), first, second, points=len(edge))
        pair = f"{names[first]} and {names[second]}"
        lines.append((pair, f"{100 * found.height:.1f}", f"{found.at:g} {names[first]}"))
    return markdown_table(("between", "clean accuracy below the line, points", "at"), lines)


def key_of(mixture):
    """Weights without their rounding errors."""
    return tuple(round(weight, 6) for weight in mixture)


def best(rows):
    """A table: in each suite, the best ingredient and the best soup.

    Of equals, the one with the highest mean in the other suites.
    """
    from advadapters import soups
    from advadapters.evaluation.tables import by_network, name_of, percent

    lines = []
    mixed = by_network([row for row in rows if row["kind"] != "ensemble"])
    suites = [name for name, row in mixed[0].items() if row["metric"] != "mCE"]
    for suite in suites:
        alone = [found for found in mixed if found[suite]["kind"] == "mode"]
        cells = [suite]
        for part in (alone, mixed):
            values = {s: [found[s]["value"] for found in part] for s in suites}
            others = [values[other] for other in suites if other != suite]
            row = part[soups.best(values[suite], *others)][suite]
            cells += [name_of(row), percent(row)]
        lines.append(cells)
    return markdown_table(("suite", "best ingredient", "", "best soup", ""), lines)
