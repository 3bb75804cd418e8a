"""What follows from all entries of an evaluation: unions, sums, the rows in one file."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from advadapters import hosts
from advadapters.evaluation import accuracy, shifts, tables
from advadapters.evaluation.rows import Row, dump
from advadapters.files import AnyPath
from advadapters.networks import Identity
from advadapters.runs import predictions, workdir
from advadapters.runs.predictions import About

# Of an entry's settings, those that tell one corruption from another.
OF_CORRUPTION = ("suite", "corruption", "severity", "set", "fingerprint")


@hosts.once
def add_union(
    folder: AnyPath,
    name: str,
    attacks: Sequence[Mapping[str, Any]],
    networks: Sequence[Identity],
    command: str,
) -> list[dict[str, Any]]:
    """Adds the entry of who is right under all of these attacks, if they are several.

    Returns its settings in a list, or an empty one.

    attacks: settings of their entries. networks: that all of these have.
    """
    if len(attacks) < 2:
        return []
    parts = [entry_of(folder, name, settings) for settings in attacks]
    same = ("step", "examples", "names")
    settings = {key: attacks[0][key] for key in same if key in attacks[0]}
    settings |= {"suite": "union", "of": [dict(attack) for attack in attacks]}
    there = predictions.find(folder, name, settings)
    if all(network in there for network in networks):
        return [settings]
    together = []
    for part in parts:
        ((suite, table),) = predictions.tables_of(part).items()
        numbers = [part.networks.index(network) for network in networks]
        together.append(table._replace(predictions=table.predictions[numbers]))
    table = accuracy.union(together)
    first = {row.network: row for row in parts[0].rows}
    rows = [
        Row.of_counts(
            network,
            "union",
            int(right.sum()),
            len(table.index),
            first[network].step,
            flops=first[network].flops,
            more={k: v for k, v in first[network].more.items() if k not in OF_ATTACK},
        )
        for network, right in zip(networks, table.right, strict=True)
    ]
    predictions.add(folder, name, settings, networks, rows, {"union": table}, command)
    return [settings]


# What the row of an attack has more, and that of a union has not.
OF_ATTACK = ("settings", "version", "stages", "costs", "warnings")


def entry_of(folder: AnyPath, name: str, settings: Mapping[str, Any]) -> About:
    """The entry of these settings, which is there."""
    return predictions.read_about(predictions.file_of(folder / name, settings))


def rows_of(entries: Sequence[About], imagenet: bool) -> list[Row]:
    """The rows of entries, and those that sum up the corruptions among them."""
    rows = [row for entry in entries for row in entry.rows]
    places: dict[str, list[About]] = {}  # imagenet_c/ or what is made on the fly
    for entry in entries:
        if "corruption" in entry.settings:
            place = entry.settings["suite"].rpartition("/")[0]
            places.setdefault(place, []).append(entry)
    for moved in places.values():
        common = _common(moved[-1])
        alike = [row for entry in moved if _common(entry) == common for row in entry.rows]
        rows += shifts.summary(alike, imagenet)
    return rows


def _common(entry: About) -> dict[str, Any]:
    """The settings that all corruptions of one evaluation have."""
    return {k: v for k, v in entry.settings.items() if k not in OF_CORRUPTION}


@hosts.once
def conclude(
    folder: AnyPath,
    name: str,
    asked: Sequence[Mapping[str, Any]],
    networks: Collection[Identity],
    imagenet: bool,
    command: str,
) -> None:
    """Writes NAME.json, the rows of all entries that count, and prints those asked for.

    asked: settings of the entries that one call is about; networks: the ones it is about.
    """
    entries = predictions.current(folder, name)
    predictions.note_command(folder, name, command)
    workdir.write_text(folder / f"{name}.json", dump(rows_of(entries, imagenet)))
    chosen = [entry_of(folder, name, settings) for settings in asked]
    rows = [row for row in rows_of(chosen, imagenet) if row.network in networks]
    corrupted = any(row.corruption for row in rows)
    print(shifts.corruption_table(rows) if corrupted else tables.results_table(rows))
    print(f"written to {folder / name} and {name}.json: {len(entries)} suites in all")
