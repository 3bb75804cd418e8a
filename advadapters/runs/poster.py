"""Our rows of the poster's table, read from what runs have evaluated and selected."""

import json
from collections.abc import Mapping, Sequence

from advadapters.data.corruptions import COMMON, SEVERITIES
from advadapters.errors import UsageError, pick
from advadapters.evaluation import published, rows
from advadapters.evaluation.published import Ours, Seed
from advadapters.evaluation.rows import Row
from advadapters.files import AnyPath
from advadapters.networks import ENSEMBLE
from advadapters.runs import workdir

# Ways of choosing that selection.json has, in two protocols. An ensemble is not chosen.
CHOSEN = ("ingredient", "single", "specific", "greedy", "learn", "entropy")
PROTOCOLS = {"whole": "ours, whole sets", "value": "ours, unseen images"}


def lines_of(folders: Sequence[AnyPath], way: str, name: str) -> list[Ours]:
    """The lines of one row of the poster.

    Args:
      folders: the runs, a seed each.
      way: one of CHOSEN; "ensemble" for the first ensemble that was evaluated; "" for the
        first network.
      name: of the evaluation.

    Raises:
      UsageError: nothing was evaluated or selected there.
    """
    listed = ",".join(map(str, folders))
    if way in CHOSEN:
        command = f"`advadapters select --workdir={listed}`"
        pairs = [(folder, _selection(folders[0], folder)) for folder in folders]
        return [
            (title, command, [_chosen(*of, way, key, name) for of in pairs])
            for key, title in PROTOCOLS.items()
        ]
    if way not in ("", ENSEMBLE):
        pick(dict.fromkeys([*CHOSEN, ENSEMBLE]), way, "way of choosing")
    command = f"`advadapters evaluate --workdir={listed}`"
    seeds = [_evaluated(folder, way, name) for folder in folders]
    return [("ours", command, seeds)]


def _read(file: AnyPath) -> list[Row]:
    """The rows of an evaluation; raises UsageError where it cannot be read."""
    try:
        return rows.load(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file}: {error}") from None


def _evaluated(folder: AnyPath, way: str, name: str) -> Seed:
    """{suite: accuracy} of the first network, or ensemble, of an evaluation."""
    file = folder / f"{name}.json"
    networks = rows.by_network(_read(file))
    wanted = [network for network in networks if (network.kind == ENSEMBLE) == bool(way)]
    if not wanted:
        kind = "ensemble" if way else "network"
        raise UsageError(f"{file} has no {kind}: run `advadapters evaluate --{kind}=...`")
    of = networks[wanted[0]]
    accuracies = {suite: row.value for suite, row in of.items() if _is_whole(row)}
    return _with_imagenet(folder, accuracies)


def _is_whole(row: Row) -> bool:
    """Whether a row is of all that its name says: a mean of all 75 corruptions."""
    if "corruptions" not in row.more:
        return True
    names, severities = row.more["corruptions"], row.more["severities"]
    every = row.n == len(names) * len(severities) * row.more["images"]
    return every and {*names} >= {*COMMON} and {*severities} >= {*SEVERITIES}


def _with_imagenet(folder: AnyPath, accuracies: dict[str, float]) -> dict[str, float]:
    """The accuracies, with those on "imagenet" if the run's own test images are that."""
    if "clean" not in accuracies or not (folder / "config.json").exists():
        return accuracies
    source = workdir.read_config(folder)["data"]["source"]
    if not source.partition(":")[2].startswith("imagenet2012"):
        return accuracies
    return {"imagenet": accuracies["clean"]} | accuracies


def _selection(first: AnyPath, folder: AnyPath) -> list[Mapping]:
    """The rows of one run in selection.json, which lies in the first of its seeds."""
    for place in (first, folder):
        file = place / "selection.json"
        try:
            listed = json.loads(file.read_text())["rows"] if file.exists() else []
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"cannot read {file}: {error}") from None
        found = [row for row in listed if row["workdir"] == str(folder)]
        if found:
            return found
    raise UsageError(
        f"cannot read {folder / 'selection.json'}: run `advadapters select "
        f"--workdir={folder}` first"
    )


def _chosen(
    folder: AnyPath, listed: Sequence[Mapping], way: str, key: str, name: str
) -> Seed:
    """{suite: accuracy} of a way of choosing, by this key of its rows.

    name: of the evaluation, which tells of means whether all their parts are there.
    """
    file = folder / f"{name}.json"
    results = _read(file) if file.exists() else []
    part = {row.suite for row in results if not _is_whole(row)}
    ways: dict[str, dict[str, float]] = {}
    # Of several numbers of labels the last is the most.
    for row in listed:
        if row["suite"] not in part:
            ways.setdefault(row["way"], {})[row["suite"]] = row[key]
    return _with_imagenet(folder, pick(ways, way, "way of choosing"))


def missing(ours: Mapping[str, Sequence[Ours]]) -> str:
    """Lines on the cells that are empty, and the step that would fill each; "" for none."""
    lines = []
    for name in published.ROWS:
        if name not in ours:
            lines.append(f"* {name}: no run was given, `--papers='{name}=DIR'`")
            continue
        kind, command, seeds = ours[name][0]
        suites = published.missing(seeds)
        if suites:
            lines.append(f"* {name}: not evaluated on {', '.join(suites)} ({command})")
    return "\n".join(["Empty cells:", "", *lines]) if lines else ""
