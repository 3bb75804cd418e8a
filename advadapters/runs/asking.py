"""What a run's networks are asked of a split, all of it in one pass over the images."""

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from advadapters import builders, hosts
from advadapters.evaluation import accuracy, fitting
from advadapters.networks import Case
from advadapters.runs.context import OpenRun


class Question(NamedTuple):
    """A suite: which networks, and how they are asked.

    cases: [`networks.Case`]. predictor: name of a network -> the jitted
    `accuracy.make_predictor`. move: batch on the devices -> the batch that they are asked
    of.
    """

    cases: Sequence[Case]
    predictor: Callable[[Any], Any]
    move: Callable[[Any], Any] = lambda batch: batch


def predictor_of(
    opened: OpenRun, attack: Callable | None, network: Any
) -> Callable[..., Any]:
    """The jitted predictor for an attack; made once a run, so that it is traced once."""
    cache = opened.cache
    if (attack, network) not in cache:
        cache[attack, network] = accuracy.make_predictor(
            opened.run.networks[network], attack, mesh=opened.mesh
        )
    return cache[attack, network]


def ask(
    opened: OpenRun,
    variables: Any,
    split: Any,
    questions: Mapping[Any, Question],
    quiet: bool = False,
) -> dict[Any, accuracy.Table]:
    """{suite: Table} of all cases of each {suite: Question}, in one pass over a split.

    How many networks and images a call takes follows from the compiler's plans, see
    `fitting`; the config has the most. quiet: whether nothing is said.
    """
    began, batches = time.monotonic(), builders.eval_batches(opened.run, split)
    first = next(batches)
    most = fitting.most(opened.mesh, opened.run.evaluation.at_once)
    programs = programs_of(opened, variables, questions, first, most)
    parts = list(by_network(questions))
    asked = [
        accuracy.Asked([case.knob for case in cases], program, questions[suite].move)
        for (suite, _, cases), program in zip(parts, programs, strict=True)
    ]
    meter = Meter(questions, began, quiet)
    tables = accuracy.tables(
        asked,
        variables,
        itertools.chain([first], batches),
        mesh=opened.mesh,
        size=len(split),
        progress=meter.show,
    )
    meter.close(len(tables[0].labels), len(split))
    answers = {suite: {} for suite in questions}
    for (suite, _, cases), table in zip(parts, tables, strict=True):
        answers[suite] |= zip(map(id, cases), table.predictions, strict=True)
    together = {
        suite: np.stack([answers[suite][id(case)] for case in question.cases])
        for suite, question in questions.items()
    }
    first = tables[0]
    return {suite: first._replace(predictions=p) for suite, p in together.items()}


def by_network(
    questions: Mapping[Any, Question],
) -> Iterator[tuple[Any, Any, list[Case]]]:
    """Iterates over (suite, name of a network, its cases), which one program answers."""
    for suite, question in questions.items():
        for network in dict.fromkeys(case.network for case in question.cases):
            yield suite, network, [c for c in question.cases if c.network == network]


def programs_of(
    opened: OpenRun,
    variables: Any,
    questions: Mapping[Any, Question],
    batch: dict[str, Any],
    most: int,
) -> list[fitting.Program]:
    """[`fitting.Program`] of each of `by_network`, for batches like this one.

    variables: arrays, or their shapes and places. batch: of any number of rows. most: how
    many networks a call takes at most.
    """
    wanted = [
        fitting.Wanted(
            questions[suite].predictor(network),
            [case.knob for case in cases],
            most,
            batch,
        )
        for suite, network, cases in by_network(questions)
    ]
    return fitted(opened, variables, wanted)


def fitted(
    opened: OpenRun, variables: Any, wanted: Sequence[fitting.Wanted]
) -> list[fitting.Program]:
    """[`fitting.Program`] of all [`fitting.Wanted`], on the devices of a run."""
    cache, mesh = opened.cache, opened.mesh
    if "room" not in cache:
        cache["room"] = fitting.room(mesh, variables)
    return fitting.programs(
        wanted,
        variables,
        mesh=mesh,
        rows=opened.run.evaluation.batch_size // mesh.size,
        room=cache["room"],
        cache=cache,
    )


class Meter:
    """A progress line for a pass over suites: rewritten on a terminal, else every 10 s.

    began: when it was asked for, by time.monotonic. quiet: whether nothing is said.
    """

    def __init__(self, suites: Iterable[Any], began: float, quiet: bool = False) -> None:
        names = list(map(str, suites))
        more = f" and {len(names) - 1} more suites"
        self.name = names[0] + more if len(names) > 4 else ", ".join(names)
        self.began, self.quiet = began, quiet
        self.started = self.shown = time.monotonic()

    def show(self, share: float) -> None:
        """Called with the share of the work that is done."""
        now, terminal = time.monotonic(), sys.stderr.isatty()
        soon = now - self.shown < (0.2 if terminal else 10)
        if self.quiet or soon or not hosts.first():
            return
        self.shown = now
        left = (now - self.started) * (1 - share) / share
        end = "\r" if terminal else "\n"
        text = f"evaluating {self.name}: {100 * share:.0f}%  ETA {left:.0f} s   "
        print(text, end=end, file=sys.stderr, flush=True)

    def close(self, counted: int, size: int) -> None:
        """The last word; counted: of `size` images."""
        if self.quiet:
            return
        seconds = time.monotonic() - self.began
        print(f"evaluated {self.name} in {seconds:.0f} s", flush=True)
        if counted < size:
            print(
                f"warning: {size - counted:,} of {size:,} images of {self.name} are left "
                "out: they cannot be decoded, or have no label"
            )
