"""The attacks of AutoAttack and other cascades, by name, and the versions made of them.

The parts and their settings are those of Croce and Hein's AutoAttack.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from advadapters import losses
from advadapters.attacks import checks
from advadapters.attacks.apgd import run_apgd
from advadapters.attacks.contract import Outcome, Problem
from advadapters.attacks.fab import run_fab
from advadapters.attacks.malt import CANDIDATES
from advadapters.attacks.pgd import pgd
from advadapters.attacks.pma import run_pma
from advadapters.attacks.square import run_square
from advadapters.errors import UsageError, pick
from advadapters.shapes import Classes

# Attacks in their order: names, or (name, settings).
Version = tuple[Any, ...] | list[Any]

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
PLUS = (
    ("apgd-ce", dict(restarts=5)),
    ("apgd-dlr", dict(restarts=5)),
    *("fab", "fab-random", "square"),
    ("apgd-t", dict(targets=9)),
    "fab-t",
)
# In the order of images broken per forward pass, each attack on what those before it left,
# on the networks of tests/benchmarks/fast_suite.py, which prints that order. What it finds
# and costs beside "standard" is in docs/autoattack.md. No part works without gradients.
FAST = (
    ("pma-rival", dict(steps=20)),
    ("pma-own", dict(steps=100)),
    ("malt", dict(steps=50)),
    ("fab-malt", dict(targets=3)),
)
# In L1 the probability margin finds little, and cross-entropy from several starts most.
FAST_L1 = ("apgd-ce", "malt")


class Stage(NamedTuple):
    """One attack of a cascade, run `rounds` times, each on what is left.

    targets: 0, or for how many of the most likely other classes of the clean image the
    attack goes, one a round. restarts: how often all that is done, from other draws.
    takes: which of its settings can be set from outside. candidates: 0, or of how many of
    the most likely classes MALT chooses the targets.
    """

    name: str
    run: Callable[..., Outcome]
    restarts: int
    targets: int
    settings: dict[str, Any]
    takes: tuple[str, ...]
    candidates: int = 0

    @property
    def rounds(self) -> int:
        """How often it is run."""
        return self.restarts * max(self.targets, 1)

    @property
    def passes(self) -> int:
        """What a round costs in forward passes, about: a step goes backward, too."""
        parameters = inspect.signature(self.run).parameters
        known = {name: parameter.default for name, parameter in parameters.items()}
        known |= self.settings
        steps = known["queries"] if "queries" in known else 3 * known["steps"]
        return steps * known.get("expectation", 1)

    @property
    def fixed(self) -> tuple[Callable[..., Outcome], tuple, bool]:
        """What its program is made for, hashable: the first arguments of `attack_batch`."""
        return self.run, tuple(sorted(self.settings.items())), self.targets > 0

    @property
    def plan(self) -> list:
        """All that its result depends on, as plain values."""
        settings = [f"{key}={value}" for key, value in sorted(self.settings.items())]
        if self.candidates:
            settings.append(f"candidates={self.candidates}")
        return [self.name, self.restarts, self.targets, settings]


def versions(norm: str) -> dict[str, Version]:
    """{name: attacks of the version, names or (name, settings)} for a norm."""
    fast = FAST_L1 if norm == "l1" else FAST
    return {
        "standard": STANDARD,
        "plus": PLUS,
        "rand": ("apgd-ce", "apgd-dlr"),
        "fast": fast,
        "fast+standard": fast + tuple(part for part in STANDARD if part not in fast),
    }


def run_multitargeted(problem: Problem, *, targets: Classes, steps: int = 20) -> Outcome:
    """PGD on one target's logit difference (Gowal et al. 2019)."""
    points = pgd(
        problem.logits_fn, problem.images, problem.labels, problem.keys,
        norm=problem.norm, eps=problem.eps, steps=steps, loss="logit_difference",
        targets=targets, keep="best",
    )  # fmt: skip
    broken = losses.misclassified(problem.logits_fn(points), problem.labels)
    return Outcome(points, broken, jnp.int32(steps + 2))


def stages(version: str | Version, norm: str, classes: int, **settings: Any) -> list[Stage]:
    """The stages of a version in `versions`, or of attacks that are named.

    version: else a tuple of names from `parts`, or of (name, settings) pairs. settings: of
    all attacks that take them, see `autoattack`. Raises UsageError.
    """
    listed = pick(versions(norm), version, "suite") if isinstance(version, str) else version
    pairs = [(part, {}) if isinstance(part, str) else tuple(part) for part in listed]
    names = [pair[0] for pair in pairs]
    if not names or len(set(names)) != len(names):
        raise UsageError(f"version must be different attack names, got {version!r}")
    table = parts(norm, classes)
    chosen = [pick(table, name, "attack") for name in names]
    if version == "rand":
        draws = dict(expectation=20)
        chosen = [s._replace(restarts=1, settings=s.settings | draws) for s in chosen]
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if not any(name in stage.takes for stage in chosen):
            raise UsageError(f"none of the attacks {', '.join(names)} takes {name}")
    for number, (stage, (_, special)) in enumerate(zip(chosen, pairs, strict=True)):
        common = {name: value for name, value in given.items() if name in stage.takes}
        # What is given for all changes a version's own settings, but not those of a pair.
        both = special | common if isinstance(version, str) else common | special
        chosen[number] = _configured(stage, both, classes)
    return chosen


def _configured(stage: Stage, settings: dict[str, Any], classes: int) -> Stage:
    """The stage with other settings; raises UsageError for what it does not take."""
    for name in settings:
        if name not in stage.takes:
            raise UsageError(
                f"{stage.name} takes no {name!r}; there are: {', '.join(stage.takes)}"
            )
    settings = {name: checks.count(value, name) for name, value in settings.items()}
    fields = ("restarts", "targets", "candidates")
    counts = {k: v for k, v in settings.items() if k in fields}
    if "targets" in counts:
        counts["targets"] = min(counts["targets"], classes - 1)
    rest = {k: v for k, v in settings.items() if k not in counts}
    stage = stage._replace(settings=stage.settings | rest, **counts)
    if stage.candidates and stage.candidates < stage.targets:
        raise UsageError(
            f"{stage.name} chooses {stage.targets} targets of {stage.candidates} "
            "candidates: give more candidates, or fewer targets"
        )
    return stage


def parts(norm: str, classes: int) -> dict[str, Stage]:
    """{name: Stage} with the settings of the standard version for this norm."""
    others = classes - 1
    restarts, targets = (5, min(5, others)) if norm == "l1" else (1, min(9, others))
    nine = min(9, others)
    untargeted, aimed = ("steps", "restarts"), ("steps", "targets", "candidates")
    targeted = (*aimed, "restarts")
    rows = (
        Stage("apgd-ce", run_apgd, restarts, 0, dict(loss="cross_entropy"), untargeted),
        Stage("apgd-dlr", run_apgd, restarts, 0, dict(loss="dlr"), untargeted),
        Stage("apgd-t", run_apgd, 1, targets, dict(loss="dlr"), targeted),
        # FAB begins at the image and draws nothing: a restart would be the same again.
        Stage("fab", run_fab, 1, 0, {}, ("steps",)),
        Stage("fab-random", run_fab, 4, 0, dict(random_start=True), untargeted),
        Stage("fab-t", run_fab, 1, nine, {}, aimed),
        Stage("fab-malt", run_fab, 1, nine, {}, aimed, CANDIDATES),
        Stage("square", run_square, 1, 0, {}, ("queries", "restarts")),
        Stage("multitargeted", run_multitargeted, 1, nine, {}, targeted),
        Stage("malt", run_apgd, 1, targets, dict(loss="dlr"), targeted, CANDIDATES),
        Stage("pma-own", run_pma, 1, 0, dict(first="own"), untargeted),
        Stage("pma-rival", run_pma, 1, 0, dict(first="rival"), untargeted),
    )
    return {stage.name: stage for stage in rows}
