"""Evaluation of a run's networks: suites, corruptions, other sets, and their rows."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from advadapters import builders
from advadapters.attacks import checks, masking
from advadapters.data import shifts as other_data
from advadapters.data import splits
from advadapters.data.splits import Subset
from advadapters.errors import UsageError
from advadapters.evaluation import accuracy, shifts, statistics
from advadapters.evaluation.accuracy import Table
from advadapters.evaluation.rows import Row
from advadapters.networks import ENSEMBLE, Case
from advadapters.runs import workdir
from advadapters.runs.asking import Question, ask, predictor_of
from advadapters.runs.context import OpenRun
from advadapters.shapes import Float, Int

Tables = dict[str, Table]  # by suite


def validation(opened: OpenRun, variables: Any) -> tuple[float, dict[str, float]]:
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
    answers = ask(opened, variables, run.data.validation, questions, quiet=True)
    for check in checks:
        right = []
        for (name, _), table in answers.items():
            if name == check.name:
                warn_of_strange(table, [check.case], "validation")
                right.append(float(table.right.mean()))
        alarm = right.pop() if check.alarm else None
        worst = metrics[f"validation/{check.name}"] = min(right)
        score += check.weight * worst
        if alarm is not None:
            metrics[f"validation/{check.name}/alarm"] = alarm
            warn_of_overfitting(check.name, worst, alarm)
    return score / sum(check.weight for check in checks), metrics


def warn_of_strange(table: Table, cases: Sequence[Case], suite: str) -> None:
    """Says which accuracies of a Table hold logits or images that are not finite."""
    names = [str(case.identity) for case in cases]
    for line in accuracy.strange(table, names, suite):
        print(line, flush=True)


def warn_of_overfitting(name: str, single: float, many: float) -> None:
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


def evaluate(
    opened: OpenRun,
    variables: Any,
    split: Any,
    cases: Sequence[Case],
    suites: Mapping[str, Callable],
) -> Tables:
    """{suite: Table} of every case: clean, under every attack, and under all of them.

    suites: {name: attack}. "union" is there where the attacks are several.
    """
    questions = questions_of(opened, cases, suites)
    answers = ask(opened, variables, split, questions)
    if len(suites) > 1:
        answers["union"] = accuracy.union([answers[name] for name in suites])
    return answers


def questions_of(
    opened: OpenRun, cases: Sequence[Case], suites: Mapping[str, Callable]
) -> dict[str, Question]:
    """{suite: Question}: every case on clean images and under every attack {name: it}."""
    return {
        name: Question(cases, functools.partial(predictor_of, opened, attack))
        for name, attack in {"clean": None, **suites}.items()
    }


def corrupted(
    opened: OpenRun,
    variables: Any,
    split: Any,
    cases: Sequence[Case],
    names: Sequence[str],
    severities: Sequence[int],
) -> Tables:
    """{suite: Table} of every case under each corruption and severity.

    Batches are corrupted on the devices, once for all cases, and then counted as clean
    ones are: an image counts if the network is right after the corruption.
    """
    clean, questions = questions_of(opened, cases, {})["clean"], {}
    for name, severity in itertools.product(names, severities):
        move = shifts.make_corrupt(name, severity, mesh=opened.mesh)
        questions[shifts.suite_of(name, severity)] = clean._replace(move=move)
    return ask(opened, variables, split, questions)


def load_set(opened: OpenRun, name: str, data_dir: str) -> other_data.Shift:
    """Another test set, its classes numbered as the run's, see `data.shifts`."""
    classes = opened.config["model"]["classes"]
    known = tuple((workdir.read_data(opened.folder) or {"classes": ()})["classes"])
    channels, skip = opened.run.data.channels, opened.config["data"]["skip_corrupt"]
    shift = other_data.load(name, data_dir, channels, skip)
    fitted, line = other_data.fit(shift, f"--data={name}", known, classes, channels)
    for note in filter(None, (*shift.notes, line)):
        print(note)
    return fitted


def shifted(
    opened: OpenRun,
    variables: Any,
    cases: Sequence[Case],
    name: str,
    shift: other_data.Shift,
    *,
    combine: str,
    examples: int | None,
) -> Tables:
    """{suite: Table} of every case on another test set.

    A set whose labels are several answers has a table for each, "NAME/READING".
    """
    predictor = functools.partial(
        accuracy.make_predictor,
        attack=None,
        mesh=opened.mesh,
        groups=shift.groups,
        combine=combine,
    )
    predictors = functools.cache(lambda network: predictor(opened.run.networks[network]))
    questions = {name: Question(cases, predictors)}
    split = splits.few(shift.split, examples)
    (table,) = ask(opened, variables, split, questions).values()
    if not shift.readings:
        return {name: table}
    return {
        f"{name}/{reading}": table._replace(labels=table.labels[:, number])
        for number, reading in enumerate(shift.readings)
    }


def signs(
    opened: OpenRun,
    variables: Any,
    split: Any,
    cases: Sequence[Case],
    count: int | None = None,
) -> list[dict[str, float]]:
    """[{"sign_agreement": share}] of the cases, see `masking.sign_agreement`.

    On the first `count` images of a split; None asks for checks.SAMPLE where training has
    another precision than evaluation. {} for a network that is not looked at.
    """
    run, agreements, batch = opened.run, [], None
    for case in cases:
        network = run.networks[case.network]
        agreements.append({})
        if count or network.coarse:
            batch = batch or first_images(run, split, count or checks.SAMPLE)
            plain = network.at(variables, case.knob)
            trained, exact = (
                jax.tree_util.Partial(f, plain) for f in (network.apply, network.evaluate)
            )
            share = masking.sign_agreement(trained, exact, *batch)
            agreements[-1] = {"sign_agreement": share}
    shares = [of_case["sign_agreement"] for of_case in agreements if of_case]
    if shares:
        least = f"at least {100 * min(shares):.1f}%"
        print(f"signs of gradients in training's precision that are evaluation's: {least}")
    return agreements


def first_images(
    run: Any, split: Any, count: int
) -> tuple[Float[np.ndarray, "B H W C"], Int[np.ndarray, " B"]]:
    """(images in [0, 1], labels) of at most so many of the split's first examples."""
    few = Subset(split, np.arange(min(count, len(split))))
    batches = builders.eval_batches(run, few, whole=True)
    kept = [(b["images"][b["mask"]], b["labels"][b["mask"]]) for b in batches]
    images, labels = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    return images.astype(np.float32) / np.float32(255), labels


def rows(
    opened: OpenRun,
    variables: Any,
    cases: Sequence[Case],
    results: Tables,
    step: int,
    compared: Sequence[dict[str, float]] = (),
    about: Mapping[str, dict[str, Any]] | None = None,
    attacked: Iterable[str] | None = None,
) -> list[Row]:
    """The rows of {suite: Table}; those that sum up corruptions are not among them.

    compared: what `signs` returned, for the rows of attacks. about: {suite: fields of its
    rows}, see `shifts.about`. attacked: names of the suites that are attacks, None for the
    config's.
    """
    compared = compared or [{}] * len(cases)
    costs, settings = costs_of(opened, variables, cases), settings_of(opened, results)
    attacked = {*(attacked or opened.run.evaluation.suites), "union"}
    all_rows = []
    for suite, table in results.items():
        warn_of_strange(table, cases, suite)
        fields = {} if suite in attacked else {"metric": "accuracy"}
        fields |= (about or {}).get(suite, {})
        more = {"seed": opened.run.seed}
        more |= {"settings": settings[suite]} if suite in settings else {}
        counts = (table.right.sum(axis=1), table.not_finite, table.not_attacked)
        for case, flops, signs_, *numbers in zip(
            cases, costs, compared, *counts, strict=True
        ):
            right, lost, kept = map(int, numbers)
            row = Row.of_counts(
                case.identity,
                suite,
                right,
                len(table.index),
                step,
                not_finite=lost,
                not_attacked=kept,
                flops=flops,
                more=more | (signs_ if suite in attacked else {}),
                **fields,
            )
            all_rows.append(row)
    cues = [f"conflict_stimuli/{cue}" for cue in ("shape", "texture")]
    if results.keys() >= {*cues}:
        shape, texture = (results[cue] for cue in cues)
        networks = [case.identity for case in cases]
        all_rows += shifts.shape_bias_rows(networks, shape, texture, step)
    return all_rows


def is_imagenet(opened: OpenRun) -> bool:
    """Whether a run's networks are of a kind that mCE is published for."""
    classes = opened.config["model"]["classes"]
    return classes == 1000 and opened.run.data.image_size == 224


def settings_of(opened: OpenRun, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{suite: settings of its attack} of those that are suites of the config."""
    suites = opened.config["evaluation"]["suites"]
    return {suite: suites[suite] for suite in names if suite in suites}


def costs_of(opened: OpenRun, variables: Any, cases: Sequence[Case]) -> list[float | None]:
    """[FLOPs of one image's forward pass], Nones where the run has only one network."""
    widths = opened.run.networks.keys() - {ENSEMBLE}
    if len(widths | {case.network for case in cases}) == 1:
        return [None] * len(cases)
    return [flops_of(opened, variables, case) for case in cases]


def flops_of(opened: OpenRun, variables: Any, case: Case) -> float:
    """The FLOPs of one image's forward pass, as the compiler counts them."""
    run, cache = opened.run, opened.cache
    if ("flops", case.network) in cache:
        return cache["flops", case.network]
    network, data = run.networks[case.network], run.data
    plain = jax.eval_shape(network.at, variables, case.knob)
    shape = (1, data.image_size, data.image_size, data.channels)
    images = jax.ShapeDtypeStruct(shape, np.float32)
    lowered = jax.jit(network.evaluate).lower(plain, images)
    cache["flops", case.network] = (lowered.cost_analysis() or {})["flops"]
    return cache["flops", case.network]


def settle_statistics(
    opened: OpenRun, variables: Any, cases: Sequence[Case], images: int | None = None
) -> list[Case]:
    """The cases with batch statistics estimated anew on about so many training images.

    Whole batches of the evaluation's size, as many as are in `images`, at least one; what
    their identities say on how many. For None the cases as they are, and a warning where
    soups among them mix running statistics. Raises UsageError where the network has no
    batch statistics.
    """
    run = opened.run
    if not images:
        for warning in warnings_of_statistics(variables, cases):
            print(warning, flush=True)
        return list(cases)
    if not has_statistics(variables):
        raise UsageError("--statistics is for networks with batch norm: leave it out")
    if any(case.network == ENSEMBLE for case in cases):
        raise UsageError("--statistics and --ensemble go each alone")
    batches = max(1, images // run.evaluation.batch_size)
    count = batches * run.evaluation.batch_size
    split, mesh = splits.few(run.data.train, count), opened.mesh
    make = functools.cache(lambda name: statistics.make_estimate(run.networks[name], mesh))
    asked = [(make(case.network), case.knob) for case in cases]
    means = statistics.means(asked, variables, builders.eval_batches(run, split), mesh)
    return [
        case._replace(
            identity=dataclasses.replace(case.identity, statistics=len(split)),
            knob=case.knob._replace(stats=stats),
        )
        for case, stats in zip(cases, means, strict=True)
    ]


def has_statistics(variables: Any) -> bool:
    """Whether there are running statistics of batch norm."""
    stats = variables["stats"]
    return bool(jax.tree.leaves([stats["shared"], stats["adapters"]]))


def warnings_of_statistics(variables: Any, cases: Sequence[Case]) -> list[str]:
    """[a line about the soups among the cases that mix running statistics], or []."""
    soups = [case for case in cases if case.identity.kind == "soup"]
    if not soups or not has_statistics(variables):
        return []
    more = f" and {len(soups) - 1} more soups" if soups[1:] else ""
    return [
        f"warning: {soups[0].identity}{more}: running statistics of batch norm "
        "are mixed like weights, which may cost most of the accuracy; --statistics=1000 of "
        "evaluate, transfer and extract estimates them anew on so many training images"
    ]
