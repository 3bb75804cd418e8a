"""Shift suites by name: the ImageNet variants and other test sets of TFDS.

Each is a split of images and labels like those of `sources`, read from ArrayRecord files
without TensorFlow, together with the classes that predictions count as (`Shift.groups`).
Where the papers do not say what is done, the readers below say what we do.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from advadapters.data import encoded, identity, imaging, prepared, sources, splits
from advadapters.data.splits import Example, Label, Number
from advadapters.errors import UsageError

IMAGENET = 1000
MOST_LABELS = 32
NO_LABEL = -2  # never predicted

Features = Mapping[str, Any]  # of an example of TFDS


class Shift(NamedTuple):
    """A test set and how predictions on it are read.

    classes: how many the network must have. groups: int [L], the class that each of these
    counts as, -1 for those that are left out; None where each counts as itself. readings:
    the names of a label's numbers, where they are several answers and not one. names: of
    the classes, () where they have none. notes: lines for the user. fingerprint: of images,
    labels and names, "" where only TFDS knows them.
    """

    split: Any
    classes: int  # 0 where only the labels tell
    groups: np.ndarray | None = None
    readings: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fingerprint: str = ""


class Examples:
    """A TFDS split whose images are decoded by OpenCV; None for those without a label."""

    labels = None  # only reading tells

    def __init__(
        self, source: Any, read: Callable[[Features], Label | None], channels: int = 3
    ) -> None:
        """Takes the undecoded examples, and what reads the label of one, None for none."""
        self.source, self.read, self.channels = source, read, channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: Number) -> Example | None:
        example = self.source[i]
        label = self.read(example)
        if label is None:
            return None
        known = np.asarray(label) != NO_LABEL
        encoded.need_label(
            np.min(label, initial=0, where=known), f"image {i} of the test set"
        )
        image = imaging.decode(example["image"], self.channels)
        if image is None:
            raise UsageError(f"image {i} of the test set cannot be decoded")
        return image, label

    def features(self) -> Iterator[Features]:
        """The features of every example, undecoded."""
        return (self.source[i] for i in range(len(self)))


def _plain(source: Any, features: Any) -> Shift:
    """Labels as they are."""
    channels = features["image"].shape[-1] or 3
    split = Examples(source, lambda example: int(example["label"]), channels)
    return Shift(
        split, features["label"].num_classes, names=prepared.names_of(features["label"])
    )


def _masked(source: Any, features: Any) -> Shift:
    """Only the classes that occur: 200 of ImageNet's for ImageNet-A and -R."""
    shift = _plain(source, features)
    classes = sorted({int(example["label"]) for example in shift.split.features()})
    groups = np.full(shift.classes, -1)
    groups[classes] = classes
    return shift._replace(groups=groups)


def _reassessed(source: Any, features: Any) -> Shift:
    """Any of an image's reassessed labels is right; images without one are left out."""

    def read(example: Features) -> Label | None:
        labels = np.unique(np.asarray(example["real_label"], np.int32))
        if len(labels) > MOST_LABELS:
            raise UsageError(f"an image has {len(labels)} labels, more than {MOST_LABELS}")
        padded = np.full(MOST_LABELS, NO_LABEL, np.int32)
        padded[: len(labels)] = labels
        return padded if len(labels) else None

    label = features["original_label"]
    return Shift(Examples(source, read), label.num_classes, names=prepared.names_of(label))


def _conflicting(source: Any, features: Any) -> Shift:
    """Images whose shape is of one of sixteen classes and whose texture is of another.

    All images count, also the 80 of 1,280 whose cues agree: the published accuracies are
    multiples of 1/1280. The bias to shape leaves those out, see
    `evaluation.shifts.shape_bias_rows`. The data set itself says which of ImageNet's
    thousand classes belong to each of the sixteen.
    """

    def read(example: Features) -> Label | None:
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
    read: Callable[[Any, Any], Shift] = _plain


SHIFTS = {
    "imagenet": Entry("imagenet2012", "validation"),
    "imagenet_real": Entry("imagenet2012_real", "validation", _reassessed),
    "imagenet_v2": Entry("imagenet_v2/matched-frequency", "test"),
    "imagenet_a": Entry("imagenet_a", "test", _masked),
    "imagenet_r": Entry("imagenet_r", "test", _masked),
    "imagenet_sketch": Entry("imagenet_sketch", "test"),
    "conflict_stimuli": Entry("geirhos_conflict_stimuli", "test", _conflicting),
}


def load(
    name: str, data_dir: str = "", channels: int = 3, skip_corrupt: bool = False
) -> Shift:
    """Opens a test set.

    Args:
      name: a key of SHIFTS, a source like folder:DIR, or any name of TFDS.
      data_dir: the folder of TFDS; "" is its own default.
      channels: that the images of a source are decoded to.
      skip_corrupt: whether images of a source that cannot be decoded are left out.

    Raises:
      UsageError: it is not there; the message has the command that prepares it.
    """
    if is_source(name):
        return _of_source(name, channels, skip_corrupt)
    kind, _, path = name.partition(":")
    entry = SHIFTS.get(name, Entry(path if kind == "tfds" else name, ""))
    try:
        builder = prepared.open_set(entry.name, data_dir)
        names = prepared.test_splits(builder, entry.split)
        _, source = prepared.read(builder, entry.name, names)
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


def is_source(name: str) -> bool:
    """Whether a test set is a source like folder:DIR, and not a set of TFDS."""
    kind, colon, _ = name.partition(":")
    known = kind in sources.SOURCES and kind != "tfds"
    return known and bool(colon or kind in sources.INSIDE)


def _of_source(spec: str, channels: int, skip_corrupt: bool) -> Shift:
    """The Shift of a source's test set."""
    try:
        test = sources.load_test(spec, channels=channels, skip_corrupt=skip_corrupt)
    except UsageError as error:
        raise UsageError(f"--data={spec}: {error}") from None
    known = json.dumps([identity.fingerprint(test.split), *test.names])
    mark = hashlib.sha256(known.encode()).hexdigest()[:16]
    return Shift(test.split, len(test.names), None, (), test.names, test.notes, mark)


def fit(
    shift: Shift, title: str, names: tuple[str, ...], classes: int, channels: int
) -> tuple[Shift, str]:
    """Numbers the labels of a Shift as a network numbers its classes, by their names.

    Args:
      shift: the test set.
      title: what the user calls it.
      names: of the network's classes; () where they are not known, and the test set's
        classes are taken to be in the same order.
      classes: how many the network has.
      channels: of the images that it takes.

    Returns:
      The Shift, and a line for the user or "".

    Raises:
      UsageError: names, labels or channels are not those of the network.
    """
    line, split = "", shift.split
    if shift.names and names and not (shift.groups is not None or shift.readings):
        numbers = identity.numbers(names, shift.names, ("the run", title))
        if not np.array_equal(numbers, np.arange(len(numbers))):
            split = splits.Renumbered(split, numbers)
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
        splits.check_split(title, split, classes, channels)
    return shift._replace(split=split), line
