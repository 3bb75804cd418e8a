"""Splits of encoded images: where the bytes come from is a reader's part, decoding is not.

A reader has a length; `read(i)` gives (bytes, int label) and may raise OSError, `name(i)`
says where example i is, and `file(i)`, if its images are files, what its name is. Readers
are pickled into worker processes, so they hold no open files.
"""

import os
from typing import Any, NamedTuple

import numpy as np

from advadapters.data import images as codecs
from advadapters.errors import UsageError

# What OpenCV makes 8 bits of. The content decides; the name tells images from the rest.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff",
    ".gif", ".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".sr", ".ras",
)  # fmt: skip


class Encoded(NamedTuple):
    """What a reader reads as (uint8 image [H, W, channels], label), decoded when asked for.

    Example i is None where it cannot be decoded and may be skipped.
    """

    reader: Any
    channels: int
    skip_corrupt: bool

    def __len__(self):
        return len(self.reader)

    @property
    def labels(self):
        """int32 [N], or None if only reading tells."""
        return getattr(self.reader, "labels", None)

    def __getitem__(self, i):
        image, label = self.find(i)
        if image is None and not self.skip_corrupt:
            raise UsageError(
                f"corrupt image {self.reader.name(i)}: replace it, or set "
                "config.data.skip_corrupt=True to leave such images out"
            )
        return None if image is None else (image, label)

    def find(self, i):
        """(image or None where it cannot be decoded, label); raises for a label below 0."""
        try:
            data, label = self.reader.read(i)
        except OSError:
            return None, None
        need_label(label, self.reader.name(i))
        return codecs.decode(data, self.channels), label

    def raw(self, i):
        """Bytes of example i before decoding; none where it cannot be read."""
        try:
            return self.reader.read(i)[0]
        except OSError:
            return b""


class Files(NamedTuple):
    """Image files root/names[i] with labels int32 [N]."""

    root: str
    names: list
    labels: np.ndarray

    def __len__(self):
        return len(self.names)

    def file(self, i):
        """The name below the root."""
        return self.names[i]

    def name(self, i):
        """The path."""
        return os.path.join(self.root, self.names[i])

    def read(self, i):
        """(bytes, label)."""
        with open(self.name(i), "rb") as file:
            return file.read(), int(self.labels[i])


class Records(NamedTuple):
    """A TFDS data source whose images are left encoded; title: what it is called."""

    source: Any
    title: str

    def __len__(self):
        return len(self.source)

    def name(self, i):
        """The number in the data set."""
        return f"number {i} of {self.title}"

    def read(self, i):
        """(bytes, label)."""
        example = self.source[i]
        return example["image"], int(example["label"])


def need_label(label, where):
    """Raises UsageError for a label below 0, which would count as wrong for ever."""
    if np.min(label) < 0:
        raise UsageError(
            f"{where} has label {label}, and classes count from 0: a split without labels "
            "can neither be trained nor evaluated on; config.data.test_split names another"
        )


def is_image(name):
    """Whether a file's name is that of an image."""
    return name.lower().endswith(SUFFIXES)


def is_hidden(name):
    """Whether the name of a file or folder is of those that systems put beside images."""
    return name.startswith(".") or name == "__MACOSX"


def suffix(name):
    """ "x.TXT" -> ".txt"; "no suffix" for none."""
    return os.path.splitext(name)[1].lower() or "no suffix"


def told_left(left):
    """A Counter of suffixes in words: "3 .txt, 1 .json"."""
    shown = printable(", ".join(f"{n:,} {name}" for name, n in left.most_common(5)))
    return shown + (f" and {len(left) - 5} other kinds" if len(left) > 5 else "")


def printable(text):
    """The text, with bytes of names that are no UTF-8 as numbers."""
    return text.encode(errors="backslashreplace").decode()


def told_choice(root, split, there):
    """What to say where a split has several places, of which the first is taken, or ""."""
    if len(there) < 2:
        return ""
    name = f"; config.data.{split}_split names another" if split == "test" else ""
    return f"{root} has {', '.join(there)}: {there[0]} is the {split} set{name}"
