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
