"""What the papers claim, as plain data that the experiments of configs/evidence judge.

The key "place" says where in the paper a claim is, as far as its text was at hand.
`evaluation.claims` says how a claim is written.
"""

from collections.abc import Sequence
from typing import Any

Claim = dict[str, Any]

CLEAN, CLEAN_MODE, ROBUST_MODE = "clean", "clean=1", "linf=1"


def cotraining(robust: str, cascade: str, soups: Sequence[str]) -> tuple[Claim, ...]:
    """The claims of Rebuffi et al. (2023) about co-training.

    They are about the variants nominal, adversarial, cotrain, norms and nothing, and about
    the soup "independent" of the first two.

    Args:
      robust: the suite that robustness is judged by.
      cascade: a stronger one.
      soups: networks of cotrain, from the clean to the robust mode.
    """
    return (*_modes(robust, cascade), *_adapters(robust), *_mixtures(robust, soups))


def _modes(robust: str, cascade: str) -> tuple[Claim, ...]:
    """What is claimed of the two modes of co-training with class tokens."""
    return (
        dict(
            id="clean-mode",
            sentence="The clean mode beats nominal training on clean images",
            place="abstract: 83.76% against 82.64%, ImageNet",
            test="more",
            rows=((("cotrain", CLEAN_MODE, CLEAN), ("nominal", "", CLEAN)),),
        ),
        dict(
            id="robust-mode",
            sentence="The robust mode is competitive: at most 5 points (our margin) less "
            "robust than adversarial training",
            place="contributions: competitive robustness in robust mode",
            test="more",
            margin=-0.05,
            rows=(
                (("cotrain", ROBUST_MODE, robust), ("adversarial", "", robust)),
                (("cotrain", ROBUST_MODE, cascade), ("adversarial", "", cascade)),
            ),
        ),
        dict(
            id="modes-part",
            sentence="One token makes two networks: the clean mode is the better one on "
            "clean images, the robust mode under attack",
            place="contributions: the token acts as a conditioning token",
            test="more",
            rows=(
                (("cotrain", CLEAN_MODE, CLEAN), ("cotrain", ROBUST_MODE, CLEAN)),
                (("cotrain", ROBUST_MODE, robust), ("cotrain", CLEAN_MODE, robust)),
                (("cotrain", ROBUST_MODE, cascade), ("cotrain", CLEAN_MODE, cascade)),
            ),
        ),
    )


def _adapters(robust: str) -> tuple[Claim, ...]:
    """What is claimed of class tokens against other adapters."""
    return (
        dict(
            id="token-as-norms",
            sentence="Class tokens do as well as each domain's own norms, within a point",
            place="contributions: with 49 times fewer domain-specific parameters",
            test="within",
            margin=0.01,
            rows=(
                (("cotrain", CLEAN_MODE, CLEAN), ("norms", CLEAN_MODE, CLEAN)),
                (("cotrain", ROBUST_MODE, robust), ("norms", ROBUST_MODE, robust)),
            ),
        ),
        dict(
            id="token-over-nothing",
            sentence="Class tokens do better than sharing everything",
            place="abstract: few domain-specific parameters suffice",
            test="more",
            rows=(
                (("cotrain", CLEAN_MODE, CLEAN), ("nothing", "", CLEAN)),
                (("cotrain", ROBUST_MODE, robust), ("nothing", "", robust)),
            ),
        ),
    )


def _mixtures(robust: str, soups: Sequence[str]) -> tuple[Claim, ...]:
    """What is claimed of soups of tokens, and of whole networks."""
    return (
        dict(
            id="front",
            sentence="Soups of the two tokens trace a front: from the clean to the robust "
            "mode, clean accuracy falls and robust accuracy rises",
            place="abstract: adversarial model soups",
            test="front",
            margin=0.01,
            variant="cotrain",
            networks=soups,
            suites=(CLEAN, robust),
        ),
        dict(
            id="independent",
            sentence="Networks that were trained apart cannot be mixed: half of each is "
            "worse than both on clean images, and than the robust one under attack",
            place="not found in the text at hand; from memory",
            test="more",
            rows=tuple(
                ((name, "", suite), ("independent", "", suite))
                for name, suite in (
                    ("nominal", CLEAN),
                    ("adversarial", CLEAN),
                    ("adversarial", robust),
                )
            ),
        ),
    )


def strength(
    networks: Sequence[tuple[str, str]], pgd: str, apgd: str, cascade: str
) -> tuple[Claim, ...]:
    """Claims of our own: which attacks can judge networks that were trained with few steps.

    Args:
      networks: (variant, network) of robust ones.
      pgd: the suite that robustness is usually judged by.
      apgd: the same loss climbed by APGD, for more steps.
      cascade: AutoAttack.
    """
    return (
        dict(
            id="pgd-as-apgd",
            sentence="More steps find no more: PGD of 20 steps and APGD of 100 on the same "
            "loss agree, within two points, on networks that were trained with PGD of 2",
            place="ours",
            test="within",
            margin=0.02,
            rows=tuple(((*network, pgd), (*network, apgd)) for network in networks),
        ),
        dict(
            id="autoattack-finds-more",
            sentence="Several attacks find more than one: AutoAttack finds adversarial "
            "images that APGD on cross-entropy does not",
            place="ours; Croce and Hein 2020 report it for other networks",
            test="more",
            rows=tuple(((*network, apgd), (*network, cascade)) for network in networks),
        ),
    )
