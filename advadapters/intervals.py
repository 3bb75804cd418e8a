"""Confidence intervals of counted shares."""

import math


def wilson(correct, count, z=1.959964):
    """95% Wilson score interval of correct / count, (low, high), containing the share."""
    if not count:
        return 0.0, 1.0
    share = correct / count
    center = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    # Rounding may push the ends past the share at 0 and 1.
    low, high = max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
    return min(low, share), max(high, share)


def paired(differences, z=1.959964):
    """95% interval of the mean difference of two networks on the same images.

    differences: [N], each from -1 to 1, of one image: right under the first less right
    under the second, or a mean of such over seeds. Wald's interval as if half an image
    more had spoken for each of the four outcomes of a pair (Agresti and Min 2005), so that
    few differing images decide nothing. Returns (low, high, standard error), its middle
    being sum(differences) / (N + 2).
    """
    count = len(differences) + 2
    mean = sum(differences) / count
    squares = (sum(d * d for d in differences) + 1) / count
    error = math.sqrt((squares - mean * mean) / count)
    return mean - z * error, mean + z * error, error


def two_sided(z):
    """The chance that a standard normal is further from 0 than z on either side."""
    return math.erfc(abs(z) / math.sqrt(2))
