"""Mixtures: tuples of weights [K] that sum to 1; single ones, lines and grids of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import SupportsFloat

TOLERANCE = 1e-6  # by which a sum of weights may miss 1
SEPARATORS = ",;=|"  # in mixtures, and between the columns of tables

Weights = tuple[float, ...]


def check(weights: Iterable[SupportsFloat], convex: bool = False) -> Weights:
    """The weights [K] as a tuple of floats, if they are those of a soup.

    Networks that were scaled or added up are no soup, so the weights must sum to 1.
    Weights below 0 and above 1 extrapolate.

    Args:
      weights: one for each domain.
      convex: whether weights below 0 are refused, as for mixtures of probabilities.

    Raises:
      ValueError: a weight is not finite, or below 0 where that is refused, or the sum
        is not 1 within `TOLERANCE`.

    >>> soups.check((1.1, -0.1))
    (1.1, -0.1)
    """
    row = tuple(map(float, weights))
    text = ", ".join(f"{weight:.6g}" for weight in row)
    if not all(map(math.isfinite, row)):
        raise ValueError(f"weights must be finite, got {text}")
    if abs(sum(row) - 1) > TOLERANCE:
        raise ValueError(
            f"weights must sum to 1, got {text} with the sum {sum(row):.6g}; "
            "thirds are exact as 1/3, or as 0.33, 0.33 and 0.34"
        )
    if convex and min(row) < 0:
        raise ValueError(f"probabilities are mixed by weights of at least 0, got {text}")
    return row


def check_names(names: Iterable[str]) -> None:
    """Checks that mixtures and tables can be written with these names of domains.

    Raises:
      ValueError: a name is empty, has blanks around it, or has one of , ; = | or a
        character that cannot be printed.

    >>> soups.check_names(["clean", "linf=4"])
    Traceback (most recent call last):
    ValueError: the name 'linf=4' has '=', which separates names
    """
    for name in names:
        if not name or name != name.strip() or not name.isprintable():
            raise ValueError(
                f"the name {name!r} is empty, has blanks around it or no print"
            )
        if wrong := [character for character in SEPARATORS if character in name]:
            raise ValueError(f"the name {name!r} has {wrong[0]!r}, which separates names")


def weights_of(
    mixture: Mapping[str, SupportsFloat], domains: Sequence[str], convex: bool = False
) -> Weights:
    """The weights [K] of a mixture that is written by the names of domains.

    Args:
      mixture: {domain: weight}; domains that are left out have weight 0.
      domains: the names of all K domains in order.
      convex: see `check`.

    Raises:
      ValueError: a domain is unknown, none is named, or `check` refuses the weights.

    >>> soups.weights_of({"linf": 1}, ("clean", "linf"))
    (0.0, 1.0)
    """
    unknown = [domain for domain in mixture if domain not in domains]
    if unknown or not mixture:
        fault = f"unknown domain {unknown[0]!r}" if unknown else "no domain is named"
        raise ValueError(f"{fault}; there are: {', '.join(domains)}")
    return check([mixture.get(domain, 0.0) for domain in domains], convex)


def one_hot(count: int, k: int) -> Weights:
    """The mixture of `count` domains that is domain k alone.

    >>> soups.one_hot(3, 1)
    (0.0, 1.0, 0.0)
    """
    return tuple(float(i == k) for i in range(count))


def average(count: int, members: Iterable[int]) -> Weights:
    """The mixture of `count` ingredients that gives the members equal weights.

    With all of them as members it is the uniform soup.

    >>> soups.average(4, [0, 2])
    (0.5, 0.0, 0.5, 0.0)
    """
    members = set(members)
    return tuple((k in members) / len(members) for k in range(count))


def line_between(
    count: int, first: int, second: int, weights: Iterable[SupportsFloat]
) -> list[Weights]:
    """Mixtures beta * first + (1 - beta) * second, Eq. 3 of Rebuffi et al. (2023).

    Args:
      count: the number of domains.
      first: the number of one domain.
      second: the number of another domain.
      weights: the values of beta; those outside [0, 1] extrapolate.

    >>> soups.line_between(3, 0, 2, [0.25, 1])
    [(0.25, 0.0, 0.75), (1.0, 0.0, 0.0)]
    """
    return [
        check(beta * (k == first) + (1 - beta) * (k == second) for k in range(count))
        for beta in map(float, weights)
    ]


def lines(count: int, weights: Iterable[SupportsFloat]) -> list[Weights]:
    """The lines between domain 0 and each other domain.

    A single domain has only one mixture.

    Args:
      count: the number of domains.
      weights: those of domain 0, as for `line`.

    >>> soups.lines(3, [0.5])
    [(0.5, 0.5, 0.0), (0.5, 0.0, 0.5)]
    """
    if count == 1:
        return [(1.0,)]
    weights = list(weights)
    return [m for k in range(1, count) for m in line_between(count, 0, k, weights)]


def simplex(count: int, step: float, extrapolation: float = 0.0) -> list[Weights]:
    """All mixtures of `count` domains whose weights are multiples of `step`.

    The weights are whole steps that sum to n = 1 / step exactly, and each is divided by n
    once. With m = extrapolation / step there are C(n + K m + K - 1, K - 1) of them. The
    largest weight is 1 + (K - 1) extrapolation.

    Args:
      count: the number K of domains.
      step: the distance between weights, 1 / n for a whole number n.
      extrapolation: how far below 0 weights may be, a multiple of the step.

    Raises:
      ValueError: 1 or the extrapolation is no multiple of the step.

    >>> soups.simplex(2, 0.5)
    [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    """
    if not 0 < step <= 1 or not 0 <= extrapolation < math.inf:
        raise ValueError(f"a grid of step {step} and extrapolation {extrapolation}")
    steps, below = round(1 / step), round(extrapolation / step)
    if abs(steps * step - 1) > 1e-6 or abs(below * step - extrapolation) > 1e-6:
        raise ValueError(f"1 and extrapolation {extrapolation} are no multiples of {step}")
    return [
        tuple((share - below) / steps for share in mixture)
        for mixture in _compositions(steps + count * below, count)
    ]


def _compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    """All ways to write a number as a sum of so many whole numbers of at least 0."""
    if parts == 1:
        return [(total,)]
    return [
        (first, *rest)
        for first in range(total, -1, -1)
        for rest in _compositions(total - first, parts - 1)
    ]


def parse(text: str, domains: Sequence[str], convex: bool = False) -> Weights:
    """The weights [K] of a mixture that is written as text.

    Args:
      text: DOMAIN=WEIGHT, separated by commas. Weights may be fractions, and blanks
        around names and weights are fine.
      domains: the names of all K domains in order.
      convex: see `check`.

    Raises:
      ValueError: a part has no "=", a domain is named twice, a weight is not a number,
        or `weights_of` refuses the mixture.

    >>> soups.parse("clean=1/4, linf=0.75", ("clean", "linf", "l2"))
    (0.25, 0.75, 0.0)
    """
    mixture = {}
    for part in text.split(","):
        name, equals, value = map(str.strip, part.rpartition("="))
        if not equals:
            raise ValueError(f"{text!r}: {part.strip()!r} is no DOMAIN=WEIGHT")
        if name in mixture:
            raise ValueError(f"{text!r} names {name!r} twice")
        mixture[name] = number(value, f"{text!r}: ")
    try:
        return weights_of(mixture, domains, convex)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def number(text: str, where: str = "") -> float:
    """The number that a text like "0.25" or "1/4" writes.

    Args:
      text: a decimal number or a fraction.
      where: the beginning of the error message.

    Raises:
      ValueError: the text is neither.

    >>> soups.number("1/4")
    0.25
    """
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(
            f"{where}{text!r} is no number like 0.5 and no fraction like 1/3"
        ) from None
