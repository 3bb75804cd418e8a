"""Mixtures: tuples of weights [K] that sum to 1, one, a line or a grid of them."""


def one_hot(count, k):
    """The mixture that is domain k alone."""
    return tuple(float(i == k) for i in range(count))


def average(count, members):
    """The mixture that weighs these ingredients alike; all of them: the uniform soup."""
    members = set(members)
    return tuple((k in members) / len(members) for k in range(count))


def line(count, first, second, weights):
    """Mixtures beta * first + (1 - beta) * second, Eq. 3 of Rebuffi et al. (2023).

    beta outside [0, 1] extrapolates. first and second are domain numbers.
    """
    return [
        tuple(beta * (k == first) + (1 - beta) * (k == second) for k in range(count))
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
    if not 0 < step <= 1 or extrapolation < 0:
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


def parse(text, domains):
    """ "clean=0.9,linf=0.1" -> (0.9, 0.1); domains left out weigh 0.

    Raises ValueError for an unknown domain or a weight that is not a number.
    """
    weights = dict.fromkeys(domains, 0.0)
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in weights:
            raise ValueError(
                f"unknown domain {name!r} in mixture {text!r}; there are: "
                + ", ".join(domains)
            )
        try:
            weights[name] = float(value)
        except ValueError:
            raise ValueError(
                f"mixture {text!r}: {value!r} is not a number; write {name}=0.5 and so on"
            ) from None
    return tuple(weights.values())
