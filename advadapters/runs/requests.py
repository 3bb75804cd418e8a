"""What `evaluate` does: all that is asked of a run's networks, and the files of it."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from advadapters import flags
from advadapters.errors import UsageError, pick
from advadapters.flags import Separated, Shown
from advadapters.schema import Between, OneOf

RESERVED = ("config", "results", "adapters", "lineage", "study", "selection", "transfer")
SuiteText = Annotated[
    str,
    Shown("pgd20_linf"),
    'suites of the config, separated by "," (default: all), or autoattack, '
    "autoattack-plus, autoattack-fast (at a fifth of the cost), autoattack-fast+standard "
    "(and the rest for what that leaves), or AutoAttack's parts that are named: "
    "autoattack:apgd-ce,square; or corruptions, the 15 common corruptions made on the fly, "
    "or corruptions:fog,snow,speckle_noise for some",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(flags.Choice):
    """The flags of `evaluate`: which networks of which run are asked what."""

    workdir: flags.Workdir
    statistics: flags.Statistics = None
    suite: SuiteText = ""
    severity: Annotated[
        tuple[int, ...],
        OneOf(("1", "2", "3", "4", "5")),
        Shown("1,3,5"),
        "of the corruptions (default: 1 to 5)",
    ] = ()
    data: Annotated[
        tuple[str, ...],
        Separated(),
        Shown("imagenet_a,folder:DIR"),
        "other test sets instead, by these names (imagenet imagenet_real imagenet_v2 "
        "imagenet_a imagenet_r imagenet_sketch conflict_stimuli), TFDS names like "
        "cifar10_corrupted/fog_3, or sources as in config.data: folder:DIR, tar:DIR, "
        "npz:FILE, idx:DIR; classes are found by their names, some may be missing",
    ] = ()
    data_dir: Annotated[str, Shown("DIR"), "where TFDS has them (default: its own)"] = ""
    combine: Annotated[
        str,
        OneOf(("mean", "max", "sum")),
        Shown("mean"),
        "probabilities of the ImageNet classes that make one of conflict_stimuli's "
        "sixteen: mean, max or sum",
    ] = "mean"
    norm: Annotated[
        tuple[str, ...],
        Shown("linf"),
        "norms of AutoAttack's threat models (default: linf)",
    ] = ()
    eps: Annotated[
        tuple[float, ...],
        Shown("8/255", "a number or a fraction like 8/255"),
        "the radius of each; --norm=linf,l2 --eps=8/255,0.5 are two threat models and "
        "their union",
    ] = ()
    steps: Annotated[
        int | None,
        Between(low=1),
        Shown("100"),
        "of AutoAttack's parts that take them, as the next three (default of all: those "
        "of the version)",
    ] = None
    restarts: Annotated[int | None, Between(low=1), Shown("1"), "of each image"] = None
    targets: Annotated[
        int | None, Between(low=1), Shown("9"), "other classes that are attacked one by one"
    ] = None
    queries: Annotated[
        int | None,
        Between(low=1),
        Shown("5000"),
        "of the network, for each image",
    ] = None
    seed: Annotated[
        int | None,
        Between(low=0),
        Shown("0"),
        "of AutoAttack's random draws (default: the run's)",
    ] = None
    save_images: Annotated[
        str,
        Shown("FILE.npz"),
        "a file for the images that AutoAttack makes of one network",
    ] = ""
    bits: Annotated[
        str,
        OneOf(("float", "8")),
        Shown("8"),
        "how they are kept there: as float32, or rounded to 8 bits in the ball",
    ] = "float"
    images: Annotated[
        str,
        Shown("FILE.npz"),
        "counts the images of such a file on the networks instead",
    ] = ""
    examples: flags.Examples = None
    names: Annotated[
        str,
        Shown("FILE"),
        "only the test images whose files are named there, a line each, such as "
        "RobustBench's five thousand of ImageNet",
    ] = ""
    signs: Annotated[
        int | None,
        Between(low=1),
        Shown("64"),
        "compares the signs of gradients in training's precision with evaluation's on so "
        "many test images (64 where the two precisions differ, else none)",
    ] = None
    step: flags.Step = "latest"
    adapters: Annotated[
        str,
        Shown("FILE"),
        "an adapters.npz of another run with the same frozen backbone, instead of this "
        "run's own adapters",
    ] = ""
    name: Annotated[str, Shown("evaluation"), "of the files that are written"] = (
        "evaluation"
    )
    overrides: flags.Overrides = ()


def evaluate(request: Request) -> None:
    """Asks a run's networks what is requested, prints a table and writes the files."""
    check(request)
    # Imported here, since the help and bad flags need none of it.
    from advadapters.evaluation import shifts, tables
    from advadapters.runs import cascades, evaluating, opening

    cascade = cascades.read(request)
    corruptions = read_corruptions(request.suite, request.severity)

    opened = opening.open_trained(
        request.workdir,
        request.overrides,
        images=bool(request.statistics) or not request.data,
    )
    run = opened.run
    cases = run.method.read_cases(request, run.evaluation.cases)
    test = evaluating.test_images(run, request.examples, request.names)
    suites = {} if corruptions or cascade else read_suites(run, request.suite)
    adapters = os.path.expanduser(request.adapters)
    variables, step = opening.restore_variables(opened, request.step, adapters)
    cases = evaluating.settle_statistics(opened, variables, cases, request.statistics)
    asked = (opened, variables, test, cases)
    attacked = cascade or (suites and not request.data and not request.images)
    compared = evaluating.signs(*asked, request.signs) if attacked else ()
    results = {}
    if cascade:
        rows, results = cascades.run(
            *asked, step, cascade, journal=journal_end(request), compared=compared
        )
    elif request.images:
        rows = cascades.count(opened, variables, cases, request.images, step)
    else:
        if corruptions:
            results = evaluating.corrupted(*asked, *corruptions)
        elif request.data:
            results = evaluating.shifted(
                opened,
                variables,
                cases,
                request.data,
                data_dir=request.data_dir,
                combine=request.combine,
                examples=request.examples,
            )
        else:
            results = evaluating.evaluate(*asked, suites)
        about = shifts.about(*corruptions) if corruptions else {}
        rows = evaluating.rows(opened, variables, cases, results, step, compared, about)
    if adapters:
        rows = [row.with_more(adapters=os.path.abspath(adapters)) for row in rows]
        print(f"with the adapters of {adapters}")
    print(shifts.markdown(rows) if corruptions else tables.markdown(rows))
    write(opened, request, rows, None if request.images else (cases, results))


def write(
    opened: Any,
    request: Request,
    rows: Sequence[Any],
    tables: tuple[Sequence[Any], Mapping[str, Any]] | None,
) -> None:
    """Writes NAME.json and, before it, NAME.npz; tables: (cases, {suite: Table})."""
    from advadapters.evaluation.rows import dump
    from advadapters.runs import evaluating, workdir

    if tables:
        cases, results = tables
        file = opened.folder / f"{request.name}.npz"
        settings = evaluating.settings_of(opened, results)
        command = flags.command("evaluate", request)
        workdir.write_tables(file, cases, results, command, settings)
    file = opened.folder / f"{request.name}.json"
    workdir.write_text(file, dump(rows))
    print(f"written to {file}")


def check(request: Request) -> None:
    """Raises UsageError for flags that do not go together."""
    if request.images and (request.data or request.suite or request.examples):
        raise UsageError("--images counts a file's images: leave out other sets and suites")
    if request.names and (request.data or request.images or request.examples):
        raise UsageError(
            "--names chooses among the run's test images: leave out --data, --images and "
            "--examples"
        )
    if request.data and request.suite:
        raise UsageError(
            "--data goes without --suite: images of other sets are as they are"
        )
    if request.signs and (request.data or request.suite.startswith("corruptions")):
        raise UsageError(
            "--signs is about attacks: leave it out with --data and corruptions"
        )
    name = request.name
    if not name.replace("-", "").isidentifier() or name in RESERVED:
        raise UsageError(
            f"--name must be letters, digits, - and _, and none of {', '.join(RESERVED)}, "
            f"got {name!r}"
        )


def read_suites(run: Any, text: str) -> dict[str, Any]:
    """{name: attack} of the config's suites that are asked for, all for none."""
    from advadapters.runs import cascades

    known = run.evaluation.suites | dict.fromkeys([*cascades.VERSIONS, "corruptions"])
    names = text.split(",") if text else run.evaluation.suites
    return {name: pick(known, name, "suite") for name in names}


def read_corruptions(
    suite: str, severity: Sequence[int]
) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """(names, severities) of --suite=corruptions[:NAME,...], or None for other suites."""
    kind, _, text = suite.partition(":")
    if kind != "corruptions":
        if "corruptions" in suite:
            raise UsageError("--suite: corruptions run alone, without other suites")
        if severity:
            raise UsageError("--severity is for --suite=corruptions")
        return None
    from advadapters.data import corruptions

    names = text.split(",") if text else corruptions.COMMON
    for name in names:
        pick(corruptions.CORRUPTIONS, name, "corruption")
    severities = severity or corruptions.SEVERITIES
    return tuple(dict.fromkeys(names)), tuple(dict.fromkeys(severities))


def journal_end(request: Request) -> str:
    """What the name of AutoAttack's record ends with where the networks are not the run's
    own, or the images are chosen.
    """
    parts = [
        ("adapters-", request.adapters and digest(request.adapters)),
        ("statistics", request.statistics),
        ("names-", request.names and digest(request.names)),
    ]
    return "".join(f"-{part}{value}" for part, value in parts if value)


def digest(path: str) -> str:
    """Eight letters for the content of a file."""
    with open(os.path.expanduser(path), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:8]
