"""Confidence intervals of counted shares."""

import math
from collections.abc import Sequence

import numpy as np


def wilson(
    correct: float | np.number, count: int | np.integer, z: float = 1.959964
) -> tuple[float, float]:
    """The Wilson score interval (low, high) of the share correct / count, which is in it.

    z: of the normal distribution; the default makes it a 95% interval. For a count of 0 the
    interval is (0, 1).
    """
    if not count:
        return 0.0, 1.0
    share = correct / count
    center = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    # Rounding may push the ends past the share at 0 and 1.
    low, high = max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
    return min(low, share), max(high, share)


def paired(
    differences: Sequence[float] | np.ndarray, z: float = 1.959964
) -> tuple[float, float, float]:
    """The interval of the mean difference of two networks on the same images.

    This is Wald's interval as if half an image more had been observed for each of the four
    outcomes of a pair (Agresti and Min 2005), so that few differing images decide nothing.

    Args:
      differences: [N], from -1 to 1: for each image, whether the first network is right
        less whether the second is, or the mean of this over seeds.
      z: of the normal distribution; the default makes it a 95% interval.

    Returns:
      (low, high, standard error); the middle is sum(differences) / (N + 2).
    """
    count = len(differences) + 2
    mean = sum(differences) / count
    squares = (sum(d * d for d in differences) + 1) / count
    error = math.sqrt((squares - mean * mean) / count)
    return mean - z * error, mean + z * error, error


def two_sided(z: float | np.number) -> float:
    """The chance that a standard normal is further from 0 than z on either side."""
    return math.erfc(abs(z) / math.sqrt(2))
