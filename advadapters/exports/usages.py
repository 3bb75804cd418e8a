"""Markdown that tells how exported weights are loaded, and what all kinds of it share."""

from collections.abc import Mapping
from typing import Any

# A torch module that takes images in [0, 1], as attacks and RobustBench want it.
NORMALISED = """\
class Normalised(torch.nn.Module):
    def __init__(self, model, mean, std):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images):
        out = self.model((images - self.mean) / self.std)
        return getattr(out, "logits", out)
"""


def inputs_of(about: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """(mean, std) of the images of a network, a number for each channel."""
    model, (_, _, channels) = about["source"]["model"], about["image"]
    mean, std = (_for_each(model[key], channels) for key in ("mean", "std"))
    return mean, std


def _for_each(values: Any, channels: int) -> list[float]:
    """A value for each channel."""
    return [float(value) for value in (list(values) * channels)[:channels]]
