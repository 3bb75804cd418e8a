"""Splits of labelled images: what sources give, and parts of it.

An example is an image uint8 [H, W, C] and its label. Nothing is shuffled or resized here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from advadapters.errors import UsageError
from advadapters.shapes import Int, UInt8

Image = UInt8[np.ndarray, "H W C"]
Label = int | Int[np.ndarray, " R"]  # a class, or R answers of which each may be right
Example = tuple[Image, Label]
Number = int | np.integer  # of an example, from 0


@runtime_checkable
class Split(Protocol):
    """Examples by their numbers, and all labels at once where they are known."""

    @property
    def labels(self) -> np.ndarray | None:
        """int [N], or None if only reading an example tells its label."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: Any, /) -> Example | None:
        """Example i, or None for a corrupt image that may be skipped."""
        ...


@runtime_checkable
class SourceSplit(Split, Protocol):
    """A Split whose corrupt images can be told and whose undecoded bytes can be had."""

    def find(self, i: Any, /) -> tuple[Image | None, int | None]:
        """(image or None where it cannot be decoded, label) of example i."""
        ...

    def raw(self, i: Any, /) -> bytes:
        """The bytes that example i is decoded from."""
        ...


AnySplit = TypeVar("AnySplit", bound=Split)


class Source(NamedTuple):
    """The two splits of a data set and the number of its classes.

    classes: 0 where only the labels tell. names: of the classes, () where they have none.
    notes: lines for the user about what was read and what was left out.
    """

    train: SourceSplit
    test: SourceSplit
    classes: int
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class TestSet(NamedTuple):
    """A test split alone, the names of its classes, and lines for the user."""

    split: SourceSplit
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ArraySplit(NamedTuple):
    """Images and labels [N] in memory."""

    images: UInt8[np.ndarray, "N H W C"]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: Number) -> tuple[Image, int]:
        return self.images[i], int(self.labels[i])

    def find(self, i: Number) -> tuple[Image, int]:
        """Example i."""
        return self[i]

    def raw(self, i: Number) -> bytes:
        """The bytes of image i."""
        return self.images[i].tobytes()


class BlankSplit(NamedTuple):
    """A number of images that are one black pixel each, all of class 0."""

    size: int
    channels: int

    labels = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: Number) -> tuple[Image, int]:
        return np.zeros((1, 1, self.channels), np.uint8), 0

    def find(self, i: Number) -> tuple[Image, int]:
        """Example i."""
        return self[i]

    def raw(self, i: Number) -> bytes:
        """Nothing, as there are no bytes."""
        return b""


class Subset(NamedTuple):
    """The examples of a split at the given positions; it can do what the split can."""

    split: Any
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: Number) -> Example | None:
        return self.split[int(self.positions[i])]

    @property
    def labels(self) -> np.ndarray | None:
        """int [N], or None if only reading an example tells its label."""
        labels = self.split.labels
        return None if labels is None else labels[self.positions]

    def find(self, i: Number) -> tuple[Image | None, int | None]:
        """(image or None where it cannot be decoded, label) of example i."""
        return self.split.find(int(self.positions[i]))

    def raw(self, i: Number) -> bytes:
        """The bytes of example i before decoding."""
        return self.split.raw(int(self.positions[i]))


class Renumbered(NamedTuple):
    """A split whose label i is called numbers[i]; it can do what the split can."""

    split: Any
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: Number) -> Example | None:
        example = self.split[i]
        return example and (example[0], int(self.numbers[example[1]]))

    @property
    def labels(self) -> np.ndarray | None:
        """int [N], or None if only reading an example tells its label."""
        labels = self.split.labels
        return None if labels is None else self.numbers[labels]

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return self.split.channels

    def find(self, i: Number) -> tuple[Image | None, int | None]:
        """(image or None where it cannot be decoded, label) of example i."""
        image, label = self.split.find(i)
        return image, None if label is None else int(self.numbers[label])

    def raw(self, i: Number) -> bytes:
        """The bytes of example i before decoding."""
        return self.split.raw(i)


def hold_out(split: Split, fraction: float) -> tuple[Subset, Subset]:
    """The rest of a split, and a random fraction of it that is the same in every run."""
    order = np.random.default_rng(0).permutation(len(split))
    held = round(fraction * len(split))
    return Subset(split, np.sort(order[held:])), Subset(split, np.sort(order[:held]))


def few(split: AnySplit, count: int | None) -> AnySplit | Subset:
    """A number of examples of a split, drawn at random but the same in every run.

    The split itself is returned for a count of 0 or None and where it has no more.
    """
    if not count or count >= len(split):
        return split
    drawn = np.random.default_rng(0).permutation(len(split))[:count]
    return Subset(split, np.sort(drawn))


def only(source: Source, classes: Sequence[int]) -> Source:
    """The Source of some of the classes, renumbered in their order; all of them for ().

    Raises:
      UsageError: a class is not there or given twice, or only reading tells the labels.
    """
    if not classes:
        return source
    parts = []
    for split in (source.train, source.test):
        if split.labels is None:
            raise UsageError("config.data.classes needs labels that are known: leave it ()")
        count = int(split.labels.max()) + 1
        if len({*classes}) < len(classes) or not all(0 <= c < count for c in classes):
            raise UsageError(
                f"config.data.classes={tuple(classes)} must be different numbers from 0 to "
                f"{count - 1}"
            )
        numbers = np.full(count, -1)
        numbers[list(classes)] = np.arange(len(classes))
        positions = np.flatnonzero(np.isin(split.labels, classes))
        parts.append(Renumbered(Subset(split, positions), numbers))
    names = tuple(source.names[c] for c in classes) if source.names else ()
    train, test = parts
    return Source(train, test, len(classes), names, source.notes)


def check(source: Source, classes: int, channels: int) -> None:
    """Refuses a Source that does not fit a model.

    Args:
      source: the Source.
      classes: of the model; 0 if any number will do.
      channels: of the images that the model takes.

    Raises:
      UsageError: labels, channels or the number of classes do not fit.
    """
    if classes and source.classes and source.classes != classes:
        raise UsageError(
            f"the data has {source.classes} classes but config.model.classes={classes}"
        )
    for name, split in (("train", source.train), ("test", source.test)):
        check_split(name, split, classes, channels)


def check_split(name: str, split: Split, classes: int, channels: int) -> None:
    """Raises UsageError if labels or channels of a split do not fit a model; see `check`.

    name: what errors call the split.
    """
    if not len(split):
        raise UsageError(f"the {name} split is empty")
    if split.labels is not None:
        _check_labels(name, split.labels, classes)
    example = split[0]
    if example is not None and example[0].shape[2:] != (channels,):
        raise UsageError(
            f"{name} images have shape {example[0].shape}, but "
            f"config.data.channels={channels}"
        )


def _check_labels(name: str, labels: np.ndarray, classes: int) -> None:
    """Raises UsageError for labels [N] that a model for `classes` (0: any) cannot have."""
    low, high = labels.min(), labels.max()
    if low < 0 or (classes and high >= classes):
        i = labels.argmin() if low < 0 else labels.argmax()
        allowed = f"a model with {classes} classes allows" if classes else "classes are"
        raise UsageError(
            f"{name} labels run from {low} to {high}, {labels[i]} first at image {i}; "
            f"{allowed} 0 to {classes - 1 if classes else 'one less than there are'}"
        )
