"""usage: advadapters study --config=FILE[:VARIANT] --workdir=DIR --adapters=A,B,...
       advadapters study --config=FILE --workdir=DIR --variants=A,B,...
       advadapters study --config=FILE --workdir=DIR [--ledger=docs/ledger.jsonl]

Trains one config many times, with one thing changed, and compares:

{flags}

Each training is a run of its own in DIR/CASE-seedN, all cases of a seed before the next
seed. A second call goes on where the first was cut off, and further cases or seeds can be
added. With --adapters and --variants the modes are evaluated, not the soups between them.
Writes to DIR, from the runs named, after each seed:

  study.json     a row per case and suite: mode, values of the seeds, mean, 95% interval
  study.md       the same as a table, with the parameters per domain
  study.png      accuracy against parameters per domain
  costs.json     commit, device, date and seconds of each run
  ledger.jsonl   of an experiment: a row for each claim with its verdict, and evidence.md,
                 the same as a page. --ledger=FILE puts the rows into another ledger too, in
                 the place of older ones of the same claims, with evidence.md beside it
"""

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

from advadapters import hosts
from advadapters.errors import UsageError
from advadapters.flags import ConfigFile, Shown
from advadapters.schema import Between

SEEDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    config: Annotated[ConfigFile, "changes all of them"]
    workdir: Annotated[str, Shown("DIR"), "the folder of all runs"]
    adapters: Annotated[
        tuple[str, ...],
        Shown("class_token,norms+head,nothing"),
        'config.adapters of each case; "+" joins',
    ] = ()
    variants: Annotated[
        tuple[str, ...],
        Shown("adversarial,trades,awp"),
        "or the variant of the config; or, without either, the experiment that the config "
        "file states (see configs/evidence): its variants, soups and evaluations",
    ] = ()
    seeds: Annotated[
        int | None,
        Between(low=1),
        Shown("3"),
        "config.seed, the next one, ... (default: 3, or what the experiment says)",
    ] = None
    minutes: Annotated[
        int | None,
        Between(low=1),
        Shown("20"),
        "stops after so long, and the same command goes on from there: training is left "
        "with a checkpoint, an evaluation is finished first. Exit code 143",
    ] = None
    ledger: Annotated[
        str, Shown("FILE"), "another ledger that the rows of an experiment are put into"
    ] = ""


class Study(NamedTuple):
    """What is run: cases {name: config as a dict}, in this order for each seed.

    experiment: what is done with them besides, or None. flags: of the command. late:
    whether the time is up.
    """

    cases: dict[str, dict[str, Any]]
    experiment: Any
    folder: Any
    flags: Flags
    late: Callable


def main(flags: Flags) -> int:
    """Returns the exit code."""
    begun = time.monotonic()
    flags.config.read()  # what is wrong in the file comes first
    from etils import epath

    from advadapters.runs import experiments

    named = flags.adapters or flags.variants
    experiment = None if named else experiments.read(flags.config.path)
    check_flags(flags, experiment)
    cases = read_cases(flags, experiment)
    check(cases, experiment)
    study = Study(
        cases,
        experiment,
        folder=epath.Path(os.path.abspath(os.path.expanduser(flags.workdir))),
        flags=flags,
        late=lambda: bool(flags.minutes) and time.monotonic() > begun + 60 * flags.minutes,
    )
    return run(study, flags.seeds or getattr(experiment, "seeds", SEEDS), flags.ledger)


def check_flags(flags: Flags, experiment: Any) -> None:
    """Raises UsageError for flags that do not go together."""
    named = [key for key in ("adapters", "variants") if getattr(flags, key)]
    if len(named) > 1 or not (named or experiment):
        raise UsageError(
            "give either --adapters=A,B,... or --variants=A,B,..., or a config that states "
            "an EXPERIMENT, like those in configs/evidence"
        )
    if flags.ledger and named:
        raise UsageError(f"--ledger is for experiments: leave out --{named[0]}")
    if flags.minutes and hosts.joined().client is not None:
        raise UsageError("--minutes is for one process: send SIGTERM to several")


def check(cases: dict[str, dict[str, Any]], experiment: Any) -> None:
    """Builds all cases; raises UsageError for what cannot work, before any is trained."""
    from advadapters import builders, meshes
    from advadapters.runs import assembling, experiments

    (first, *_), mesh, built = cases, meshes.make(), {}
    for case, config in cases.items():
        built[case] = config, builders.build(config, mesh)
        assembling.need_same_suites(first, cases[first], case, config)
    if experiment:
        experiments.check(experiment, built)


def run(study: Study, count: int, ledger: str) -> int:
    """Trains and evaluates so many seeds, and writes after each; returns the exit code.

    ledger: a file that the rows of an experiment go to besides, or "".
    """
    from advadapters.evaluation import studies
    from advadapters.runs import experiments
    from advadapters.training.loop import Diverged

    base = next(iter(study.cases.values()))["seed"]
    meter = experiments.Meter(study.folder / "costs.json")
    failed, finished, rows = {}, {case: [] for case in study.cases}, []
    for seed in range(base, base + count):
        for case in [name for name in study.cases if name not in failed]:
            try:
                finished[case].append(train(study, case, seed, failed, meter))
            except Diverged as error:
                failed[case] = f"{case}, seed {seed}: {error}"
                print(f"{failed[case]}; left out", flush=True)
        if study.experiment:
            seeds = range(base, seed + 1)
            experiments.conclude(study, seeds, failed, meter, ledger)
        rows = []
        for case in [name for name in study.cases if name not in failed]:
            results, sizes = zip(*finished[case], strict=True)
            rows += studies.rows(case, sizes[0], results)
        if rows:
            write(rows, study.folder)
    if rows:
        print(studies.study_table(rows))
        print(f"written to {study.folder}: study.json, study.md, study.png")
    return 1 if failed else 0


def write(rows: Sequence[Any], folder: Any) -> None:
    """The rows, the table and the picture of a study."""
    from advadapters.evaluation import studies
    from advadapters.runs import workdir

    plain = [row.plain() for row in rows]
    workdir.write_text(folder / "study.json", json.dumps(plain, indent=1) + "\n")
    workdir.write_text(folder / "study.md", studies.study_table(rows) + "\n")
    workdir.write_whole(folder / "study.png", lambda file: studies.draw(rows, file))


def read_cases(flags: Flags, experiment: Any) -> dict[str, dict[str, Any]]:
    """{case: config as a dict}; raises UsageError for a case that is there twice."""
    kind = "adapters" if flags.adapters else "variants"
    names = experiment.variants if experiment else getattr(flags, kind)
    if len(set(names)) != len(names) or not names:
        raise UsageError(f"--{kind} must name different cases, got {','.join(names)!r}")
    cases = {}
    for name in names:
        config = flags.config.read("" if kind == "adapters" else name)
        if kind == "adapters":
            config["adapters"] = tuple(name.split("+"))
        if not experiment:
            config["evaluation"]["soup_weights"] = (1.0, 0.0)
        folder = re.sub(r"[^\w+-]+", "_", name)
        if folder in cases:
            raise UsageError(f"--{kind}: {name!r} has the same folder as another case")
        cases[folder] = config
    return cases


def train(
    study: Study, case: str, seed: int, failed: dict[str, str], meter: Any
) -> tuple[Any, int]:
    """(result rows, adapter parameters per domain) of one run, trained if need be.

    A case whose config.start.workdir is the name of another starts from that one's run of
    the same seed. Raises Diverged, also where that one did (failed), and hosts.Preempted
    where the time is up.
    """
    from advadapters import trees
    from advadapters.runs import opening, training, workdir
    from advadapters.training.loop import Diverged

    config: dict[str, Any] = study.cases[case] | {"seed": seed}
    start = config["start"]["workdir"]
    if start in failed:
        raise Diverged(f"starts from {failed[start]}")
    if start in study.cases:
        start = os.fspath(study.folder / f"{start}-seed{seed}")
        config["start"] = config["start"] | {"workdir": start}
    if study.late():
        raise hosts.Preempted(f"stopped before {case}, seed {seed}")
    folder = study.folder / f"{case}-seed{seed}"
    opened = opening.open_run(config, folder, study.flags.config.keys)
    print(f"--- {folder.name}", flush=True)
    with meter.of(folder.name, done=bool(workdir.read_results(folder))):
        training.train(opened, late=study.late)
    adapters = opening.abstract_state(opened).variables["adapters"]
    return workdir.read_results(folder), trees.count(adapters) // len(opened.run.domains)
