"""The progress of a cascade: what is known of every image, and what a batch adds to it."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from advadapters.attacks.versions import Stage
from advadapters.pixels import to_float
from advadapters.shapes import Bool, Float, HostImages, Int, Num, Shaped

# Of a stage: forward passes of images and of padding, and seconds: of the clock, of the
# CPU, and of compiling, which the others leave out.
Cost = dict[str, int | float]
BLANK: Cost = dict(forwards=0, padding=0, seconds=0.0, cpu_seconds=0.0, compile_seconds=0.0)


class Batch(NamedTuple):
    """What one call of an attack brought, for the images with the numbers `index`.

    points: where the images were moved. share: of the draws in which the network is right
    there; 0 or 1 where it is not random. not_finite: whether the logits there are not.
    not_attacked: whether the attack's points were not finite; `points` are the images then.
    (A refusal would end a long evaluation, and such points break nothing.)
    """

    index: Int[np.ndarray, " B"]
    points: Float[np.ndarray, "B H W C"]
    share: Float[np.ndarray, " B"]
    not_finite: Bool[np.ndarray, " B"]
    not_attacked: Bool[np.ndarray, " B"]
    cost: Cost


@dataclasses.dataclass
class State:
    """Progress of a cascade on the host: a row for every image.

    Attributes:
      images, labels, logits: as they were given, and what the network says of them.
      numbers: by which what is drawn for an image goes.
      share: of the draws in which the network is right on an image, the lowest so far; 0
        or 1 for a network that is not random.
      broken_by: the name of the attack that reached it, "clean" for images that are
        misclassified before any, "" for those that are robust.
      not_finite: whether the logits are not finite there.
      not_attacked: whether an attack returned points that are not finite.
      costs: of each stage, see Cost.
      moved: {number of an image: its points}, of those that an attack moved. Nothing else
        is kept of images: 4 bytes a value for each of these.
      done: {(stage number, round): numbers of the images that are through}.
      accuracies: {stage: the accuracy after it}, "clean" first.
      fresh: the same as share, on draws that chose nothing; None for a network that is
        not random.
    """

    images: HostImages
    labels: Int[np.ndarray, " B"]
    logits: Float[np.ndarray, "B L"]
    numbers: Num[np.ndarray, " B"]
    share: Float[np.ndarray, " B"]
    broken_by: Shaped[np.ndarray, " B"]
    not_finite: Bool[np.ndarray, " B"]
    not_attacked: Bool[np.ndarray, " B"]
    costs: dict[str, Cost]
    moved: dict[int, Float[np.ndarray, "H W C"]] = dataclasses.field(default_factory=dict)
    done: dict[tuple[int, int], set[int]] = dataclasses.field(default_factory=dict)
    accuracies: dict[str, float] = dataclasses.field(default_factory=dict)
    fresh: Float[np.ndarray, " B"] | None = None

    @classmethod
    def before(
        cls,
        images: HostImages,
        labels: Int[np.ndarray, " B"],
        logits: Float[np.ndarray, "B L"],
        share: Float[np.ndarray, " B"],
        stages: Iterable[Stage],
        numbers: Num[np.ndarray, " B"],
    ) -> "State":
        """The state before any attack."""
        return cls(
            images=images,
            labels=labels,
            logits=logits,
            numbers=numbers,
            share=share.astype(float),
            broken_by=np.where(share > 0, "", "clean").astype("U32"),
            not_finite=np.logical_not(np.isfinite(logits).all(axis=1)),
            not_attacked=np.zeros(len(images), bool),
            costs={stage.name: dict(BLANK) for stage in stages},
        )

    def hits(self, batch: Batch) -> Bool[np.ndarray, " B"]:
        """Where a batch has images that are worse than those so far."""
        return batch.share < self.share[batch.index]

    def update(self, number: int, round_: int, name: str, batch: Batch) -> None:
        """Takes in one batch of a round of stage `number`."""
        self.done.setdefault((number, round_), set()).update(batch.index.tolist())
        better = self.hits(batch)
        hit = batch.index[better]
        self.moved |= dict(zip(hit.tolist(), batch.points[better], strict=True))
        self.share[hit] = batch.share[better]
        self.broken_by[hit] = name
        self.not_finite[hit] = batch.not_finite[better]
        self.not_attacked[batch.index] |= batch.not_attacked
        for kind, value in batch.cost.items():
            self.costs[name][kind] += value

    def left(self, number: int, round_: int) -> Int[np.ndarray, " left"]:
        """Numbers of the images that a round of a stage has still to attack."""
        through = self.done.get((number, round_), set())
        return np.array([i for i in np.flatnonzero(self.share) if i not in through], int)

    def rows(self, numbers: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows H W C"]:
        """The images with these numbers, moved where they are, float32."""
        rows = np.asarray(to_float(self.images[numbers]))  # a copy: numbers is an array
        for row, number in enumerate(np.asarray(numbers).tolist()):
            if number in self.moved:
                rows[row] = self.moved[number]
        return rows
