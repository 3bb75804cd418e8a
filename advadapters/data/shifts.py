"""Shift suites by name: the ImageNet variants and other test sets of TFDS.

Each is a split of (uint8 image, label) like those of `sources`, read from ArrayRecord files
without TensorFlow, with the classes that a prediction is made of (`Shift.groups`). What is
done where the papers do not say it is ours, and said in `SHIFTS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from advadapters.data import encoded, prepared
from advadapters.data import images as codecs
from advadapters.errors import UsageError

IMAGENET = 1000
MOST_LABELS = 32
NO_LABEL = -2  # never predicted


class Shift(NamedTuple):
    """A test set and how predictions are read.

    classes: how many the network must have. groups: int [L], the class that each of these
    counts as, -1 for those that are left out; None where all are as they are. readings:
    the names of a label's numbers, where they are several answers and not one.
    """

    split: Any
    classes: int
    groups: np.ndarray | None = None
    readings: tuple[str, ...] = ()


class Examples:
    """Examples of a TFDS split, images decoded by OpenCV; None for those without a label.

    read: (features of an example) -> its label, or None.
    """

    def __init__(self, source, read, channels=3):
        self.source, self.read, self.channels = source, read, channels

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        example = self.source[i]
        label = self.read(example)
        if label is None:
            return None
        known = np.asarray(label) != NO_LABEL
        encoded.need_label(
            np.min(label, initial=0, where=known), f"image {i} of the test set"
        )
        image = codecs.decode(example["image"], self.channels)
        if image is None:
            raise UsageError(f"image {i} of the test set cannot be decoded")
        return image, label

    def features(self):
        """Every example undecoded."""
        return (self.source[i] for i in range(len(self)))


def plain(source, features):
    """Labels as they are."""
    channels = features["image"].shape[-1] or 3
    split = Examples(source, lambda example: int(example["label"]), channels)
    return Shift(split, features["label"].num_classes)


def masked(source, features):
    """Only the classes that occur: 200 of ImageNet's for ImageNet-A and -R."""
    whole = plain(source, features)
    known = sorted({int(example["label"]) for example in whole.split.features()})
    groups = np.full(whole.classes, -1)
    groups[known] = known
    return whole._replace(groups=groups)


def reassessed(source, features):
    """Right is any of an image's reassessed labels; images without one are left out."""

    def read(example):
        found = np.unique(np.asarray(example["real_label"], np.int32))
        if len(found) > MOST_LABELS:
            raise UsageError(f"an image has {len(found)} labels, more than {MOST_LABELS}")
        padded = np.full(MOST_LABELS, NO_LABEL, np.int32)
        padded[: len(found)] = found
        return padded if len(found) else None

    return Shift(Examples(source, read), features["original_label"].num_classes)


def conflicting(source, features):
    """Sixteen classes, of shape and of texture.

    All images count, also the 80 of 1,280 whose cues agree: the published accuracies are
    multiples of 1/1280. The bias to shape leaves those out, see
    `evaluation.shifts.shape_bias_rows`. The classes' members among ImageNet's thousand
    are the data set's own.
    """

    def read(example):
        cues = (example["shape_label"], example["texture_label"])
        return np.array(cues, np.int32)

    split = Examples(source, read)
    groups = np.full(IMAGENET, -1)
    for example in split.features():
        groups[np.asarray(example["shape_imagenet_labels"])] = int(example["shape_label"])
    return Shift(split, IMAGENET, groups, readings=("shape", "texture"))


class Entry(NamedTuple):
    """The TFDS name, the split, and what reads it."""

    name: str
    split: str
    read: Callable = plain


SHIFTS = {
    "imagenet": Entry("imagenet2012", "validation"),
    "imagenet_real": Entry("imagenet2012_real", "validation", reassessed),
    "imagenet_v2": Entry("imagenet_v2/matched-frequency", "test"),
    "imagenet_a": Entry("imagenet_a", "test", masked),
    "imagenet_r": Entry("imagenet_r", "test", masked),
    "imagenet_sketch": Entry("imagenet_sketch", "test"),
    "conflict_stimuli": Entry("geirhos_conflict_stimuli", "test", conflicting),
}


def load(name, data_dir=""):
    """The Shift of a name in SHIFTS, or of any TFDS name, with its test split.

    Raises UsageError where it is not there, with the command that prepares it.
    """
    entry = SHIFTS.get(name, Entry(name, ""))
    try:
        builder = prepared.open_set(entry.name, data_dir)
        splits = prepared.test_splits(builder, entry.split)
        _, source = prepared.read(builder, entry.name, splits)
        return entry.read(source, builder.info.features)
    except UsageError:
        raise
    # Whatever TFDS says of a name or of files that it cannot use is bad input to us.
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        known = ", ".join(SHIFTS)
        raise UsageError(
            f"--data={name}: {line}; there are {known}, and TFDS names with a test split"
        ) from None
