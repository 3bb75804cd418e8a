"""usage: advadapters season --config=FILE --variants=FIRST,OTHER,... --workdir=DIR

Seasoning model soups (Croce et al. 2023) in one command. Trains the first variant of the
config, say an Linf-robust network, in DIR/FIRST; fine-tunes it into the others, which start
from it whatever their config says, in DIR/OTHER; puts them together as DIR/soup (see
`soup`); and evaluates the soups of a grid over the simplex in all suites.

  --step=0.25                    of the grid
  --extrapolation=0.0            how far below 0 a weight may go
  --config.KEY=VALUE             changes all variants

A second call goes on where the first was cut off. Writes to DIR/soup what `soup` writes,
and season.json, season.md: a row per soup and suite, and the best of each suite. Choosing
on the images that are evaluated flatters the best: see `advadapters.soups.select`.
"""

import json
import os

from advadapters import config as configs
from advadapters import soups
from advadapters.errors import UsageError

FLAGS = {"workdir": None, "variants": None, "step": "0.25", "extrapolation": "0.0"}


def main(argv):
    """Returns the exit code."""
    _, flags = configs.parse(argv, FLAGS)
    names = [name for name in flags["variants"].split(",") if name]
    if len(names) < 2 or len(set(names)) != len(names):
        raise UsageError(f"--variants must be two or more different ones, got {names}")
    grid = read_grid(flags, len(names))
    from advadapters import builders
    from advadapters import mesh as meshes
    from advadapters.commands import runs, soup, study, workdir
    from advadapters.evaluation import tables
    from advadapters.networks import mixture_case

    folder = os.path.abspath(os.path.expanduser(flags["workdir"]))
    folders = {name: os.path.join(folder, name) for name in names}
    made = {
        name: configs.parse(study.vary(argv, name), FLAGS)[0].to_dict() for name in names
    }
    for name, config in made.items():
        if name != names[0]:
            start = dict(workdir=folders[names[0]], weights="", mixture={}, fresh=())
            config["start"] = config["start"] | start
    output, mesh = os.path.join(folder, "soup"), meshes.make()
    for config in made.values():  # all of them before the first is trained
        builders.build(config, mesh)
    there = workdir.holds_run(output)
    if there and workdir.read_config(output)["domains"] != tuple(names):
        made_of = ", ".join(workdir.read_config(output)["domains"])
        raise UsageError(
            f"{output} is made of {made_of}: name these variants, or another workdir"
        )
    for name, config in made.items():
        print(f"--- {name}", flush=True)
        runs.train(runs.open_run(config, folders[name]))
    if there:
        mixed = runs.open_run(workdir.read_config(output), output)
    else:
        mixed = soup.assemble(list(folders.values()), output)
    variables, step = runs.restore_variables(mixed, "latest")
    cases = [mixture_case(mixed.run.domains, mixture) for mixture in grid]
    rows = runs.evaluate(mixed, variables, mixed.run.data.test, step, cases)
    text = tables.markdown(rows) + "\n\n" + best(rows) + "\n"
    workdir.write_text(mixed.folder / "season.json", json.dumps(rows, indent=1) + "\n")
    workdir.write_text(mixed.folder / "season.md", text)
    print(text + f"written to {mixed.folder}: season.json, season.md")
    return 0


def read_grid(flags, count):
    """The mixtures of the grid."""
    try:
        step, below = float(flags["step"]), float(flags["extrapolation"])
        return soups.simplex(count, step, below)
    except ValueError as error:
        raise UsageError(f"--step, --extrapolation: {error}") from None


def best(rows):
    """A table: in each suite, the best ingredient and the best soup."""
    from advadapters.evaluation.tables import name_of, percent

    lines = [
        "| suite | best ingredient | | best soup | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for suite in dict.fromkeys(row["suite"] for row in rows):
        found = [row for row in rows if row["suite"] == suite]
        alone = [row for row in found if max(row["mixture"].values()) == 1.0]
        one, two = (max(part, key=lambda row: row["value"]) for part in (alone, found))
        cells = [suite, name_of(one), percent(one), name_of(two), percent(two)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
