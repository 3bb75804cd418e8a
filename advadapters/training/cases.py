"""Which of a run's networks are chosen: mixtures and ensembles of domains, or numbers."""

from collections.abc import Sequence

from advadapters import soups
from advadapters.errors import UsageError
from advadapters.flags import Choice
from advadapters.networks import Case, mixture_case
from advadapters.soups.mixtures import Weights


def read_mixtures(flag: str, texts: Sequence[str], domains: Sequence[str]) -> list[Weights]:
    """("clean=0.9,linf=0.1", "clean=1") -> [(0.9, 0.1), (1.0, 0.0)], each once.

    Args:
      flag: its name; "ensemble" stands for mixtures of probabilities.
      texts: its values, one for each mixture.
      domains: the names of all domains in order.

    Raises:
      UsageError: a text names no mixture.
    """
    try:
        mixtures = [soups.parse(text, domains, flag == "ensemble") for text in texts]
    except ValueError as error:
        raise UsageError(f"--{flag}: {error}") from None
    return list(dict.fromkeys(mixtures))


def read_grid(step: float, extrapolation: float, count: int) -> list[Weights]:
    """The mixtures of `count` domains on a grid, see `soups.simplex`."""
    try:
        return soups.simplex(count, step, extrapolation)
    except ValueError as error:
        raise UsageError(f"--grid, --extrapolation: {error}") from None


def read_soups(domains: Sequence[str], choice: Choice, usual: Sequence[Case]) -> list[Case]:
    """The networks that --mixture, --grid and --ensemble name.

    Where neither of the first two names any, they are the usual ones and the ensembles.
    """
    mixtures = read_mixtures("mixture", choice.mixture, domains)
    ensembles = read_mixtures("ensemble", choice.ensemble, domains)
    if ensembles and len(domains) == 1:
        raise UsageError(
            f"--ensemble mixes the probabilities of several domains; {domains[0]} is "
            "the only one here"
        )
    if choice.grid is not None:
        mixtures += read_grid(choice.grid, choice.extrapolation, len(domains))
    cases = [mixture_case(domains, mixture) for mixture in dict.fromkeys(mixtures)]
    members = [mixture_case(domains, mixture, True) for mixture in ensembles]
    return (cases or list(usual)) + members
