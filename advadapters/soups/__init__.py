"""Adversarial model soups: which mixtures there are, and how to choose one.

A mixture is a tuple of weights [K] that sum to 1; `trees.mix` applies it. Only
numpy and jax are needed, so that soups run in a bare notebook.
"""

from advadapters.soups.mixtures import average, line, lines, one_hot, parse, simplex

__all__ = ["average", "line", "lines", "one_hot", "parse", "simplex"]
