"""A cascade: each attack runs on the images that are still robust."""

import sys
import time
from collections.abc import Callable

import numpy as np

from advadapters import hosts, rng
from advadapters.attacks.attacker import Attacker
from advadapters.attacks.report import written
from advadapters.attacks.resume import NoJournal
from advadapters.attacks.state import Cost, State
from advadapters.attacks.versions import Stage
from advadapters.shapes import Int, PRNGKey

Progress = Callable[..., None]


def run_stages(
    attacker: Attacker,
    state: State,
    todo: list[Stage],
    key: PRNGKey,
    log: NoJournal,
    progress: Progress,
    tell: Callable[[str, State], None],
    flops: float,
) -> None:
    """The whole cascade; accuracies of a random network are those on fresh draws.

    log: records each batch, and replays those of an earlier call. flops: of a forward pass
    on one image, 0 if not known.
    """

    def accuracy() -> float:
        if not attacker.judges:
            return float(state.share.mean())
        fresh = rng.fold(key, "fresh")  # never seen by an attack, nor used to choose
        state.fresh = attacker.judged(state.rows, state.labels, fresh).astype(float)
        return float(state.fresh.mean())

    state.accuracies["clean"] = accuracy()
    tell("clean", state)
    for number, stage in enumerate(todo):
        log.replay(state, number)
        _run_stage(attacker, state, number, stage, key, log, progress, flops)
        state.accuracies[stage.name] = accuracy()
        tell(stage.name, state)


class Telling:
    """Called after each stage, says on stderr what is left and how long it took."""

    def __init__(self, norm: str, eps: float) -> None:
        self.threat, self.since = f"{norm} {written(eps)}", time.monotonic()

    def __call__(self, name: str, state: State) -> None:
        if not hosts.first():
            return
        now, value = time.monotonic(), state.accuracies[name]
        print(
            f"AutoAttack {self.threat}, after {name}: accuracy {100 * value:.2f}% of "
            f"{len(state.labels)} images, {now - self.since:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        self.since = now


def _run_stage(
    attacker: Attacker,
    state: State,
    number: int,
    stage: Stage,
    key: PRNGKey,
    log: NoJournal,
    progress: Progress,
    flops: float,
) -> None:
    """All rounds of one attack; flops: of a forward pass on one image, 0 if not known."""
    goals, choosing = _targets_of(attacker, state, number, stage, flops)
    sizes = {attacker.shape(len(state.labels))}
    for round_ in range(stage.rounds):
        left = state.left(number, round_)
        total = len(left)
        work = flops * stage.passes * (stage.rounds - round_)  # for each row, if it stays
        for index, rows in attacker.batches(left, sizes, work):
            targets = goals[index, round_ % max(stage.targets, 1)]
            batch = attacker.attack(stage, state, index, rows, targets, key, round_)
            # So that a journal, which holds batches, has what choosing them cost.
            for kind, value in choosing.items():
                batch.cost[kind] += value
            choosing = {}
            log.write(state, number, round_, stage.name, batch)
            state.update(number, round_, stage.name, batch)
            left = left[len(index) :]
            progress(
                stage=stage.name,
                round=round_ + 1,
                rounds=stage.rounds,
                done=total - len(left),
                total=total,
                robust=float(state.share.mean()),
            )


def _targets_of(
    attacker: Attacker, state: State, number: int, stage: Stage, flops: float
) -> tuple[Int[np.ndarray, "N targets"], Cost]:
    """(classes int32 [N, targets] that an attack goes for, one a round, cost of choosing).

    Zeros for an attack without targets.
    """
    if not stage.targets:
        return np.zeros((len(state.labels), 1), np.int32), {}
    order = np.argsort(-state.logits, axis=1, kind="stable")  # most likely first
    others = order[order != state.labels[:, None]].reshape(len(order), -1)
    goals = others[:, : stage.targets].astype(np.int32)
    left = np.unique([i for r in range(stage.rounds) for i in state.left(number, r)])
    cost = {}
    if stage.candidates and len(left):
        goals[left], cost = attacker.nearest(stage, state, left, flops)
    return goals, cost
