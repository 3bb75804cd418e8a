"""Claims about trained networks: what is compared, and the rule that judges it.

A claim is plain data. Its "test" says what is compared, and every test comes down to
comparisons: that one row beats another by more than a margin.

  more    rows=((A, B), ...): A - B > margin for each pair
  within  rows=((A, B), ...): A and B are less than the margin apart, for each pair
  any     rows=((A, B), ...): A - B > margin for at least one pair
  front   networks=(N, ...) of one variant, suites=(first, second): from the first network
          to the last the first suite falls and the second rises; the ends are apart in
          both, and no step between neighbours goes back by the margin

A row is (variant, network, suite): a config's variant; which of its networks ("lambda=0.2",
"clean=0.5,linf=0.5", "" for the only one); and a suite of the config, or EVALUATION:SUITE
of an evaluation of its own. The network "best" is the one that is right most often on some
of the images, "best mode" the same without soups; both are judged on the other images.

The rule: pairs are formed by image and averaged over the seeds. A comparison is decided if
every seed is on the same side of the margin, and the 95% interval of the mean difference
over images too; several comparisons of one claim share the 5% by Holm's steps. A claim
holds if all its comparisons are decided as it says (for "any": one), does not hold if one
is decided the other way (for "any": all), and is not tested otherwise, or on one seed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from advadapters import soups
from advadapters.errors import UsageError, pick
from advadapters.evaluation.accuracy import Table
from advadapters.intervals import paired, two_sided
from advadapters.networks import ENSEMBLE, Identity
from advadapters.shapes import AnyArray, Bool, Float, Int
from advadapters.soups.selection import holm

Place = tuple[str, str, str]  # variant, network, suite
Claim = Mapping[str, Any]  # as a config states it
# (numbers of images, which of them are right); as many of each, but of any number.
Rights = tuple[Int[AnyArray, "..."], Bool[AnyArray, "..."]]
HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not tested"
LEVEL = 0.05
SEEDS = 2  # fewer say nothing of a method
KEYS = {"more": ("rows",), "within": ("rows", "margin"), "any": ("rows",)} | {
    "front": ("variant", "networks", "suites", "margin")
}
COMMON = ("id", "sentence", "place", "test")


class Comparison(NamedTuple):
    """That `first` is right more often than `second` by more than the margin."""

    first: Place
    second: Place
    margin: float = 0.0


class Outcome(NamedTuple):
    """What a comparison came to; accuracies are shares of N common images.

    values: [(first, second), ...] and by_seed [S]: accuracies and differences of each
    seed. difference: their mean; low, high, error: see `intervals.paired`, over images.
    p: two-sided, that the difference is the margin.
    """

    values: list[tuple[float, float]]
    by_seed: list[float]
    difference: float
    low: float
    high: float
    error: float
    p: float
    images: int
    margin: float

    @property
    def side(self) -> int:
        """1 or -1 where every seed is above or below the margin, else 0."""
        signs = {np.sign(d - self.margin) for d in self.by_seed}
        return int(signs.pop()) if len(signs) == 1 else 0


def check(claim: Claim) -> None:
    """Raises UsageError for a claim that lacks a key, or has one that its test has not."""
    name = claim.get("id", "without id")
    test = pick(KEYS, claim.get("test", ""), f"test of claim {name}")
    needed = {*COMMON, *test}
    if wrong := sorted(needed - claim.keys() or claim.keys() - needed - {"margin"}):
        raise UsageError(f"claim {name}: {wrong[0]} is missing or unknown")
    if not all(
        len(row) == 3 for comparison in comparisons(claim) for row in comparison[:2]
    ):
        raise UsageError(f"claim {name}: rows are (variant, network, suite)")


def comparisons(claim: Claim) -> list[Comparison]:
    """[Comparison] that a claim comes down to."""
    margin = claim.get("margin", 0.0)
    if claim["test"] == "front":
        return front(claim["variant"], claim["networks"], claim["suites"], margin)
    pairs = [(tuple(a), tuple(b)) for a, b in claim["rows"]]
    if claim["test"] == "within":
        both = [pair for a, b in pairs for pair in ((a, b), (b, a))]
        return [Comparison(a, b, -margin) for a, b in both]
    return [Comparison(a, b, margin) for a, b in pairs]


def rows(claim: Claim) -> list[Place]:
    """[row] that a claim is about, each once; of a front suite by suite."""
    if claim["test"] == "front":
        return sum(lines_of(claim["variant"], claim["networks"], claim["suites"]), [])
    pairs = comparisons(claim)
    return list(dict.fromkeys(row for pair in pairs for row in pair[:2]))


def lines_of(
    variant: str, networks: Sequence[str], suites: Sequence[str]
) -> list[list[Place]]:
    """The rows of each suite along the networks."""
    return [[(variant, name, suite) for name in networks] for suite in suites]


def front(
    variant: str, networks: Sequence[str], suites: Sequence[str], margin: float
) -> list[Comparison]:
    """The comparisons of a front, its two ends first."""
    falls, rises = lines_of(variant, networks, suites)
    lines = [falls, rises[::-1]]  # each falls from here on
    ends = [Comparison(line[0], line[-1]) for line in lines]
    steps = [
        Comparison(a, b, -margin)
        for line in lines
        for a, b in zip(line, line[1:], strict=False)
    ]
    return ends + steps


def compare(
    firsts: Sequence[Rights], seconds: Sequence[Rights], margin: float = 0.0
) -> Outcome:
    """The Outcome of a comparison; firsts, seconds: `rights` of each seed.

    Only images that both have in every seed count. Raises ValueError where there is none.
    """
    common = firsts[0][0]
    for index, _ in (*firsts, *seconds):
        common = np.intersect1d(common, index)
    if not len(common):
        raise ValueError("the rows have no image in common")
    first, second = (
        np.array([right_on(common, *name) for name in many]) for many in (firsts, seconds)
    )
    differences = (first - second).mean(axis=0)
    low, high, error = paired(differences.tolist())
    z = ((low + high) / 2 - margin) / error
    values = list(zip(first.mean(axis=1).tolist(), second.mean(axis=1).tolist()))  # noqa: B905
    by_seed = (first - second).mean(axis=1).tolist()
    mean = float(differences.mean())
    return Outcome(
        values, by_seed, mean, low, high, error, two_sided(z), len(common), margin
    )


def right_on(
    common: Int[AnyArray, " n"], index: Int[AnyArray, " N"], right: Bool[AnyArray, " N"]
) -> Float[AnyArray, " n"]:
    """float [n]: right on these of the images; each number is in index once."""
    order = np.argsort(index)
    return np.asarray(right, float)[order[np.searchsorted(index, common, sorter=order)]]


def sides(outcomes: Sequence[Outcome]) -> list[int]:
    """[1, -1 or 0] of each Outcome: decided above its margin, below it, or not."""
    adjusted = holm([outcome.p for outcome in outcomes])
    pairs = zip(outcomes, adjusted, strict=True)
    return [outcome.side if p <= LEVEL else 0 for outcome, p in pairs]


def verdict(outcomes: Sequence[Outcome], test: str = "more") -> tuple[str, str]:
    """(verdict, why) of a claim's outcomes; why: in words, "" where there is no more."""
    seeds = len(outcomes[0].by_seed)
    decided = sides(outcomes)
    needed, enough = (any, all) if test == "any" else (all, any)
    if seeds < SEEDS:
        return UNTESTED, f"{seeds} seed only: at least {SEEDS} are needed"
    if needed(side == 1 for side in decided):
        return HOLDS, ""
    if enough(side == -1 for side in decided):
        return FAILS, ""
    pairs = zip(outcomes, decided, strict=True)
    undecided = [outcome for outcome, side in pairs if not side]
    worst = max(undecided or outcomes, key=lambda outcome: outcome.p)
    return UNTESTED, f"cannot tell: {what_would_tell(worst)}"


def what_would_tell(outcome: Outcome) -> str:
    """How many images or seeds like these would decide a comparison, in words."""
    gap = abs(outcome.difference - outcome.margin)
    if not gap:
        return "the difference is the margin, which no number of images tells apart"
    if not outcome.side:
        spread = np.std(outcome.by_seed, ddof=1)
        seeds = max(len(outcome.by_seed) + 1, math.ceil((1.96 * spread / gap) ** 2))
        return f"the seeds disagree; about {seeds} seeds would tell"
    deviation = outcome.error * math.sqrt(outcome.images + 2)
    images = max(outcome.images + 1, math.ceil((1.96 * deviation / gap) ** 2))
    return f"the interval holds the margin; about {images:,} images would tell"


def number(networks: Sequence[Identity], text: str) -> int:
    """The number of the network that a row's text names.

    Raises UsageError where it was not evaluated.
    """
    if not text and len(networks) == 1:
        return 0
    for n, network in enumerate(networks):
        if network.kind == "lambda":
            whole = network.width in (None, 1.0)
            same = text == f"lambda={network.lambda_:g}" and whole
        else:
            same = network.kind != ENSEMBLE and is_mixture(text, network.mixture)
        if same:
            return n
    raise UsageError(f"no network {text!r} was evaluated")


def is_mixture(text: str, mixture: Mapping[str, float]) -> bool:
    """Whether a text like "clean=0.5,linf=0.5" names a mixture {domain: weight}."""
    try:
        weights = soups.parse(text, list(mixture))
    except ValueError:
        return False
    return bool(np.allclose(weights, list(mixture.values()), atol=1e-6))


CHOSEN = {"best": ("mode", "soup"), "best mode": ("mode",)}


def rights(networks: Sequence[Identity], table: Table, text: str, chosen_on: int) -> Rights:
    """(numbers [N] of images, right [N]) of a row's network in a table.

    chosen_on: of networks that are chosen, on how many images; the rest is what they are
    judged on.
    """
    if text not in CHOSEN:
        return table.index, table.right[number(networks, text)]
    pool, unseen = soups.split_images(len(table.index), chosen_on)
    of = [n for n, network in enumerate(networks) if network.kind in CHOSEN[text]]
    right = table.right
    best = of[soups.best(right[of][:, pool].mean(axis=1))]
    return table.index[unseen], right[best, unseen]
