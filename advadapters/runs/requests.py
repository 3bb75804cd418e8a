"""What `evaluate` does: all that is asked of a run's networks, and the files of it."""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Sequence
from typing import Annotated, Any, NamedTuple

from advadapters import flags
from advadapters.errors import UsageError, pick
from advadapters.flags import Separated, Shown
from advadapters.schema import Between, OneOf

# Files and folders of a run that have these names.
RESERVED = (
    "config", "results", "adapters", "lineage", "study", "selection", "transfer",
    "checkpoints", "autoattack", "profile", "data", "history", "report", "season",
)  # fmt: skip
SuiteText = Annotated[
    str,
    Shown("pgd20_linf"),
    'what is asked of the test images, separated by ",": suites of the config (default: '
    "all of them, if no --data is given), clean, autoattack, autoattack-plus, "
    "autoattack-fast (at a fifth of the cost), autoattack-fast+standard (and the rest for "
    "what that leaves), or AutoAttack's parts that are named: autoattack:apgd-ce,square; "
    "corruptions, the 15 common corruptions made on the fly, or "
    "corruptions:fog,snow,speckle_noise for some",
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
        "other test sets as well, by these names (imagenet imagenet_real imagenet_v2 "
        "imagenet_a imagenet_r imagenet_sketch conflict_stimuli), imagenet_c, or "
        "imagenet_c:DIR with DIR/fog/3/CLASS/*.JPEG and so on, for its 75 sets, TFDS names "
        "like cifar10_corrupted/fog_3, or sources as in config.data: folder:DIR, tar:DIR, "
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
    name: Annotated[str, Shown("evaluation"), "of the table that is added to"] = (
        "evaluation"
    )
    overrides: flags.Overrides = ()


class Suites(NamedTuple):
    """What --suite asks for: suites of the config, corruptions, and AutoAttack or None."""

    names: tuple[str, ...]
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    cascade: Any


def evaluate(request: Request) -> None:
    """Asks a run's networks what is requested and not there yet, and prints a table."""
    check(request)
    # Imported here, since the help and bad flags need none of it.
    from advadapters.runs import (
        concluding,
        evaluating,
        image_choice,
        opening,
        parts,
        workdir,
    )

    suites = read_suites(request)
    on_test = suites is not None
    opened = opening.open_trained(
        request.workdir, request.overrides, images=bool(request.statistics) or on_test
    )
    workdir.need_writable(opened.folder)
    run = opened.run
    cases = run.method.read_cases(request, run.evaluation.cases)
    names = suite_names(run, suites)
    test = image_choice.test_images(run, request.examples, request.names)
    adapters = os.path.expanduser(request.adapters)
    variables, step = opening.restore_variables(opened, request.step, adapters)
    cases = evaluating.settle_statistics(opened, variables, cases, request.statistics)
    common, of_test = settings_of(opened, request, step)
    asked = parts.Asked(opened, variables, test, step, common, of_test, request.signs)
    listed = parts_of(asked, request, names, suites)
    command = flags.command("evaluate", request)
    about = {"adapters": os.path.abspath(adapters)} if adapters else {}
    if adapters:
        print(f"with the adapters of {adapters}")
    parts.run(opened, listed, cases, request.name, command, about)
    networks = [case.identity for case in cases]
    entries = [entry for part in listed for entry in part.entries]
    attacks = [entry for part in listed if part.attack for entry in part.entries]
    union = concluding.add_union(opened.folder, request.name, attacks, networks, command)
    imagenet = evaluating.is_imagenet(opened)
    concluding.conclude(
        opened.folder, request.name, [*entries, *union], networks, imagenet, command
    )


def parts_of(
    asked: Any, request: Request, names: Sequence[str], suites: Suites | None
) -> list[Any]:
    """[`parts.Part`] of all that is requested."""
    from advadapters.evaluation import shifts
    from advadapters.runs import parts

    listed = []
    if request.images:
        return [parts.of_images(asked, request.images)]
    if suites is not None:
        listed.append(parts.of_suite(asked, "clean"))
        attacks = asked.opened.run.evaluation.suites
        listed += [parts.of_suite(asked, name, attacks[name]) for name in names]
        if suites.cascade:
            listed += parts.of_cascade(asked, suites.cascade, journal_end(request))
        for name in suites.corruptions:
            listed.append(parts.of_corruption(asked, name, suites.severities))
    for name in dict.fromkeys(request.data):
        for suite, source, about in shifts.parts_of_set(name):
            part = parts.of_set(
                asked,
                source,
                data_dir=request.data_dir,
                combine=request.combine,
                examples=request.examples,
                suite=suite,
                about=about,
            )
            listed.append(part)
    return listed


def settings_of(
    opened: Any, request: Request, step: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of all entries of a request, further ones of those on test images).

    What may change between two calls of one run, and changes what its networks say.
    """
    evaluation, data = (opened.config[name] for name in ("evaluation", "data"))
    common = {
        "step": step,
        "precision": evaluation["precision"],
        "dtype": evaluation["dtype"],
        "crop_ratio": data["crop_ratio"],
    }
    if request.adapters:
        common["adapters"] = digest(request.adapters)
    of_test: dict[str, Any] = {key: data[key] for key in ("test_split", "test_images")}
    if request.examples:
        of_test["examples"] = request.examples
    if request.names:
        of_test["names"] = digest(request.names)
    if data["skip_corrupt"]:
        common["skip_corrupt"] = True
    return common, of_test


def check(request: Request) -> None:
    """Raises UsageError for flags that do not go together."""
    if request.images and (request.data or request.suite or request.examples):
        raise UsageError("--images counts a file's images: leave out other sets and suites")
    if request.names and (request.data or request.images or request.examples):
        raise UsageError(
            "--names chooses among the run's test images: leave out --data, --images and "
            "--examples"
        )
    items = read_items(request.suite)
    attacks = items.keys() - {"corruptions", "clean"} or not (items or request.data)
    if request.signs and not attacks:
        raise UsageError(
            "--signs is about attacks: leave it out where only corruptions and other sets "
            "are asked for"
        )
    if request.severity and "corruptions" not in items:
        raise UsageError("--severity is for --suite=corruptions")
    name = request.name
    if not name.replace("-", "").isidentifier() or name in RESERVED:
        raise UsageError(
            f"--name must be letters, digits, - and _, and none of {', '.join(RESERVED)}, "
            f"got {name!r}"
        )


LISTED = ("corruptions", "autoattack")  # items of --suite that may name their parts


def read_items(text: str) -> dict[str, list[str]]:
    """{item: its parts}: "pgd,corruptions:fog,snow" is {"pgd": [], "corruptions": [...]}.

    A word that is no part of the item before it is an item of its own.
    """
    items: dict[str, list[str]] = {}
    last = ""  # the item whose parts may go on
    for word in text.split(",") if text else ():
        head, colon, first = word.partition(":")
        if colon and head in LISTED:
            items.setdefault(head, []).append(first)
            last = head
        elif last and word in known_parts(last):
            items[last].append(word)
        else:
            items.setdefault(word, [])
            last = ""
    return items


def known_parts(item: str) -> Collection[str]:
    """The names of the parts of an item of LISTED."""
    if item == "corruptions":
        from advadapters.data import corruptions

        return corruptions.CORRUPTIONS
    from advadapters.attacks import versions

    return versions.parts("linf", 10)


def read_suites(request: Request) -> Suites | None:
    """What is asked of the test images, None for nothing; raises UsageError."""
    from advadapters.data import corruptions
    from advadapters.runs import cascades

    items = read_items(request.suite)
    if request.images or (request.data and not items):
        cascades.need_none(request)
        return None
    listed = items.pop("corruptions", None)
    moved = () if listed is None else tuple(dict.fromkeys(listed)) or corruptions.COMMON
    for name in moved:
        pick(corruptions.CORRUPTIONS, name, "corruption")
    for name in items:
        cascades.need(name)
    kinds = [name for name in items if name in cascades.VERSIONS]
    if len(kinds) > 1:
        raise UsageError(f"--suite: one version of AutoAttack at a time, got {kinds}")
    if not kinds:
        cascades.need_none(request)
    cascade = cascades.read(request, kinds[0], items.pop(kinds[0])) if kinds else None
    severities = tuple(dict.fromkeys(request.severity)) or corruptions.SEVERITIES
    return Suites(tuple(items), moved, severities, cascade)


def suite_names(run: Any, suites: Suites | None) -> list[str]:
    """The suites of the config that are asked for: all, if nothing else is."""
    from advadapters.runs import cascades

    if suites is None:
        return []
    special = ["clean", "corruptions", *cascades.VERSIONS]
    known = run.evaluation.suites | dict.fromkeys(special)
    for name in suites.names:
        pick(known, name, "suite")
    if not (suites.names or suites.corruptions or suites.cascade):
        return list(run.evaluation.suites)
    return [name for name in suites.names if name != "clean"]


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
