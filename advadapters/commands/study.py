"""usage: advadapters study --config=FILE[:VARIANT] --workdir=DIR --adapters=A,B,...
       advadapters study --config=FILE --workdir=DIR --variants=A,B,...

Trains one config many times, with one thing changed, and compares:

  --adapters=class_token,norms+head,nothing   config.adapters of each case; "+" joins
  --variants=adversarial,trades,awp           or the variant of the config
  --seeds=3                                   config.seed, the next one, ...
  --config.KEY=VALUE                          changes all of them

Each training is a run of its own in DIR/CASE-seedN; a second call goes on where the
first was cut off, and further cases or seeds can be added. Evaluates the modes, not the
soups between them. Writes to DIR, from the runs named:

  study.json  a row per case and suite: mode, values of the seeds, mean, 95% interval
  study.md    the same as a table, with the parameters per domain
  study.png   accuracy against parameters per domain
"""

import json
import os
import re

from advadapters import configs
from advadapters.errors import UsageError

FLAGS = {"workdir": None, "adapters": "", "variants": "", "seeds": "3"}


def main(argv):
    """Returns the exit code."""
    _, flags = configs.parse(argv, FLAGS)
    if bool(flags["adapters"]) == bool(flags["variants"]):
        raise UsageError("give either --adapters=A,B,... or --variants=A,B,...")
    if not (flags["seeds"].isdecimal() and int(flags["seeds"])):
        raise UsageError(f"--seeds must be a positive number, got {flags['seeds']!r}")
    cases = read_cases(argv, flags)
    from etils import epath

    from advadapters import builders
    from advadapters import mesh as meshes
    from advadapters.commands import soup, workdir
    from advadapters.evaluation import studies
    from advadapters.training.loop import Diverged

    mesh, (first, *_) = meshes.make(), cases
    for case, config in cases.items():  # all of them before the first is trained
        builders.build(config, mesh)
        soup.need_same_suites(first, cases[first], case, config)
    folder = epath.Path(os.path.abspath(os.path.expanduser(flags["workdir"])))
    rows, failed = [], []
    for case, config in cases.items():
        seeds = [config["seed"] + number for number in range(int(flags["seeds"]))]
        try:
            found = [
                train(config | {"seed": seed}, folder / f"{case}-seed{seed}", argv)
                for seed in seeds
            ]
        except Diverged as error:
            print(f"{case}: {error}; left out", flush=True)
            failed.append(case)
            continue
        results, sizes = zip(*found, strict=True)
        rows += studies.rows(case, sizes[0], results)
        workdir.write_text(folder / "study.json", json.dumps(rows, indent=1) + "\n")
    if rows:
        write(rows, folder)
    return 1 if failed else 0


def write(rows, folder):
    """The table and the picture of a study."""
    from advadapters.commands import workdir
    from advadapters.evaluation import studies

    workdir.write_text(folder / "study.md", studies.markdown(rows) + "\n")
    workdir.write_whole(folder / "study.png", lambda file: studies.draw(rows, file))
    print(studies.markdown(rows))
    print(f"written to {folder}: study.json, study.md, study.png")


def read_cases(argv, flags):
    """{case: config as a dict}; raises UsageError for a case that is there twice."""
    kind = "adapters" if flags["adapters"] else "variants"
    names = [name for name in flags[kind].split(",") if name]
    if len(set(names)) != len(names) or not names:
        raise UsageError(f"--{kind} must name different cases, got {flags[kind]!r}")
    cases = {}
    for name in names:
        changed = argv if kind == "adapters" else vary(argv, name)
        config, _ = configs.parse(changed, FLAGS)
        config = config.to_dict()
        if kind == "adapters":
            config["adapters"] = tuple(name.split("+"))
        config["evaluation"]["soup_weights"] = (1.0, 0.0)
        folder = re.sub(r"[^\w+-]+", "_", name)
        if folder in cases:
            raise UsageError(f"--{kind}: {name!r} has the same folder as another case")
        cases[folder] = config
    return cases


def vary(argv, variant):
    """The arguments with another variant of --config=FILE[:OLD] (or --config FILE)."""
    changed, follows = [], False
    for argument in argv:
        flag, equals, value = argument.partition("=")
        named = flag.lstrip("-") == "config"
        if named and equals:
            argument = f"{flag}={value.partition(':')[0]}:{variant}"
        elif follows:
            argument = f"{argument.partition(':')[0]}:{variant}"
        changed.append(argument)
        follows = named and not equals
    return changed


def train(config, folder, argv):
    """(result rows, adapter parameters per domain) of one run, trained if need be.

    argv: the command line that the config comes from.
    """
    from advadapters import trees
    from advadapters.commands import runs, workdir

    opened = runs.open_run(config, folder, configs.given(argv))
    print(f"--- {folder.name}", flush=True)
    runs.train(opened)
    adapters = runs.abstract_state(opened).variables["adapters"]
    return workdir.read_results(folder), trees.count(adapters) // len(opened.run.domains)
