"""Mixtures: tuples of weights [K] that sum to 1, one, a line or a grid of them."""

import math
from fractions import Fraction

TOLERANCE = 1e-6  # by which a sum of weights may miss 1
SEPARATORS = ",;=|"  # in mixtures, and between the columns of tables


def check(weights, convex=False):
    """Weights [K] as a tuple of floats, if they are those of a combination.

    Raises ValueError unless all are finite and they sum to 1 within `TOLERANCE`: networks
    that were scaled or added up are no soup. Weights below 0 and above 1 extrapolate; with
    `convex`, as for mixtures of probabilities, none may be below 0.

    >>> check((1.1, -0.1))
    (1.1, -0.1)
    """
    weights = tuple(map(float, weights))
    told = ", ".join(f"{weight:.6g}" for weight in weights)
    if not all(map(math.isfinite, weights)):
        raise ValueError(f"weights must be finite, got {told}")
    if abs(sum(weights) - 1) > TOLERANCE:
        raise ValueError(
            f"weights must sum to 1, got {told} with the sum {sum(weights):.6g}; "
            "thirds are exact as 1/3, or as 0.33, 0.33 and 0.34"
        )
    if convex and min(weights) < 0:
        raise ValueError(f"probabilities are mixed by weights of at least 0, got {told}")
    return weights


def check_names(names):
    """Raises ValueError for a name that no mixture can be written with, or no table.

    Those with one of , ; = | or a character that is not printed, and those that are empty
    or have blanks around them.
    """
    for name in names:
        if not name or name != name.strip() or not name.isprintable():
            raise ValueError(
                f"the name {name!r} is empty, has blanks around it or no print"
            )
        if wrong := [character for character in SEPARATORS if character in name]:
            raise ValueError(f"the name {name!r} has {wrong[0]!r}, which separates names")


def weights_of(mixture, domains, convex=False):
    """{domain: weight} -> weights [K] in the order of the domains, 0 where left out.

    Raises ValueError for an unknown domain and as `check` does.
    """
    unknown = [domain for domain in mixture if domain not in domains]
    if unknown or not mixture:
        told = f"unknown domain {unknown[0]!r}" if unknown else "no domain is named"
        raise ValueError(f"{told}; there are: {', '.join(domains)}")
    return check([mixture.get(domain, 0.0) for domain in domains], convex)


def one_hot(count, k):
    """The mixture that is domain k alone."""
    return tuple(float(i == k) for i in range(count))


def average(count, members):
    """The mixture that weighs these ingredients alike; all of them: the uniform soup."""
    members = set(members)
    return tuple((k in members) / len(members) for k in range(count))


def line(count, first, second, weights):
    """Mixtures beta * first + (1 - beta) * second, Eq. 3 of Rebuffi et al. (2023).

    beta outside [0, 1] extrapolates. first and second are different domain numbers.
    """
    return [
        check(beta * (k == first) + (1 - beta) * (k == second) for k in range(count))
        for beta in weights
    ]


def lines(count, weights):
    """The lines between domain 0 and each other domain; one mixture if there is one."""
    if count == 1:
        return [(1.0,)]
    return [m for k in range(1, count) for m in line(count, 0, k, weights)]


def simplex(count, step, extrapolation=0.0):
    """All mixtures whose weights are multiples of `step`, none below -extrapolation.

    The weights are whole steps that sum to n = 1 / step exactly, each divided by n once.
    With m = extrapolation / step there are C(n + K m + K - 1, K - 1) of them; the largest
    weight is 1 + (K - 1) extrapolation. Raises ValueError unless n and m are whole numbers.
    """
    if not 0 < step <= 1 or not 0 <= extrapolation < math.inf:
        raise ValueError(f"a grid of step {step} and extrapolation {extrapolation}")
    steps, below = round(1 / step), round(extrapolation / step)
    if abs(steps * step - 1) > 1e-6 or abs(below * step - extrapolation) > 1e-6:
        raise ValueError(f"1 and extrapolation {extrapolation} are no multiples of {step}")

    def shares(total, parts):
        if parts == 1:
            return [(total,)]
        return [
            (first, *rest)
            for first in range(total, -1, -1)
            for rest in shares(total - first, parts - 1)
        ]

    return [
        tuple((share - below) / steps for share in mixture)
        for mixture in shares(steps + count * below, count)
    ]


def parse(text, domains, convex=False):
    """ "clean=0.9, linf=0.1" -> (0.9, 0.1); domains left out weigh 0.

    Weights may be fractions like 1/3, and blanks around names and weights are fine. Raises
    ValueError for a part without "=", a domain named twice, a weight that is not a number,
    and as `weights_of` does.
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


def number(text, where=""):
    """ "0.25" or "1/4" -> 0.25; raises ValueError, its message beginning with `where`."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(
            f"{where}{text!r} is no number like 0.5 and no fraction like 1/3"
        ) from None
