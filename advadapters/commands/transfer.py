"""usage: advadapters transfer --workdir=DIR [--mixture=... | --lambda=...] [--suite=...]

Is the knob safe? Attacks every network through itself and tries what comes out on all
others: a matrix of robust accuracy, and for each network the worst case over the attacked
ones, for an attacker who does not know which is deployed and tries them all.

{flags}

Prints the tables and writes the rows to DIR/transfer.json.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advadapters.errors import UsageError, pick
from advadapters.flags import Choice, Examples, Overrides, Statistics, Step, Suites, Workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Choice):
    """The flags of this verb."""

    workdir: Workdir
    suite: Suites = ()
    statistics: Statistics = None
    examples: Examples = None
    step: Step = "latest"
    overrides: Overrides = ()


def main(flags: Flags) -> int:
    """Returns the exit code."""
    from advadapters.evaluation import transfer
    from advadapters.evaluation.rows import dump
    from advadapters.runs import evaluating, image_choice, opening, workdir

    opened = opening.open_trained(flags.workdir, flags.overrides)
    run = opened.run
    cases = run.method.read_cases(flags, run.evaluation.cases)
    if len({case.network for case in cases}) > 1:
        raise UsageError(
            "name networks of one width, and no ensembles: attacks go between those"
        )
    asked = flags.suite or run.evaluation.suites
    if not asked:
        raise UsageError(
            "config.evaluation.suites has no attack: give one, like "
            '--config.evaluation.suites.mine=\'{"name": "pgd", ...}\''
        )
    suites = {name: pick(run.evaluation.suites, name, "suite") for name in asked}
    test = image_choice.test_images(run, flags.examples)
    variables, step = opening.restore_variables(opened, flags.step)
    cases = evaluating.settle_statistics(opened, variables, cases, flags.statistics)
    rows = []
    for suite, counts, examples in matrices(opened, variables, test, cases, suites):
        of_suite = transfer.rows(cases, suite, counts, examples, step)
        rows += of_suite
        print(transfer.transfer_table(of_suite, suite))
        print("".join(f"{line}\n" for line in transfer.strange(of_suite)), end="")
    file = opened.folder / "transfer.json"
    workdir.write_text(file, dump(rows))
    print(f"written to {file}")
    return 0


def matrices(
    opened: Any,
    variables: Any,
    split: Any,
    cases: Sequence[Any],
    suites: Mapping[str, Callable],
) -> list[tuple[str, Any, int]]:
    """[(suite, `transfer.Counts`, examples)] of {suite: attack}, in one pass."""
    import numpy as np

    from advadapters import builders
    from advadapters.evaluation import fitting, transfer
    from advadapters.runs import asking

    run, mesh = opened.run, opened.mesh
    began, batches = time.monotonic(), builders.eval_batches(run, split)
    first = next(batches)
    network, knobs = run.networks[cases[0].network], [case.knob for case in cases]
    wanted = [
        fitting.Wanted(transfer.make_attacker(network, attack, mesh=mesh), knobs, 1, first)
        for attack in suites.values()
    ]
    shown = {"images": first["images"].astype(np.float32), "labels": first["labels"]}
    judge, most = transfer.make_judge(network, mesh=mesh), run.evaluation.at_once
    wanted.append(fitting.Wanted(judge, knobs, fitting.most(mesh, most), shown))
    *attackers, judge = asking.fitted(opened, variables, wanted)
    meter = asking.Meter(suites, began)
    counts, examples = transfer.matrices(
        attackers,
        judge,
        variables,
        knobs,
        itertools.chain([first], batches),
        mesh=mesh,
        size=len(split),
        progress=meter.show,
    )
    meter.close(examples, len(split))
    pairs = zip(suites, counts, strict=True)
    return [(suite, of_suite, examples) for suite, of_suite in pairs]
