"""Shift suites by name: the ImageNet variants and other test sets of TFDS.

Each is a split of (uint8 image, label) like those of `sources`, read from ArrayRecord files
without TensorFlow, with the classes that a prediction is made of (`Shift.groups`). What is
done where the papers do not say it is ours, and said in `SHIFTS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from advadapters.data import encoded, identity, prepared, sources
from advadapters.data import images as codecs
from advadapters.errors import UsageError

IMAGENET = 1000
MOST_LABELS = 32
NO_LABEL = -2  # never predicted


class Shift(NamedTuple):
    """A test set and how predictions are read.

    classes: how many the network must have. groups: int [L], the class that each of these
    counts as, -1 for those that are left out; None where all are as they are. readings:
    the names of a label's numbers, where they are several answers and not one. names: of
    the classes, () where there are none. notes: lines to be told.
    """

    split: Any
    classes: int  # 0 where only the labels tell
    groups: np.ndarray | None = None
    readings: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Examples:
    """Examples of a TFDS split, images decoded by OpenCV; None for those without a label.

    read: (features of an example) -> its label, or None.
    """

    labels = None  # only reading tells

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
    return Shift(
        split, features["label"].num_classes, names=prepared.names_of(features["label"])
    )


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

    label = features["original_label"]
    return Shift(Examples(source, read), label.num_classes, names=prepared.names_of(label))


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


def load(name, data_dir="", channels=3, skip_corrupt=False):
    """The Shift of a name in SHIFTS, a source like folder:DIR, or of any TFDS name.

    Each with its test split, see `sources.load_test`. channels, skip_corrupt: of sources.
    Raises UsageError where it is not there, with the command that prepares it.
    """
    kind, colon, path = name.partition(":")
    if kind in sources.SOURCES and kind != "tfds" and (colon or kind in sources.INSIDE):
        return of_source(name, channels, skip_corrupt)
    entry = SHIFTS.get(name, Entry(path if kind == "tfds" else name, ""))
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
            f"--data={name}: {line}; there are {known}, TFDS names with a test split, and "
            f"sources: {', '.join(f'{kind}:...' for kind in sources.TESTED)}"
        ) from None


def of_source(spec, channels, skip_corrupt):
    """The Shift of a source's test set."""
    try:
        found = sources.load_test(spec, channels=channels, skip_corrupt=skip_corrupt)
    except UsageError as error:
        raise UsageError(f"--data={spec}: {error}") from None
    return Shift(found.split, len(found.names), names=found.names, notes=found.notes)


def fit(shift, title, names, classes, channels):
    """The Shift with its labels numbered as a network's classes, by their names.

    title: what to call it. names: of the network's `classes`, () where they are not known;
    classes are then taken to be in the same order. Returns (the Shift, a line to be told
    or ""). Raises UsageError for names, labels or channels that the network does not have.
    """
    line, split = "", shift.split
    if shift.names and names and not (shift.groups is not None or shift.readings):
        numbers = identity.numbers(names, shift.names, ("the run", title))
        if not np.array_equal(numbers, np.arange(len(numbers))):
            split = sources.Renumbered(split, numbers)
            line = f"{title}: classes are numbered by their names, as those of the run"
    elif shift.names and names:
        identity.need_same_names(names, shift.names, ("the run", title))
    else:
        if shift.classes not in (0, classes):
            raise UsageError(
                f"{title} is for networks of {shift.classes} classes, this one has "
                f"{classes}"
            )
        if shift.names or names:
            line = f"{title}: class names are not compared, one side has none"
    if split.labels is None and split.channels != channels:
        raise UsageError(
            f"{title} has images of {split.channels} channels, the network takes {channels}"
        )
    if split.labels is not None:
        sources.check_split(title, split, classes, channels)
    return shift._replace(split=split), line
