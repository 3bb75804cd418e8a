"""Experiments of config files: what `advadapters study` evaluates, judges and writes down.

A config file states its experiment as plain data:

  EXPERIMENT = dict(
      paper="...", data="...",       # in words, for the ledger
      variants=("nominal", "cotrain"),  # trained in this order
      seeds=2,
      claims=(dict(id=..., sentence=..., place=..., test=..., ...), ...),  # see `claims`
      # Runs made of several trained networks, evaluated at these weights of the first.
      soups={"mixed": dict(of=("nominal", "cotrain"), weights=(1.0, 0.5, 0.0))},
      # By name, what is evaluated besides of which variant: flags of `evaluate`.
      evaluations={"aa": {"cotrain": dict(suite="autoattack", eps=0.1)}},
      chosen_on=1000,  # images that networks called "best" are chosen on
      at_scale="...",  # what the paper's own size would cost, and by which dry run
  )

A variant whose config.start.workdir is the name of one before it starts from that one's run
of the same seed.
"""

import contextlib
import datetime
import json
import os
import pathlib
import runpy
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from advadapters import flags, hosts
from advadapters.errors import UsageError, pick
from advadapters.runs import requests
from advadapters.runs.requests import Request, evaluate

USUAL = dict(soups={}, evaluations={}, chosen_on=1000, at_scale="")
NEEDED = ("paper", "data", "variants", "seeds", "claims")
ROOT = pathlib.Path(__file__).parents[2]


class Experiment(NamedTuple):
    """What a config file states, see above; name: of the file, without its folder."""

    name: str
    paper: str
    data: str
    variants: tuple
    seeds: int
    claims: tuple
    soups: dict
    evaluations: dict
    chosen_on: int
    at_scale: str


def read(path: str | os.PathLike) -> Experiment | None:
    """The Experiment of a config file, None if it states none."""
    stated = runpy.run_path(os.fspath(path)).get("EXPERIMENT")
    if stated is None:
        return None
    whole = USUAL | stated
    if wrong := [key for key in NEEDED if key not in whole] or [
        key for key in whole if key not in Experiment._fields[1:]
    ]:
        raise UsageError(f"{path}: EXPERIMENT.{wrong[0]} is missing or unknown")
    return Experiment(pathlib.Path(path).stem, **whole)


def check(experiment: Experiment, built: Mapping[str, tuple[dict[str, Any], Any]]) -> None:
    """Raises UsageError for a claim that the experiment cannot judge.

    built: {variant: (config, Run)}. So that hours of training are not in vain.
    """
    from advadapters.evaluation import claims

    names = (*experiment.variants, *experiment.soups)
    for mixed, mixed_of in experiment.soups.items():
        for part in mixed_of["of"]:
            pick(built, part, f"variant in EXPERIMENT.soups[{mixed!r}]")
    for name, asked in experiment.evaluations.items():
        for variant, values in asked.items():
            pick(dict.fromkeys(names), variant, f"variant in evaluations[{name!r}]")
            requests.check(request_of("DIR", name, values))
    for claim in experiment.claims:
        claims.check(claim)
        for variant, network, suite in claims.rows(claim):
            where = f"of claim {claim['id']}"
            pick(dict.fromkeys(names), variant, f"variant {where}")
            evaluation, suite = place(experiment, suite)
            if evaluation != "results":
                asked = experiment.evaluations[evaluation]
                pick(asked, variant, f"variant with evaluation {evaluation!r} {where}")
            elif variant in built:
                config, run = built[variant]
                suites = ("clean", *config["evaluation"]["suites"], "union")
                pick(dict.fromkeys(suites), suite, f"suite {where}")
                if network not in claims.CHOSEN:
                    claims.number([case.identity for case in run.evaluation.cases], network)


def place(experiment: Experiment, suite: str) -> tuple[str, str]:
    """(NAME of DIR/NAME.npz, suite in it) of a row's "SUITE" or "EVALUATION:SUITE"."""
    name, colon, rest = suite.partition(":")
    return (name, rest) if colon and name in experiment.evaluations else ("results", suite)


def folder_of(folder: Any, name: str, seed: int) -> Any:
    """Where a study keeps a run."""
    return folder / f"{name}-seed{seed}"


def rests_on(
    experiment: Experiment, cases: Mapping[str, dict[str, Any]], name: str
) -> set[str]:
    """A variant or soup with all that it is made from or started from."""
    if name in experiment.soups:
        parts = experiment.soups[name]["of"]
    else:
        start = cases[name]["start"]["workdir"]
        parts = (start,) if start in cases else ()
    return {name}.union(*(rests_on(experiment, cases, part) for part in parts))


def conclude(
    study: Any, seeds: Sequence[int], failed: dict[str, str], meter: "Meter", ledger: str
) -> None:
    """Does what is left of the last of the seeds, judges all of them, and writes that down.

    study: see `study.Study`. failed: {case: what became of it}. ledger: a file that the
    rows go to besides that of the study, or "".
    """
    make_soups(study, seeds[-1], failed, meter)
    evaluate_all(study, seeds[-1], failed, meter)
    experiment, fields = study.experiment, about(study.experiment, study.flags)

    def about_cases(names: Iterable[str]) -> dict[str, Any]:
        whole = set().union(*(rests_on(experiment, study.cases, name) for name in names))
        return fields | meter.total(
            [f"{name}-seed{seed}" for name in whole for seed in seeds]
        )

    rows = judge(experiment, study.folder, seeds, failed, about_cases)
    files = [study.folder / "ledger.jsonl"]
    files += [pathlib.Path(ledger).expanduser().absolute()] if ledger else []
    for file in files:
        write(rows, file)
    for row in rows:
        print(f"{row['id']}: {row['verdict']}" + (f" ({row['why']})" if row["why"] else ""))
    print(f"written to {', '.join(map(str, files))}, and evidence.md beside", flush=True)


def make_soups(study: Any, seed: int, failed: dict[str, str], meter: "Meter") -> None:
    """The experiment's runs of several trained networks, evaluated like others."""
    from advadapters.runs import assembling, opening, training, workdir

    for name, mixed_of in study.experiment.soups.items():
        parts = mixed_of["of"]
        lost = [failed[part] for part in parts if part in failed]
        folder = folder_of(study.folder, name, seed)
        if lost:
            failed[name] = f"{name} is made of {lost[0]}"
        if lost or workdir.read_results(folder):
            continue
        leave_if(study, folder.name)
        with meter.of(folder.name):
            if not workdir.holds_run(folder):
                folders = [folder_of(study.folder, part, seed) for part in parts]
                assembling.assemble(
                    [os.fspath(part) for part in folders],
                    os.fspath(folder),
                    names=parts,
                    soup_weights=mixed_of["weights"],
                )
            training.train(opening.open_trained(os.fspath(folder)))


def evaluate_all(study: Any, seed: int, failed: dict[str, str], meter: "Meter") -> None:
    """The experiment's evaluations of their own; what is there is not done again."""
    for name, asked in study.experiment.evaluations.items():
        for variant in [candidate for candidate in asked if candidate not in failed]:
            folder = folder_of(study.folder, variant, seed)
            request = request_of(folder, name, asked[variant])
            if not evaluated(folder, request):
                leave_if(study, f"{folder.name}, {name}")
                with meter.of(folder.name):
                    evaluate(request)


def request_of(folder: Any, name: str, values: Mapping[str, Any]) -> Request:
    """What an experiment's evaluation of this name asks of a run's folder."""
    given = {"workdir": os.fspath(folder), "name": name}
    return flags.of_values(Request, given | {**values})


def leave_if(study: Any, what: str) -> None:
    """Says what is done next, or raises hosts.Preempted where the time is up."""
    if study.late():
        raise hosts.Preempted(f"stopped before {what}")
    print(f"--- {what}", flush=True)


def evaluated(folder: Any, request: Request) -> bool:
    """Whether an evaluation of a run is there, made of this very request."""
    from advadapters.runs import predictions

    if not (folder / f"{request.name}.json").exists():
        return False
    for command in predictions.finished(folder, request.name):
        try:
            _, verb, *argv = shlex.split(command)
            if verb == "evaluate" and flags.read(Request, argv) == request:
                return True
        except ValueError:  # a command that is none any more
            continue
    return False


def judge(
    experiment: Experiment,
    folder: Any,
    seeds: Sequence[int],
    failed: Mapping[str, str],
    about: Callable[[Iterable[str]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """[ledger row] of every claim on the seeds that are complete.

    failed: {case: what became of it}. about: names of cases -> further fields of a row
    that is about these.
    """
    from advadapters.evaluation import claims, ledger

    read, judged = {}, []
    for claim in experiment.claims:
        rows = claims.rows(claim)
        fields = about({row[0] for row in rows})
        given = (experiment.name, claim)
        if lost := [failed[name] for name, *_ in rows if name in failed]:
            judged.append(ledger.untested(*given, seeds, fields, lost[0]))
            continue
        rights = {
            row: [rights_of(experiment, folder, row, seed, read) for seed in seeds]
            for row in rows
        }
        results = [
            claims.compare(rights[pair.first], rights[pair.second], pair.margin)
            for pair in claims.comparisons(claim)
        ]
        judged.append(ledger.row(*given, results, seeds, fields))
    return judged


def rights_of(
    experiment: Experiment,
    folder: Any,
    row: tuple[str, str, str],
    seed: int,
    read: dict[Any, Any],
) -> Any:
    """See `claims.rights`; read: {what: what was read of it}, to be filled."""
    from advadapters.evaluation import claims
    from advadapters.runs import predictions

    variant, network, suite = row
    name, suite = place(experiment, suite)
    run = folder_of(folder, variant, seed)
    key = run, name, suite
    if key not in read:
        read[key] = predictions.read(run, name, [suite])
    table = read[key].tables[suite]
    return claims.rights(read[key].networks, table, network, experiment.chosen_on)


def write(rows: Sequence[Mapping[str, Any]], file: Any) -> None:
    """Puts rows into a ledger, and the page made of it beside it, evidence.md."""
    from advadapters.evaluation import ledger
    from advadapters.runs import workdir

    old = read_ledger(file) if file.exists() else []
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = ledger.merged(old, rows)
    workdir.write_text(file, ledger.dump(rows))
    page = ledger.evidence_page(rows, file.name)
    workdir.write_text(file.with_name("evidence.md"), page)


def read_ledger(file: Any) -> list[Mapping[str, Any]]:
    """The rows of a ledger; raises UsageError where it cannot be read."""
    from advadapters.evaluation import ledger

    try:
        return ledger.load(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the ledger {file}: {error}") from None


def about(experiment: Experiment, study_flags: Any) -> dict[str, Any]:
    """Fields of all rows: where the claims are from, the data, and the command."""
    import jax

    text = flags.command("study", study_flags, left_out=("workdir", "minutes", "ledger"))
    return {
        "paper": experiment.paper,
        "data": experiment.data,
        "at_scale": experiment.at_scale,
        "command": text.replace(f"{ROOT}{os.sep}", "") + " --workdir=DIR",
        "jax": jax.__version__,
    }


def commit() -> str:
    """The commit of the code, with ", dirty" where code or configs differ from it.

    Outside of a repository, the version of the package.
    """
    import advadapters

    def git(*arguments: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", os.fspath(ROOT), *arguments], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else None

    head = (ROOT / ".git").exists() and git("rev-parse", "--short", "HEAD")
    if not head:
        return f"advadapters {advadapters.__version__}"
    changed = git("status", "--porcelain", "--", "advadapters", "configs")
    return head + (", dirty" if changed else "")


def device() -> str:
    """The devices and the CPU in words."""
    from advadapters.runs import machine

    kinds = ", ".join(f"{count} x {kind}" for kind, count in machine.devices().items())
    host = machine.host()
    return f"{kinds} ({host['cores']} cores of {host['cpu']})"


class Meter:
    """What each run of a study costs, kept in a file: pieces of work by name.

    A piece is told every ten seconds while it goes on, so a kill loses no more of it.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        self.commit = commit()  # now: later the files may be others than those that run
        self.pieces: dict[str, list[dict[str, Any]]] = {}
        if file.exists():
            with contextlib.suppress(ValueError):
                self.pieces = json.loads(file.read_text())

    @contextlib.contextmanager
    def of(self, name: str, done: bool = False) -> Iterator[None]:
        """The piece of work on a run that is done inside; none if all was done before."""
        if done:
            yield
            return
        now = datetime.datetime.now(datetime.UTC).date()
        piece: dict = {"date": now.isoformat(), "commit": self.commit, "device": device()}
        self.pieces.setdefault(name, []).append(piece)
        begun, over = (time.process_time(), time.monotonic()), threading.Event()

        def note() -> None:
            from advadapters.runs import workdir

            piece["cpu_seconds"] = time.process_time() - begun[0]
            piece["wall_seconds"] = time.monotonic() - begun[1]
            workdir.write_text(self.file, json.dumps(self.pieces, indent=1) + "\n")

        def watch() -> None:
            while not over.wait(10):
                note()

        note()
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            note()

    def total(self, names: Iterable[str]) -> dict[str, Any]:
        """What the runs of these names cost together, and when and where they were made."""
        pieces = [piece for name in sorted(names) for piece in self.pieces.get(name, ())]
        words = {
            key: "; ".join(sorted({piece[key] for piece in pieces}))
            for key in ("commit", "device", "date")
        }
        seconds = {
            key: round(sum(piece[key] for piece in pieces), 1)
            for key in ("cpu_seconds", "wall_seconds")
        }
        return words | seconds
