"""usage: advadapters evaluate --workdir=DIR [--mixture=... --suite=... --examples=N]

Clean and robust accuracy of mixtures of a trained network's adapters, each attacked
through itself, on the test images.

  --mixture=clean=0.9,linf=0.1   weights by domain; several separated by ";"
                                 (default: the soups that the config lists)
  --suite=pgd20_linf             suites of the config, separated by "," (default: all)
  --examples=1000                only so many test images, a fixed random draw
  --step=4000                    a checkpoint's step, "best" or "latest" (default)

Prints a table and writes the rows to DIR/evaluation.json.
"""

import json

from advadapters import config as configs
from advadapters import soups
from advadapters.errors import UsageError, pick

FLAGS = {"workdir": None, "mixture": "", "suite": "", "examples": "", "step": "latest"}


def main(argv):
    """Returns the exit code."""
    _, flags = configs.parse(argv, FLAGS, with_config=False)
    from advadapters.commands import runs, workdir
    from advadapters.evaluation import tables

    opened = runs.open_run(workdir.read_config(flags["workdir"]), flags["workdir"])
    run = opened.run
    mixtures = read_mixtures(flags["mixture"], run.domains)
    names = flags["suite"].split(",") if flags["suite"] else run.evaluation.suites
    suites = {name: pick(run.evaluation.suites, name, "suite") for name in names}
    test = runs.sample(run.data.test, read_number("examples", flags["examples"]))
    variables, step = runs.restore_variables(opened, flags["step"])
    rows = runs.evaluate(opened, variables, test, step, mixtures, suites)
    file = opened.folder / "evaluation.json"
    workdir.write_text(file, json.dumps(rows, indent=1) + "\n")
    print(tables.markdown(rows))
    print(f"written to {file}")
    return 0


def read_mixtures(text, domains):
    """ "a=1;a=0.5,b=0.5" -> mixtures, or None for none given."""
    try:
        return [soups.parse(part, domains) for part in text.split(";") if part] or None
    except ValueError as error:
        raise UsageError(f"--mixture: {error}") from None


def read_number(name, text):
    """A positive whole number, or None for none given."""
    if text and not (text.isdecimal() and int(text)):
        raise UsageError(f"--{name} must be a positive whole number, got {text!r}")
    return int(text) if text else None
