"""Which of a run's networks flags name: mixtures and ensembles of domains, or numbers."""

from fractions import Fraction

from advadapters import soups
from advadapters.errors import UsageError
from advadapters.networks import mixture_case


def read_mixtures(flag, text, domains):
    """ "clean=0.9,linf=0.1;clean=1" -> [(0.9, 0.1), (1.0, 0.0)], each once.

    flag: "ensemble" asks for mixtures of probabilities.
    """
    parts = [part for part in text.split(";") if part.strip()]
    if text and not parts:
        raise UsageError(f"--{flag}={text!r} names no mixture; write --{flag}=DOMAIN=1")
    try:
        found = [soups.parse(part, domains, flag == "ensemble") for part in parts]
        return list(dict.fromkeys(found))
    except ValueError as error:
        raise UsageError(f"--{flag}: {error}") from None


def read_grid(flags, count):
    """The mixtures of the grid that --grid and --extrapolation describe."""
    try:
        return soups.simplex(count, float(flags["grid"]), float(flags["extrapolation"]))
    except ValueError as error:
        raise UsageError(f"--grid, --extrapolation: {error}") from None


def read_numbers(flag, text):
    """ "0,0.3" -> (0.0, 0.3)."""
    try:
        return tuple(float(Fraction(part)) for part in text.split(",") if part)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--{flag} must be numbers like 0,0.3, got {text!r}") from None


def read_soups(domains, flags, usual):
    """[Case] of --mixture, --grid and --ensemble; `usual` where nothing is asked for.

    Ensembles alone are added to the usual ones.
    """
    mixtures = read_mixtures("mixture", flags["mixture"], domains)
    ensembles = read_mixtures("ensemble", flags.get("ensemble", ""), domains)
    if ensembles and len(domains) == 1:
        raise UsageError(
            f"--ensemble mixes the probabilities of several domains; {domains[0]} is "
            "the only one here"
        )
    if flags.get("grid"):
        mixtures += read_grid(flags, len(domains))
    cases = [mixture_case(domains, mixture) for mixture in dict.fromkeys(mixtures)]
    members = [mixture_case(domains, mixture, True) for mixture in ensembles]
    return (cases or list(usual)) + members
