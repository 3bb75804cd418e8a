"""Adversarial model soups: which mixtures there are, and how to choose one.

A mixture is a tuple of weights [K] that sum to 1 (`check`). `trees.plain` makes the network
of it, and `trees.mix` applies it to any pytree. Only numpy, jax and jaxtyping are needed,
so that soups run in a bare notebook.
"""

from advadapters.soups.ingredients import mix_by_path, mix_files, stack, write_leaves
from advadapters.soups.learned import LearnedMixture, cross_entropy, learn
from advadapters.soups.mixtures import (
    average,
    check,
    check_names,
    line_between,
    lines,
    number,
    one_hot,
    parse,
    simplex,
    weights_of,
)
from advadapters.soups.protocol import (
    Verdict,
    choose,
    choose_for_all,
    draws_of,
    split_images,
)
from advadapters.soups.sanity import Barrier, ancestor_warning, barrier, relative_distances
from advadapters.soups.scoring import entropy, make_scorer, right
from advadapters.soups.search import SearchResult, halving
from advadapters.soups.selection import Choice, best, front, greedy, lowest_entropy, select

__all__ = [
    "Barrier",
    "Choice",
    "Verdict",
    "SearchResult",
    "LearnedMixture",
    "ancestor_warning",
    "average",
    "barrier",
    "best",
    "check",
    "check_names",
    "choose",
    "choose_for_all",
    "cross_entropy",
    "draws_of",
    "entropy",
    "front",
    "greedy",
    "halving",
    "learn",
    "line_between",
    "lines",
    "lowest_entropy",
    "make_scorer",
    "mix_by_path",
    "mix_files",
    "number",
    "one_hot",
    "parse",
    "relative_distances",
    "right",
    "select",
    "simplex",
    "split_images",
    "stack",
    "weights_of",
    "write_leaves",
]
