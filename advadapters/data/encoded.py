"""Splits of encoded images: a reader finds the bytes, and they are decoded here.

Readers are pickled into worker processes, so they hold no open files.
"""

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from advadapters.data import imaging
from advadapters.data.splits import Example, Image, Number
from advadapters.errors import UsageError

# What OpenCV makes 8 bits of. The content decides; the name tells images from the rest.
# Formats of floats (HDR, PFM, EXR) are not here, as 8 bits of them need an exposure.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff",
    ".gif", ".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".sr", ".ras",
)  # fmt: skip


@runtime_checkable
class Reader(Protocol):
    """Encoded images by their numbers.

    It may also have `labels`, int32 [N], and, if its images are files, `file(i)`, the name
    of image i's.
    """

    def __len__(self) -> int: ...

    def name(self, i: Any, /) -> str:
        """Where image i is, in words for a user."""
        ...

    def read(self, i: Any, /) -> tuple[bytes, int]:
        """The bytes of image i and its label; may raise OSError."""
        ...


class Encoded(NamedTuple):
    """The images of a reader, decoded when asked for, with their labels.

    Example i is None where it cannot be decoded and may be skipped.
    """

    reader: Reader
    channels: int
    skip_corrupt: bool

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [N], or None if only reading an image tells its label."""
        return getattr(self.reader, "labels", None)

    def __getitem__(self, i: Number) -> Example | None:
        image, label = self.find(i)
        if image is None and not self.skip_corrupt:
            raise UsageError(
                f"corrupt image {self.reader.name(i)}: replace it, or set "
                "config.data.skip_corrupt=True to leave such images out"
            )
        return None if image is None or label is None else (image, label)

    def find(self, i: Number) -> tuple[Image | None, int | None]:
        """(image or None where it cannot be decoded, label or None where it is not read).

        Raises:
          UsageError: the label is below 0.
        """
        try:
            data, label = self.reader.read(i)
        except OSError:
            return None, None
        need_label(label, self.reader.name(i))
        return imaging.decode(data, self.channels), label

    def raw(self, i: Number) -> bytes:
        """The bytes of image i before decoding; none where it cannot be read."""
        try:
            return self.reader.read(i)[0]
        except OSError:
            return b""


class Files(NamedTuple):
    """A reader of the image files root/names[i], with labels int32 [N]."""

    root: str
    names: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def file(self, i: Number) -> str:
        """The name below the root."""
        return self.names[i]

    def name(self, i: Number) -> str:
        """The path."""
        return os.path.join(self.root, self.names[i])

    def read(self, i: Number) -> tuple[bytes, int]:
        """The bytes of image i and its label."""
        with open(self.name(i), "rb") as file:
            return file.read(), int(self.labels[i])


class Records(NamedTuple):
    """A reader of a TFDS data source that leaves images encoded.

    title: what errors call the data set.
    """

    source: Any
    title: str

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: Number) -> str:
        """The number in the data set."""
        return f"number {i} of {self.title}"

    def read(self, i: Number) -> tuple[bytes, int]:
        """The bytes of image i and its label."""
        example = self.source[i]
        return example["image"], int(example["label"])


def need_label(label: int | np.integer, place: str) -> None:
    """Raises UsageError for a label below 0, which would count as wrong for ever.

    place: where the image is, in words.
    """
    if label < 0:
        raise UsageError(
            f"{place} has label {label}, and classes count from 0: a split without labels "
            "can neither be trained nor evaluated on; config.data.test_split names another"
        )


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether the name of a file or folder is of those that systems put beside images."""
    return name.startswith(".") or name == "__MACOSX"


def suffix(name: str) -> str:
    """The suffix of a file's name in lower case ("x.TXT": ".txt"), or "no suffix"."""
    return os.path.splitext(name)[1].lower() or "no suffix"


def suffix_counts(counts: collections.Counter[str]) -> str:
    """Counts of suffixes in words: "3 .txt, 1 .json"."""
    text = printable(", ".join(f"{n:,} {name}" for name, n in counts.most_common(5)))
    return text + (f" and {len(counts) - 5} other kinds" if len(counts) > 5 else "")


def printable(text: str) -> str:
    """The text, with bytes of names that are no UTF-8 as numbers."""
    return text.encode(errors="backslashreplace").decode()


def choice_note(root: pathlib.Path, split: str, names: Sequence[str]) -> str:
    """A note where a split is in several places below a root, or "".

    names: of the places; the first is taken.
    """
    if len(names) < 2:
        return ""
    hint = f"; config.data.{split}_split names another" if split == "test" else ""
    return f"{root} has {', '.join(names)}: {names[0]} is the {split} set{hint}"
