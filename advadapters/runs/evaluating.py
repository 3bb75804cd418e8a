"""Evaluation of a run's networks: suites, corruptions, other sets, and their rows."""

import functools
import itertools
import os

import jax
import numpy as np

from advadapters import builders
from advadapters.attacks import checks, masking
from advadapters.data import shifts as other_data
from advadapters.data import splits
from advadapters.data.splits import Subset
from advadapters.errors import UsageError
from advadapters.evaluation import accuracy, shifts, statistics, tables
from advadapters.networks import ENSEMBLE
from advadapters.runs import workdir
from advadapters.runs.asking import Question, ask, predictor_of


def validation(opened, variables):
    """(score, metrics): accuracy of the method's checks on held-out images.

    The score is the mean with the checks' weights; the best checkpoint has the highest.
    """
    run, metrics, score = opened.run, {}, 0.0
    checks, questions = run.method.checks(), {}
    for check in checks:
        attacks_ = (*(check.attacks or (None,)), *([check.alarm] if check.alarm else ()))
        for number, attack in enumerate(attacks_):
            predictor = functools.partial(predictor_of, opened, attack)
            questions[check.name, number] = Question([check.case], predictor)
    found = ask(opened, variables, run.data.validation, questions, quiet=True)
    for check in checks:
        right = []
        for (name, _), table in found.items():
            if name == check.name:
                warn_of_strange(table, [check.case], "validation")
                right.append(float(table.right.mean()))
        many = right.pop() if check.alarm else None
        worst = metrics[f"validation/{check.name}"] = min(right)
        score += check.weight * worst
        if check.alarm:
            metrics[f"validation/{check.name}/alarm"] = many
            warn_of_overfitting(check.name, worst, many)
    return score / sum(check.weight for check in checks), metrics


def warn_of_strange(table, cases, suite):
    """Says which accuracies of a Table hold logits or images that are not finite."""
    names = [tables.name_of(case.told) for case in cases]
    for line in accuracy.strange(table, names, suite):
        print(line, flush=True)


def warn_of_overfitting(name, single, many):
    """Says so where an attack of more steps breaks most of what the view's own does not.

    Catastrophic overfitting (Wong et al. 2020): single-step training that has learnt to
    defeat its own attack only. That is when less than half of the accuracy is left.
    """
    if many < 0.5 * single:
        print(
            f"warning: catastrophic overfitting of view {name}: accuracy "
            f"{100 * single:.1f}% under its own attack, {100 * many:.1f}% under its alarm",
            flush=True,
        )


def evaluate(opened, variables, split, cases, suites):
    """{suite: Table} of every case: clean, under every attack, and under all of them.

    suites: {name: attack}. "union" is there where the attacks are several.
    """
    questions = questions_of(opened, cases, suites)
    found = ask(opened, variables, split, questions)
    if len(suites) > 1:
        found["union"] = accuracy.union([found[name] for name in suites])
    return found


def questions_of(opened, cases, suites):
    """{suite: Question}: every case on clean images and under every attack {name: it}."""
    return {
        name: Question(cases, functools.partial(predictor_of, opened, attack))
        for name, attack in ({"clean": None} | suites).items()
    }


def corrupted(opened, variables, split, cases, names, severities):
    """{suite: Table} of every case: clean, and under each corruption and severity.

    Batches are corrupted on the devices, once for all cases, and then counted as clean
    ones are: an image counts if the network is right after the corruption.
    """
    questions = questions_of(opened, cases, {})
    for name, severity in itertools.product(names, severities):
        move = shifts.make_corrupt(name, severity, mesh=opened.mesh)
        suite = shifts.suite_of(name, severity)
        questions[suite] = questions["clean"]._replace(move=move)
    return ask(opened, variables, split, questions)


def shifted(opened, variables, cases, names, *, data_dir, combine, examples):
    """{suite: Table} of every case on other test sets, see `data.shifts`.

    A set whose labels are several answers has a table for each, "NAME/READING".
    """
    run, found = opened.run, {}
    classes = opened.config["model"]["classes"]
    known = (workdir.read_data(opened.folder) or {"classes": ()})["classes"]
    channels, skip = run.data.channels, opened.config["data"]["skip_corrupt"]
    loaded = {}
    for name in names:  # all of them before the first is evaluated
        shift = other_data.load(name, data_dir, channels, skip)
        fitted = other_data.fit(shift, f"--data={name}", known, classes, channels)
        loaded[name], line = fitted
        for told in filter(None, (*shift.notes, line)):
            print(told)
    for name, shift in loaded.items():

        def predictor(network, name=name, shift=shift):
            key = (name, network)
            if key not in opened.made:
                opened.made[key] = accuracy.make_predictor(
                    run.networks[network],
                    None,
                    mesh=opened.mesh,
                    groups=shift.groups,
                    combine=combine,
                )
            return opened.made[key]

        split = splits.few(shift.split, examples)
        questions = {name: Question(cases, predictor)}
        (table,) = ask(opened, variables, split, questions).values()
        for number, reading in enumerate(shift.readings):
            labels = table.labels[:, number]
            found[f"{name}/{reading}"] = table._replace(labels=labels)
        if not shift.readings:
            found[name] = table
    return found


def signs(opened, variables, split, cases, count=None):
    """[{"sign_agreement": share}] of the cases, see `masking.sign_agreement`.

    On the first `count` images of a split; None asks for checks.SAMPLE where training has
    another precision than evaluation. {} for a network that is not looked at.
    """
    run, found, batch = opened.run, [], None
    for case in cases:
        network = run.networks[case.network]
        found.append({})
        if count or network.coarse:
            batch = batch or first_images(run, split, count or checks.SAMPLE)
            plain = network.at(variables, case.knob)
            trained, exact = (
                jax.tree_util.Partial(f, plain) for f in (network.apply, network.evaluate)
            )
            share = masking.sign_agreement(trained, exact, *batch)
            found[-1] = {"sign_agreement": share}
    shares = [one["sign_agreement"] for one in found if one]
    if shares:
        least = f"at least {100 * min(shares):.1f}%"
        print(f"signs of gradients in training's precision that are evaluation's: {least}")
    return found


def first_images(run, split, count):
    """(images in [0, 1], labels) of at most so many of the split's first examples."""
    few = Subset(split, np.arange(min(count, len(split))))
    batches = builders.eval_batches(run, few, whole=True)
    kept = [(b["images"][b["mask"]], b["labels"][b["mask"]]) for b in batches]
    images, labels = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    return images.astype(np.float32) / np.float32(255), labels


def rows(opened, variables, cases, found, step, compared=(), about=None, attacked=None):
    """Result rows of {suite: Table}; what is summed up of several follows them.

    compared: what `signs` found, for the rows of attacks. about: {suite: further fields of
    its rows}. attacked: names of the suites that are attacks, None for the config's.
    """
    compared = compared or [{}] * len(cases)
    costs = costs_of(opened, variables, cases)
    seed, settings = {"seed": opened.run.seed}, settings_of(opened, found)
    told = [case.told | seed | cost for case, cost in zip(cases, costs, strict=True)]
    attacked = {*(attacked or opened.run.evaluation.suites), "union"}
    listed = []
    for suite, table in found.items():
        warn_of_strange(table, cases, suite)
        fields = {"settings": settings[suite]} if suite in settings else {}
        fields |= (about or {}).get(suite, {})
        counts = (table.right.sum(axis=1), table.not_finite, table.not_attacked)
        for one, signs_, right, *odd in zip(told, compared, *counts, strict=True):
            row = accuracy.row(one, suite, int(right), len(table.index), step, *odd)
            natural = signs_ if suite in attacked else {"metric": "accuracy"}
            listed.append(row | natural | fields)
    cues = [f"conflict_stimuli/{cue}" for cue in ("shape", "texture")]
    if found.keys() >= {*cues}:
        shape, texture = (found[cue] for cue in cues)
        listed += shifts.shape_bias_rows(told, shape, texture, step)
    classes = opened.config["model"]["classes"]
    imagenet = classes == 1000 and opened.run.data.image_size == 224
    return listed + shifts.summary(listed, imagenet)


def settings_of(opened, found):
    """{suite: settings of its attack} of those that are suites of the config."""
    suites = opened.config["evaluation"]["suites"]
    return {suite: suites[suite] for suite in found if suite in suites}


def costs_of(opened, variables, cases):
    """[{"flops": of one image's forward pass}] where the run has several networks."""
    widths = opened.run.networks.keys() - {ENSEMBLE}
    if len(widths | {case.network for case in cases}) == 1:
        return [{}] * len(cases)
    return [{"flops": flops_of(opened, variables, case)} for case in cases]


def flops_of(opened, variables, case):
    """The FLOPs of one image's forward pass, as the compiler counts them."""
    run, made = opened.run, opened.made
    if ("flops", case.network) in made:
        return made["flops", case.network]
    network, data = run.networks[case.network], run.data
    plain = jax.eval_shape(network.at, variables, case.knob)
    shape = (1, data.image_size, data.image_size, data.channels)
    images = jax.ShapeDtypeStruct(shape, np.float32)
    lowered = jax.jit(network.evaluate).lower(plain, images)
    made["flops", case.network] = (lowered.cost_analysis() or {})["flops"]
    return made["flops", case.network]


def settle_statistics(opened, variables, cases, images=None):
    """The cases with batch statistics estimated anew on about so many training images.

    Whole batches of the evaluation's size, as many as are in `images`, at least one; what
    they are told of says on how many. For None the cases as they are, and a warning where
    soups among them mix running statistics. Raises UsageError where the network has no
    batch statistics.
    """
    run = opened.run
    if not images:
        for warning in warnings_of_statistics(variables, cases):
            print(warning, flush=True)
        return cases
    if not has_statistics(variables):
        raise UsageError("--statistics is for networks with batch norm: leave it out")
    if any(case.network == ENSEMBLE for case in cases):
        raise UsageError("--statistics and --ensemble go each alone")
    batches = max(1, images // run.evaluation.batch_size)
    count = batches * run.evaluation.batch_size
    split, mesh = splits.few(run.data.train, count), opened.mesh
    make = functools.cache(lambda name: statistics.make_estimate(run.networks[name], mesh))
    asked = [(make(case.network), case.knob) for case in cases]
    found = statistics.means(asked, variables, builders.eval_batches(run, split), mesh)
    return [
        case._replace(
            told=case.told | {"statistics": len(split)},
            knob=case.knob._replace(stats=stats),
        )
        for case, stats in zip(cases, found, strict=True)
    ]


def has_statistics(variables):
    """Whether there are running statistics of batch norm."""
    stats = variables["stats"]
    return bool(jax.tree.leaves([stats["shared"], stats["adapters"]]))


def warnings_of_statistics(variables, cases):
    """[a line about the soups among the cases that mix running statistics], or []."""
    soups = [case for case in cases if case.told["kind"] == "soup"]
    if not soups or not has_statistics(variables):
        return []
    more = f" and {len(soups) - 1} more soups" if soups[1:] else ""
    return [
        f"warning: {tables.name_of(soups[0].told)}{more}: running statistics of batch norm "
        "are mixed like weights, which may cost most of the accuracy; --statistics=1000 of "
        "evaluate, transfer and extract estimates them anew on so many training images"
    ]


def test_images(run, examples=None, names=""):
    """The test images of a run: only so many of them, or those that a file names."""
    if names:
        return named(run.data.test, names)
    return splits.few(run.data.test, examples)


def named(split, path):
    """The examples of a split whose files are named in a text file, a line each.

    A line is the end of a path, such as n01440764/ILSVRC2012_val_00000293.JPEG. Raises
    UsageError for a line that fits no file or several, and for images that are no files.
    """
    try:
        with open(os.path.expanduser(path)) as file:
            lines = dict.fromkeys(line.strip() for line in file if line.strip())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read --names={path}: {error}") from None
    name_of = getattr(getattr(split, "reader", None), "file", None)
    if name_of is None:
        raise UsageError(
            "--names is for images that are files: config.data.source=folder:DIR or tar:DIR"
        )
    places = {}
    for number in range(len(split)):
        name = "/" + name_of(number)
        places.setdefault(name.rpartition("/")[2], []).append((number, name))
    chosen = []
    for line in lines:
        near = places.get(line.rpartition("/")[2], [])
        found = [number for number, name in near if name.endswith("/" + line)] or [
            number for number, _ in near
        ]
        if len(found) != 1:
            many = f"{len(found)} test images have" if found else "no test image has"
            raise UsageError(f"--names={path}: {many} the name {line!r}")
        chosen += found
    if not chosen:
        raise UsageError(f"--names={path} names no image")
    return Subset(split, np.array(sorted(chosen)))
