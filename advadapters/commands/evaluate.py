"""usage: advadapters evaluate --workdir=DIR [--mixture=... --suite=... --examples=N]

Clean and robust accuracy of mixtures of a trained network's adapters, each attacked
through itself, on the test images.

  --mixture=clean=0.9,linf=0.1   weights by domain that sum to 1, or fractions like 1/3;
                                 several separated by ";"
                                 (default: the soups that the config lists)
  --grid=0.2                     all soups with weights in such steps instead
  --extrapolation=0.2            how far below 0 the grid's weights may go
  --ensemble=clean=0.5,linf=0.5  these as well: their probabilities mixed, not their
                                 weights, at a forward pass for each domain
  --statistics=1000              batch statistics of each soup estimated anew on so many
                                 training images (default: the mixed ones)
  --lambda=0,0.3 --width=0.5     of a network conditioned on lambda (default: those that
                                 it was trained with)
  --suite=pgd20_linf             suites of the config, separated by "," (default: all),
                                 or autoattack, autoattack-plus, autoattack-fast (at a
                                 fifth of the cost), autoattack-fast+standard (and the
                                 rest for what that leaves), or AutoAttack's parts that
                                 are named: autoattack:apgd-ce,square
  --suite=corruptions            the 15 common corruptions instead, made on the fly, or
                                 corruptions:fog,snow,speckle_noise for some
  --severity=1,3,5               of the corruptions (default: 1 to 5)
  --data=imagenet_a,folder:DIR   other test sets instead, by these names (imagenet
                                 imagenet_real imagenet_v2 imagenet_a imagenet_r
                                 imagenet_sketch conflict_stimuli), TFDS names like
                                 cifar10_corrupted/fog_3, or sources as in config.data:
                                 folder:DIR, tar:DIR, npz:FILE, idx:DIR; classes are
                                 found by their names, some may be missing
  --data_dir=DIR                 where TFDS has them (default: its own)
  --combine=mean                 probabilities of the ImageNet classes that make one of
                                 conflict_stimuli's sixteen: mean, max or sum
  --norm=linf --eps=8/255        AutoAttack's threat model (linf, if no norm is given), or
                                 several and their union: --norm=linf,l2 --eps=8/255,0.5
  --steps=100 --restarts=1       of AutoAttack's parts that take them, as are
  --targets=9 --queries=5000     these (default: those of the version)
  --seed=0                       of AutoAttack's random draws (default: the run's)
  --save_images=FILE.npz         AutoAttack's images of one network, float32, or rounded to
  --bits=8                       8 bits so that they stay in the ball
  --images=FILE.npz              counts the images of such a file on the networks instead
  --examples=1000                only so many test images, a fixed random draw
  --names=FILE                   only the test images whose files are named there, a line
                                 each, such as RobustBench's five thousand of ImageNet
  --signs=64                     compares the signs of gradients in training's precision
                                 with evaluation's on so many test images (64 where
                                 the two precisions differ, else none)
  --step=4000                    a checkpoint's step, "best" or "latest" (default)
  --config.KEY=VALUE             of keys that may still change, see `train`
  --adapters=FILE                an adapters.npz of another run with the same frozen
                                 backbone, instead of this run's own adapters
  --name=evaluation              of the files that are written

Prints a table; writes the rows to DIR/NAME.json and what each network says of each image
to DIR/NAME.npz, for `select` and `report`. Under several attacks, "union" is
the robustness to all of them. AutoAttack records every batch under DIR/autoattack, and goes
on from there when it is started again; of its images only who is right is kept.
"""

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


def main(argv):
    """Returns the exit code."""
    rest, overrides = configs.split(argv)
    _, flags = configs.parse(rest, FLAGS, with_config=False)
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
    write(opened, flags["name"], command_of(argv), rows, kept)
    return 0


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
