"""Wide residual networks (Zagoruyko and Komodakis 2016): three wide pre-activation stages.

A size is DEPTH-WIDTH. It has a stem of 16 channels, and stages of 16, 32 and 64 times WIDTH
channels with (DEPTH - 4) / 6 blocks in each. The paths are those of `preact_resnet`.
"""

import re

from advadapters.errors import UsageError
from advadapters.models import preact_resnet

STEM = 16


def read_size(text: str) -> preact_resnet.Size:
    """Reads "28-10", which is the depth and the width.

    Raises UsageError for other texts.

    >>> models.wide_resnet.read_size("28-10")
    Size(stem=16, width=160, depths=(4, 4, 4))
    """
    match = re.fullmatch(r"([1-9]\d*)-([1-9]\d*)", text)
    blocks, rest = divmod(int(match[1]) - 4, 6) if match else (0, 0)
    if match is None or blocks < 1 or rest:
        raise UsageError(
            f"config.model.size={text!r} is not DEPTH-WIDTH with a depth of 6 n + 4, "
            f"like {', '.join(PUBLISHED)}"
        )
    return preact_resnet.Size(STEM, STEM * int(match[2]), (blocks,) * 3)


PUBLISHED = ("16-8", "28-10", "34-10", "40-2", "70-16")
SIZES = {text: read_size(text) for text in PUBLISHED}


class WideResNet(preact_resnet.PreActResNet):
    """A PreActResNet with another table of sizes."""

    read_size = staticmethod(read_size)
