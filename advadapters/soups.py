"""Adversarial model soups: which mixtures of the domains to look at.

A mixture is a tuple of weights [K] that sum to 1; `trees.mix` applies it. Only
numpy and jax are needed, so that soups run in a bare notebook.
"""


def one_hot(count, k):
    """The mixture that is domain k alone."""
    return tuple(float(i == k) for i in range(count))


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
