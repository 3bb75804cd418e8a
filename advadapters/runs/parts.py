"""The parts of an evaluation, whose answers are kept as soon as each is done.

A part is one pass over images: a suite of the run's test images, one corruption at its
severities, another test set, or AutoAttack under one threat. What an earlier call has kept
is not asked again.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from advadapters import hosts
from advadapters.data import shifts as other_data
from advadapters.evaluation import shifts
from advadapters.evaluation.rows import Row
from advadapters.files import AnyPath
from advadapters.networks import Case
from advadapters.runs import cascades, evaluating, predictions
from advadapters.runs.context import OpenRun
from advadapters.runs.evaluating import Tables

Answers = tuple[list[Row], Tables]


class Part(NamedTuple):
    """One pass over images.

    entries: the settings of each entry that it makes, see `predictions`. ask: cases -> rows
    and tables of them. attack: whether the entries are attacks. prepare: opens its images,
    before any part is asked. alone: whether each case is asked and kept by itself. again:
    whether it is asked even if its entries are there.
    """

    entries: Sequence[dict[str, Any]]
    ask: Callable[[Sequence[Case]], Answers]
    attack: bool = False
    prepare: Callable[[], object] = lambda: None
    alone: bool = False
    again: bool = False

    @property
    def title(self) -> str:
        """The names of its suites."""
        return ", ".join(settings["suite"] for settings in self.entries)


class Asked(NamedTuple):
    """What all parts of one call of `evaluate` have in common.

    split: the run's test images. common: settings of all entries. of_test: further ones of
    the entries on test images. signs: images that `evaluating.signs` looks at, or None.
    """

    opened: OpenRun
    variables: Any
    split: Any
    step: int
    common: Mapping[str, Any]
    of_test: Mapping[str, Any]
    signs: int | None

    def entry(self, suite: str, **settings: Any) -> dict[str, Any]:
        """The settings of an entry on test images."""
        return {"suite": suite, **self.common, **self.of_test, **settings}


def of_suite(asked: Asked, suite: str, attack: Any = None) -> Part:
    """Clean test images, or those under an attack of the config."""
    opened = asked.opened

    def ask(cases: Sequence[Case]) -> Answers:
        questions = evaluating.questions_of(
            opened, cases, {suite: attack} if attack else {}
        )
        questions = {suite: questions[suite]}
        tables = evaluating.ask(opened, asked.variables, asked.split, questions)
        compared = signs_of(asked, cases) if attack else ()
        given = (opened, asked.variables, cases, tables, asked.step, compared)
        return evaluating.rows(*given), tables

    settings = evaluating.settings_of(opened, [suite])
    more = {"attack": settings[suite]} if attack else {}
    return Part([asked.entry(suite, **more)], ask, attack=attack is not None)


def of_corruption(asked: Asked, name: str, severities: Sequence[int]) -> Part:
    """One common corruption of the test images, at these severities."""
    opened, about = asked.opened, shifts.about([name], severities)

    def ask(cases: Sequence[Case]) -> Answers:
        given = (opened, asked.variables, asked.split, cases, [name], severities)
        tables = evaluating.corrupted(*given)
        made = (opened, asked.variables, cases, tables, asked.step)
        return evaluating.rows(*made, about=about), tables

    return Part([asked.entry(suite, **of) for suite, of in about.items()], ask)


def of_set(
    asked: Asked,
    name: str,
    *,
    data_dir: str,
    combine: str,
    examples: int | None,
    suite: str = "",
    about: Mapping[str, Any] | None = None,
) -> Part:
    """Another test set.

    suite: what it is called, its name if not given. about: fields of its rows.
    """
    opened, suite, fields = asked.opened, suite or name, dict(about or {})

    @functools.cache
    def load() -> other_data.Shift:
        return evaluating.load_set(opened, name, data_dir)

    def ask(cases: Sequence[Case]) -> Answers:
        given = (opened, asked.variables, cases, name, load())
        tables = evaluating.shifted(*given, combine=combine, examples=examples)
        tables = {suite + key.removeprefix(name): of for key, of in tables.items()}
        made = (opened, asked.variables, cases, tables, asked.step)
        return evaluating.rows(*made, about={suite: fields}), tables

    settings = {"suite": suite, **asked.common, **fields}
    settings |= {"set": name} if suite != name else {}
    settings |= {"examples": examples} if examples else {}
    settings |= {"data_dir": os.path.abspath(data_dir)} if data_dir else {}
    settings |= {"combine": combine} if name == "conflict_stimuli" else {}
    if other_data.is_source(name):  # whose files a user may change
        settings["fingerprint"] = load().fingerprint
    return Part([settings], ask, prepare=load)


def of_cascade(asked: Asked, cascade: cascades.Cascade, journal: str) -> list[Part]:
    """AutoAttack, a part for each threat; of all threats if their images are written."""
    together = cascade.images != ""
    threats = [cascade.threats] if together else [(t,) for t in cascade.threats]

    def part(threats: tuple[tuple[str, float], ...]) -> Part:
        def ask(cases: Sequence[Case]) -> Answers:
            given = (asked.opened, asked.variables, asked.split, cases, asked.step)
            rows, tables = cascades.run(
                *given,
                cascade._replace(threats=threats),
                journal=journal,
                compared=signs_of(asked, cases),
            )
            names = [settings["suite"] for settings in entries]
            kept = [row for row in rows if row.suite in names]
            return kept, {name: tables[name] for name in names}

        entries = [
            asked.entry(
                cascades.suite_of(norm, eps),
                attack={
                    "version": cascade.version,
                    "norm": norm,
                    "eps": eps,
                    "seed": cascade.seed,
                    **cascade.settings,
                },
            )
            for norm, eps in threats
        ]
        return Part(entries, ask, attack=True, alone=not together, again=together)

    return [part(of_part) for of_part in threats]


def of_images(asked: Asked, path: str) -> Part:
    """The adversarial images of a file, each suite of which is named after the file."""
    opened, stem = asked.opened, os.path.splitext(os.path.basename(path))[0]

    def ask(cases: Sequence[Case]) -> Answers:
        rows = cascades.count(opened, asked.variables, cases, path, asked.step)
        return [dataclasses.replace(row, suite=f"{stem}:{row.suite}") for row in rows], {}

    settings = {"suite": f"{stem}:", **asked.common, "images": os.path.abspath(path)}
    return Part([settings], ask, again=True)


def signs_of(asked: Asked, cases: Sequence[Case]) -> list[dict[str, float]]:
    """What `evaluating.signs` says of the cases, each of which is looked at once."""
    cache = asked.opened.cache
    new = [case for case in cases if ("signs", case.identity) not in cache]
    given = (asked.opened, asked.variables, asked.split, new, asked.signs)
    for case, agreement in zip(new, evaluating.signs(*given) if new else [], strict=True):
        cache["signs", case.identity] = agreement
    return [cache["signs", case.identity] for case in cases]


def run(
    opened: OpenRun,
    parts: Sequence[Part],
    cases: Sequence[Case],
    name: str,
    command: str,
    about: Mapping[str, Any],
) -> None:
    """Asks what is not kept yet of each part, and keeps it.

    about: further fields of the rows.
    """
    missing = [missing_of(opened, part, cases, name) for part in parts]
    for part, new in zip(parts, missing, strict=True):
        if new:
            part.prepare()
    there = [part.title for part, new in zip(parts, missing, strict=True) if not new]
    if there:
        print(f"evaluated before, with the same settings: {', '.join(there)}", flush=True)
    for part, new in zip(parts, missing, strict=True):
        if new and len(new) < len(cases):
            known = len(cases) - len(new)
            print(f"{part.title}: {known} of {len(cases)} networks were evaluated before")
        for group in [[case] for case in new] if part.alone else [new] if new else []:
            rows, tables = part.ask(group)
            rows = [row.with_more(**about) for row in rows]
            keep(opened, part, group, name, (rows, tables), command)


def missing_of(opened: OpenRun, part: Part, cases: Sequence[Case], name: str) -> list[Case]:
    """The cases that some entry of a part lacks."""
    there = _there(opened.folder, name, part.entries)
    if part.again:
        return list(cases)
    return [
        case
        for case in cases
        if any(case.identity.plain() not in networks for networks in there)
    ]


@hosts.once
def _there(
    folder: AnyPath, name: str, entries: Sequence[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """The networks that each entry has, as plain values."""
    networks = [predictions.find(folder, name, entry) for entry in entries]
    return [[network.plain() for network in of_entry] for of_entry in networks]


def keep(
    opened: OpenRun,
    part: Part,
    cases: Sequence[Case],
    name: str,
    answers: Answers,
    command: str,
) -> None:
    """Adds the answers of a part to its entries."""
    rows, tables = answers
    networks = [case.identity for case in cases]
    for settings in part.entries:
        suite, alone = settings["suite"], len(part.entries) == 1
        own = {s: table for s, table in tables.items() if alone or s == suite}
        rows_of = [row for row in rows if alone or row.suite == suite]
        given = (opened.folder, name, settings, networks, rows_of, own)
        predictions.add(*given, command)
