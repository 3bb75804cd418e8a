"""What networks say of each image, kept in a run's folder: a table that grows.

DIR/NAME/ holds an entry for each suite: a file SUITE-HASH.npz with what every network that
was asked says of every image. The hash is of the settings, which are all that the answers
depend on besides the network: the attack or the test set, the checkpoint, how many images,
and so on. Further networks are added to the entry. Other settings make another entry, and
of several entries of one suite the one that was asked for last counts. Each file is
written as a whole, so whoever is killed loses no entry but the one at work.

`train` and older versions write one file NAME.npz of all suites, which is read as well.
"""

import contextlib
import hashlib
import json
import re
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from advadapters import hosts
from advadapters.errors import UsageError, pick
from advadapters.evaluation import means
from advadapters.evaluation.accuracy import Table
from advadapters.evaluation.rows import Row
from advadapters.files import AnyPath
from advadapters.networks import Case, Identity
from advadapters.runs import workdir

Settings = Mapping[str, Any]  # of an entry, plain values; "suite" is its name


class Predictions(NamedTuple):
    """What the same networks say of each image of several suites.

    tables: {suite: Table}, of which each is read when it is asked for. commands: {suite:
    what added to it last}, {} of `train`. settings: {suite: those of its entry}, of which
    a file of `train` has "attack" alone.
    """

    networks: list[Identity]
    tables: Mapping[str, Table]
    commands: dict[str, str]
    settings: dict[str, dict[str, Any]]


class About(NamedTuple):
    """What stands in an entry besides its tables.

    rows: of results, those of suites without a table among them. suites: with a table.
    asked: when the entry was last asked for, in seconds since 1970.
    """

    file: AnyPath
    settings: dict[str, Any]
    networks: list[Identity]
    suites: tuple[str, ...]
    rows: list[Row]
    command: str
    asked: float


class Tables(Mapping[str, Table]):
    """{suite: Table} that reads a file whenever a suite is asked for.

    places: {suite: (file, numbers of the networks in it)}.
    """

    def __init__(self, places: Mapping[str, tuple[AnyPath, Sequence[int]]]) -> None:
        self.places = places

    def __getitem__(self, suite: str) -> Table:
        file, numbers = self.places[suite]
        table = _read_table(file, suite)
        return table._replace(predictions=table.predictions[list(numbers)])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def write(
    file: AnyPath,
    cases: Sequence[Case],
    tables: Mapping[str, Table],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes one file of all suites; settings: {suite: those of its attack}."""
    networks = [case.identity.plain() for case in cases]
    _save(file, {"networks": networks, "attacks": settings or {}}, tables)


def add(
    folder: AnyPath,
    name: str,
    settings: Settings,
    networks: Sequence[Identity],
    rows: Sequence[Row],
    tables: Mapping[str, Table],
    command: str,
) -> None:
    """Adds networks to the entry of these settings, which is made if need be.

    rows, tables: of these networks alone. Networks that the entry has of other images, as
    of a set that has changed, are dropped. To be called by all processes.
    """
    file = file_of(folder / name, settings)
    if not hosts.first():
        return
    networks, rows, tables, asked = list(networks), list(rows), dict(tables), time.time()
    if file.exists():
        old = read_about(file)
        kept = [n for n, network in enumerate(old.networks) if network not in networks]
        before, asked = tables_of(old), old.asked
        if before.keys() == tables.keys() and all(
            _same_images(before[suite], tables[suite]) for suite in tables
        ):
            for suite, table in tables.items():
                said = np.concatenate([before[suite].predictions[kept], table.predictions])
                tables[suite] = table._replace(predictions=said)
            rows = [row for row in old.rows if row.network not in networks] + rows
            networks = [old.networks[n] for n in kept] + networks
    file.parent.mkdir(exist_ok=True)
    about = {
        "settings": dict(settings),
        "networks": [network.plain() for network in networks],
        "rows": [row.plain() for row in rows],
        "command": command,
        "asked": asked,
    }
    _save(file, about, tables)


def _same_images(first: Table, second: Table) -> bool:
    """Whether two tables are of the same images with the same labels."""
    pairs = (first.labels, second.labels), (first.index, second.index)
    return all(np.array_equal(*pair) for pair in pairs)


def find(folder: AnyPath, name: str, settings: Settings) -> list[Identity]:
    """The networks that the entry of these settings has; [] where there is none.

    An entry that is there is the one of its suite that counts from now on.
    """
    file = file_of(folder / name, settings)
    if not file.exists():
        return []
    about = read_about(file)
    suite = settings["suite"]
    same = [e for e in entries(folder / name) if e.settings["suite"] == suite]
    if same[-1].file != file:
        _save(file, _read_json(file) | {"asked": time.time()}, tables_of(about))
    return about.networks


def entries(folder: AnyPath) -> list[About]:
    """All entries of a folder DIR/NAME, those that were asked for last at the end."""
    files = sorted(folder.glob("*.npz")) if folder.exists() else []
    return sorted(map(read_about, files), key=lambda entry: entry.asked)


def current(folder: AnyPath, name: str) -> list[About]:
    """The entry of each suite that counts, in the order in which suites were added."""
    newest: dict[str, About] = {}
    for entry in entries(folder / name):
        newest[entry.settings["suite"]] = entry
    return list(newest.values())


def read_about(file: AnyPath) -> About:
    """What stands in an entry; raises UsageError where it is none."""
    try:
        values = _read_json(file)
        return About(
            file,
            values["settings"],
            list(map(Identity.of_plain, values["networks"])),
            tuple(values["suites"]),
            list(map(Row.of_plain, values["rows"])),
            values["command"],
            values["asked"],
        )
    except KeyError as error:
        raise UsageError(f"{file} is no entry of an evaluation: no {error}") from None


def tables_of(entry: About) -> dict[str, Table]:
    """{suite: Table} of an entry."""
    return {suite: _read_table(entry.file, suite) for suite in entry.suites}


def read(folder: AnyPath, name: str, suites: Sequence[str] = ()) -> Predictions:
    """The Predictions of DIR/NAME/, and of NAME.npz where there is one.

    The networks are those that all suites have. suites: only these, and those that a suite
    is the mean of. Raises UsageError where nothing was evaluated, and where no network has
    all suites.
    """
    asked = current(folder, name)
    single = folder / f"{name}.npz"
    if not asked and not single.exists():
        raise UsageError(
            f"cannot read {folder / name} or {single} as tables of predictions: run "
            f"`advadapters evaluate --workdir={folder}` first"
        )
    networks: dict[str, tuple[AnyPath, list[Identity]]] = {}
    settings: dict[str, dict[str, Any]] = {}
    commands: dict[str, str] = {}
    if single.exists():
        values = _read_json(single)
        identities = list(map(Identity.of_plain, values["networks"]))
        networks = dict.fromkeys(values["suites"], (single, identities))
        settings = {suite: {"attack": of} for suite, of in values["attacks"].items()}
        older = values.get("command", "")
        commands = {suite: older for suite in networks if older}
    for entry in asked:
        networks |= dict.fromkeys(entry.suites, (entry.file, entry.networks))
        commands |= dict.fromkeys(entry.suites, entry.command)
        settings |= dict.fromkeys(entry.suites, entry.settings)
    if suites:
        names = [means.members(suite, networks) or [suite] for suite in suites]
        chosen = [name for of_suite in names for name in of_suite]
        networks = {suite: pick(networks, suite, "suite") for suite in chosen}
    first = next(iter(networks.values()))[1] if networks else []
    common = [n for n in first if all(n in of for _, of in networks.values())]
    if not common and networks:
        few = min(networks, key=lambda suite: len(networks[suite][1]))
        raise UsageError(
            f"{folder / name}: no network was evaluated on all of {', '.join(networks)}: "
            f"evaluate the same networks on them, or choose suites (suite {few!r} has "
            f"{len(networks[few][1])} networks)"
        )
    places = {
        suite: (file, [of.index(network) for network in common])
        for suite, (file, of) in networks.items()
    }
    commands = {s: text for s, text in commands.items() if s in places}
    settings = {s: values for s, values in settings.items() if s in places}
    return Predictions(common, Tables(places), commands, settings)


def finished(folder: AnyPath, name: str) -> list[str]:
    """The commands that have added all they were asked for."""
    file = folder / name / "commands.json"
    return json.loads(file.read_text()) if file.exists() else []


def note_command(folder: AnyPath, name: str, command: str) -> None:
    """Writes down that a command has added all that it was asked for."""
    commands = dict.fromkeys([*finished(folder, name), command])
    workdir.write_json(folder / name / "commands.json", list(commands))


def read_alike(
    folders: Sequence[AnyPath], name: str, suites: Sequence[str] = ()
) -> list[Predictions]:
    """The Predictions NAME of each folder, see `read`.

    Raises UsageError where runs differ in networks, suites, or attacks of these.
    """
    runs = [read(folder, name, suites) for folder in folders]
    first = runs[0]
    for folder, run in zip(folders, runs, strict=True):
        attacks, others = (
            {s: of["attack"] for s, of in each.settings.items() if "attack" in of}
            for each in (run, first)
        )
        differ = [s for s in attacks if others.get(s, attacks[s]) != attacks[s]]
        same = run.networks == first.networks and run.tables.keys() == first.tables.keys()
        if differ or not same:
            suite = f" (suite {differ[0]!r} is another attack)" if differ else ""
            raise UsageError(
                f"{folder} was not evaluated like {folders[0]}{suite}: run the same "
                "`advadapters evaluate` on both"
            )
    return runs


def left_out(folder: AnyPath, name: str, networks: Sequence[Identity]) -> str:
    """A line on the networks of entries that are not among these, "" for none."""
    others = {n for entry in current(folder, name) for n in entry.networks} - {*networks}
    if not others:
        return ""
    return (
        f"{folder}: {len(others)} networks were not evaluated on all of these suites and "
        "are left out; choose suites by --suite"
    )


def file_of(folder: AnyPath, settings: Settings) -> AnyPath:
    """The file of an entry in a folder DIR/NAME."""
    text = json.dumps(settings, sort_keys=True)
    stem = re.sub(r"[^A-Za-z0-9.-]+", "_", settings["suite"])[-60:]
    return folder / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.npz"


def _save(file: AnyPath, about: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
    """Writes a file of tables as images by networks, whole or not at all.

    What networks say of one image is mostly the same, and the compression looks back 32 kB
    only: so rows are images, and numbers are of two bytes where classes are few enough.
    """
    text = json.dumps({**about, "suites": list(tables)})
    arrays: dict[str, Any] = {"about": np.array(text)}
    for suite, table in tables.items():
        arrays[f"{suite}/classes"] = _narrow(table.predictions.T)
        arrays[f"{suite}/labels"] = _narrow(table.labels)
        arrays[f"{suite}/index"] = np.asarray(table.index, np.int32)
    workdir.write_whole(file, lambda raw: np.savez_compressed(raw, **arrays))


def _narrow(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers as int16 where they all fit, else as int32."""
    short = np.iinfo(np.int16)
    fits = numbers.size == 0 or short.min <= numbers.min() <= numbers.max() <= short.max
    return np.ascontiguousarray(numbers, np.int16 if fits else np.int32)


@contextlib.contextmanager
def _opened(file: AnyPath) -> Iterator[Any]:
    """The arrays of a file; raises UsageError where they cannot be read."""
    try:
        with file.open("rb") as raw, np.load(raw, allow_pickle=False) as arrays:
            yield arrays
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read {file} as tables of predictions: {error}") from None


def _read_json(file: AnyPath) -> dict[str, Any]:
    """What stands in a file besides its tables, that of older versions too."""
    with _opened(file) as arrays:
        if "about" in arrays:
            return json.loads(str(arrays["about"]))
        names = dict.fromkeys(n.rpartition("/")[0] for n in arrays if "/" in n)
        return {
            "networks": json.loads(str(arrays["networks"])),
            "command": str(arrays["command"]),
            "attacks": json.loads(str(arrays["settings"])) if "settings" in arrays else {},
            "suites": list(names),
        }


def _read_table(file: AnyPath, suite: str) -> Table:
    """The Table of one suite; older versions wrote networks by images."""
    with _opened(file) as arrays:
        rotated = f"{suite}/classes" in arrays
        said = arrays[f"{suite}/classes"].T if rotated else arrays[f"{suite}/predictions"]
        return Table(said, arrays[f"{suite}/labels"], arrays[f"{suite}/index"])
