"""What `evaluate` does: all that is asked of a run's networks, and the files of it."""

import hashlib
import json
import os
import shlex

from advadapters import configs
from advadapters.commands import cascades
from advadapters.errors import UsageError, pick

FLAGS = {
    "workdir": None,
    "mixture": "",
    "grid": "",
    "extrapolation": "0.0",
    "ensemble": "",
    "statistics": "",
    "lambda": "",
    "width": "",
    "suite": "",
    "severity": "",
    "data": "",
    "data_dir": "",
    "combine": "mean",
    "norm": "",
    "eps": "",
    "steps": "",
    "restarts": "",
    "targets": "",
    "queries": "",
    "seed": "",
    "save_images": "",
    "bits": "float",
    "images": "",
    "examples": "",
    "names": "",
    "signs": "",
    "step": "latest",
    "adapters": "",
    "name": "evaluation",
}
RESERVED = ("config", "results", "adapters", "lineage", "study", "selection", "transfer")
COMBINE = ("mean", "max", "sum")


def run(argv):
    """Evaluates as a command line of `evaluate` says."""
    rest, overrides = configs.split(argv)
    _, flags = configs.parse(rest, FLAGS, with_config=False)
    evaluate(flags, overrides, command_of(argv))


def evaluate(values, overrides=(), command=""):
    """What the verb `evaluate` does for {flag: text}, with defaults for those left out.

    overrides: --config.KEY=VALUE arguments. command: that is kept beside the results, the
    one that the values make if "".
    """
    flags = FLAGS | values
    command = command or command_of([f"--{flag}={text}" for flag, text in values.items()])
    check_flags(flags)
    cascade = cascades.read(flags)
    corrupted = read_corruptions(flags["suite"], flags["severity"])
    others = [name for name in flags["data"].split(",") if name]
    from advadapters.commands import evaluating, runs
    from advadapters.data import sources
    from advadapters.evaluation import shifts, tables

    images, signs = (
        configs.read_number(key, flags[key]) for key in ("statistics", "signs")
    )
    opened = runs.open_trained(
        flags["workdir"], overrides, images=bool(images) or not others
    )
    run = opened.run
    cases = run.method.read_cases(flags, run.evaluation.cases)
    examples = configs.read_number("examples", flags["examples"])
    test = sources.few(run.data.test, examples)
    if flags["names"]:
        test = evaluating.named(run.data.test, flags["names"])
    suites = {} if corrupted or cascade else read_suites(run, flags["suite"])
    adapters = os.path.expanduser(flags["adapters"])
    variables, step = runs.restore_variables(opened, flags["step"], adapters)
    cases = evaluating.settle_statistics(opened, variables, cases, images)
    given = (opened, variables, test, cases)
    attacked = cascade or (suites and not others and not flags["images"])
    compared = evaluating.signs(*given, signs) if attacked else ()
    found = {}
    if cascade:
        journal = f"-adapters-{digest(adapters)}" if adapters else ""
        journal += f"-statistics{images}" if images else ""
        journal += f"-names-{digest(flags['names'])}" if flags["names"] else ""
        rows, found = cascades.run(
            *given, step, cascade, journal=journal, compared=compared
        )
    elif flags["images"]:
        rows = cascades.count(opened, variables, cases, flags["images"], step)
    else:
        if corrupted:
            found = evaluating.corrupted(*given, *corrupted)
        elif others:
            where = {key: flags[key] for key in ("data_dir", "combine")}
            found = evaluating.shifted(
                opened, variables, cases, others, examples=examples, **where
            )
        else:
            found = evaluating.evaluate(*given, suites)
        about = shifts.about(*corrupted) if corrupted else {}
        rows = evaluating.rows(opened, variables, cases, found, step, compared, about)
    if adapters:
        rows = [row | {"adapters": os.path.abspath(adapters)} for row in rows]
        print(f"with the adapters of {adapters}")
    print(shifts.markdown(rows) if corrupted else tables.markdown(rows))
    kept = None if flags["images"] else (cases, found)
    write(opened, flags["name"], command, rows, kept)


def write(opened, name, command, rows, tables):
    """NAME.json and, before it, NAME.npz; tables: (cases, {suite: Table}), or None."""
    from advadapters.commands import evaluating, workdir

    if tables:
        cases, found = tables
        file = opened.folder / f"{name}.npz"
        settings = evaluating.settings_of(opened, found)
        workdir.write_tables(file, cases, found, command, settings)
    file = opened.folder / f"{name}.json"
    workdir.write_text(file, json.dumps(rows, indent=1) + "\n")
    print(f"written to {file}")


def check_flags(flags):
    """Raises UsageError for flags that do not go together."""
    if flags["images"] and (flags["data"] or flags["suite"] or flags["examples"]):
        raise UsageError("--images counts a file's images: leave out other sets and suites")
    if flags["names"] and (flags["data"] or flags["images"] or flags["examples"]):
        raise UsageError(
            "--names chooses among the run's test images: leave out --data, --images and "
            "--examples"
        )
    if flags["data"] and flags["suite"]:
        raise UsageError(
            "--data goes without --suite: images of other sets are as they are"
        )
    if flags["signs"] and (flags["data"] or flags["suite"].startswith("corruptions")):
        raise UsageError(
            "--signs is about attacks: leave it out with --data and corruptions"
        )
    pick({name: name for name in COMBINE}, flags["combine"], "--combine")
    if not flags["name"].replace("-", "").isidentifier() or flags["name"] in RESERVED:
        raise UsageError(
            f"--name must be letters, digits, - and _, and none of {', '.join(RESERVED)}, "
            f"got {flags['name']!r}"
        )


def read_suites(run, text):
    """{name: attack} of the config's suites that are asked for, all for none."""
    known = run.evaluation.suites | dict.fromkeys([*cascades.VERSIONS, "corruptions"])
    names = text.split(",") if text else run.evaluation.suites
    return {name: pick(known, name, "suite") for name in names}


def command_of(argv):
    """The command line that says the same again."""
    return shlex.join(["advadapters", "evaluate", *argv])


def read_corruptions(suite, severity):
    """(names, severities) of --suite=corruptions[:NAME,...], or None for other suites."""
    kind, _, names = suite.partition(":")
    if kind != "corruptions":
        if "corruptions" in suite:
            raise UsageError("--suite: corruptions run alone, without other suites")
        if severity:
            raise UsageError("--severity is for --suite=corruptions")
        return None
    from advadapters.data import corruptions

    names = names.split(",") if names else corruptions.COMMON
    for name in names:
        pick(corruptions.CORRUPTIONS, name, "corruption")
    severities = severity.split(",") if severity else map(str, corruptions.SEVERITIES)
    known = {str(s): s for s in corruptions.SEVERITIES}
    severities = [pick(known, text, "--severity") for text in severities]
    return tuple(dict.fromkeys(names)), tuple(dict.fromkeys(severities))


def digest(path):
    """Eight letters for the content of a file."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:8]
