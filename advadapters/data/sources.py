"""Sources of labelled images: `load("digits")`, "folder:DIR", "tfds:NAME", ...

A split has a length and gives example i as (uint8 image [H, W, C], int label), or
None for a corrupt image that may be skipped; `find(i)` gives (None, label) for any that is
corrupt, `raw(i)` what it is decoded from, and `labels` are all of them, None if only
reading tells. Nothing is shuffled or resized here.
"""

import collections
import gzip
import importlib.util
import os
import pathlib
import unicodedata
import zipfile
from typing import Any, NamedTuple

import numpy as np

from advadapters.data import encoded, prepared, tars
from advadapters.errors import UsageError, pick


class Source(NamedTuple):
    """The two splits and the number of classes, 0 where only the labels tell.

    names: of the classes, () where there are none. notes: lines to be told about what was
    found.
    """

    train: Any
    test: Any
    classes: int
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class TestSet(NamedTuple):
    """A split alone: names of the classes that its labels count, and lines to be told."""

    split: Any
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Renumbered(NamedTuple):
    """A split whose label i is called numbers[i]."""

    split: Any
    numbers: np.ndarray

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        example = self.split[i]
        return example and (example[0], int(self.numbers[example[1]]))

    def find(self, i):
        """(image or None where it cannot be decoded, label) of example i."""
        image, label = self.split.find(i)
        return image, int(self.numbers[label])

    def raw(self, i):
        """Bytes of example i before decoding."""
        return self.split.raw(i)

    @property
    def labels(self):
        """[N], or None if only reading tells."""
        labels = self.split.labels
        return None if labels is None else self.numbers[labels]

    @property
    def channels(self):
        """Of the images."""
        return self.split.channels


class ArraySplit(NamedTuple):
    """Images uint8 [N, H, W, C] and labels [N] in memory."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i])

    def find(self, i):
        """Example i."""
        return self[i]

    def raw(self, i):
        """Bytes of image i."""
        return self.images[i].tobytes()


class BlankSplit(NamedTuple):
    """So many black pixels of class 0."""

    size: int
    channels: int

    labels = None

    def __len__(self):
        return self.size

    def find(self, i):
        """Example i."""
        return self[i]

    def raw(self, i):
        """Nothing: there are no bytes."""
        return b""

    def __getitem__(self, i):
        return np.zeros((1, 1, self.channels), np.uint8), 0


class Subset(NamedTuple):
    """The examples of a split at the given positions."""

    split: Any
    positions: np.ndarray

    @property
    def labels(self):
        """[N], or None if only reading tells."""
        labels = self.split.labels
        return None if labels is None else labels[self.positions]

    def find(self, i):
        """(image or None where it cannot be decoded, label) of example i."""
        return self.split.find(int(self.positions[i]))

    def raw(self, i):
        """Bytes of example i before decoding."""
        return self.split.raw(int(self.positions[i]))

    def __len__(self):
        return len(self.positions)

    def __getitem__(self, i):
        return self.split[int(self.positions[i])]


def hold_out(split, fraction):
    """(rest, held out): a fixed random `fraction` of a split, the same in every run."""
    order = np.random.default_rng(0).permutation(len(split))
    held = round(fraction * len(split))
    return Subset(split, np.sort(order[held:])), Subset(split, np.sort(order[:held]))


def need_no_path(kind, path):
    """Raises UsageError where a source that has its images inside is given a path."""
    if path:
        raise UsageError(f"source {kind!r} takes no path, got {path!r}: leave it away")


def few(split, count):
    """`count` examples of a split, drawn once for all; all for 0, or if it has no more."""
    if not count or count >= len(split):
        return split
    drawn = np.random.default_rng(0).permutation(len(split))[:count]
    return Subset(split, np.sort(drawn))


def only(source, classes):
    """The Source of some of the classes, renumbered in their order; all of them for ().

    Raises UsageError for a class that is not there, and where only reading tells labels.
    """
    if not classes:
        return source
    splits = []
    for split in (source.train, source.test):
        if split.labels is None:
            raise UsageError("config.data.classes needs labels that are known: leave it ()")
        there = int(split.labels.max()) + 1
        if len({*classes}) < len(classes) or not all(0 <= c < there for c in classes):
            raise UsageError(
                f"config.data.classes={tuple(classes)} must be different numbers from 0 to "
                f"{there - 1}"
            )
        numbers = np.full(there, -1)
        numbers[list(classes)] = np.arange(len(classes))
        kept = np.flatnonzero(np.isin(split.labels, classes))
        splits.append(Renumbered(Subset(split, kept), numbers))
    names = tuple(source.names[c] for c in classes) if source.names else ()
    train, test = splits
    return Source(train, test, len(classes), names, source.notes)


def digits(path, options):
    """scikit-learn's 1,797 handwritten digits 8x8 (UCI test part); 360 are the test set."""
    need_no_path("digits", path)
    # Its file alone: importing scikit-learn takes a second.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("source 'digits' is in scikit-learn: pip install scikit-learn")
    folder = spec.submodule_search_locations[0]
    file = os.path.join(folder, "datasets", "data", "digits.csv.gz")
    rows = np.loadtxt(file, delimiter=",")  # 64 pixels of 0 to 16, and the class
    images = np.round(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    whole = ArraySplit(images, rows[:, -1].astype(np.int32))
    train, test = hold_out(whole, 360 / len(whole))
    return Source(train, test, 10)


FASHION = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip


def fashion(path, options):
    """3,000 training and 2,000 test images of Fashion-MNIST 28x28, inside this package."""
    need_no_path("fashion", path)
    file = pathlib.Path(__file__).parent / "fashion" / "images.npz"
    return npz(file, options)._replace(classes=len(FASHION), names=FASHION)


def folder(path, options):
    """DIR/train/<class>/**/*.jpg and the like, and DIR/test/<class>/...

    A class is the folder that is next to train's, whatever folders are below it.
    """
    root = need_folder(path)
    train = list_classes(need_folder(root / "train"))
    names = sorted(train.files)
    if not names:
        raise UsageError(f"no class folders in {root / 'train'}")
    place, note = find_test(root, options["test_split"])
    test = list_classes(place)
    first, second = (folder_split(found, names, options) for found in (train, test))
    notes = tuple(filter(None, (note, train.left, test.left)))
    return Source(first, second, len(names), tuple(names), notes)


TESTS = ("test", "val", "validation", "valid")  # the first that there is


def find_test(root, asked):
    """(folder to evaluate on, what to say of the choice)."""
    there = [name for name in ((asked,) if asked else TESTS) if (root / name).is_dir()]
    name = (there or [asked or TESTS[0]])[0]
    return need_folder(root / name), encoded.told_choice(root, "test", there)


def need_folder(path):
    """The path, if it is a folder that is there."""
    path = pathlib.Path(path).expanduser()
    if not path.is_dir():
        raise UsageError(
            f"data folder {path} is not there: the source's folder must have "
            "train/<class>/*.jpg and test/<class>/*.jpg; from tars, take "
            "config.data.source=tar:DIR or `mkdir -p DIR/train && tar -xf train.tar -C "
            "DIR/train`"
        )
    return path


def folder_test(path, options):
    """DIR/test/<class>/..., or DIR/<class>/... where there is no such folder."""
    root = need_folder(path)
    place, note = root, ""
    if (root / "train").is_dir() or any((root / name).is_dir() for name in TESTS):
        place, note = find_test(root, "")
    found = list_classes(place)
    names = sorted(found.files)
    notes = tuple(filter(None, (note, found.left)))
    return TestSet(folder_split(found, names, options), tuple(names), notes)


class Listing(NamedTuple):
    """Image files below a folder of class folders: {class: [path below root]}, sorted.

    Names of classes are in Unicode's composed form (NFC), so that one name is one class,
    whatever system wrote it. left: what was left out, in words.
    """

    root: pathlib.Path
    files: dict
    left: str


def list_classes(root):
    """The Listing of a folder; raises UsageError for a class without images."""
    files, left = {}, collections.Counter()
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if encoded.is_hidden(entry.name):
            continue
        if not entry.is_dir():
            left[encoded.suffix(entry.name)] += 1
            continue
        name = unicodedata.normalize("NFC", entry.name)
        images, others = list_images(root, entry.name)
        if not images:
            raise UsageError(
                f"class folder {os.path.join(root, entry.name)} has no images ("
                f"{encoded.told_left(others) or 'nothing'} in it; read are "
                f"{', '.join(encoded.SUFFIXES)}): remove the folder, or put its images in"
            )
        files.setdefault(name, []).extend(images)
        left += others
    told = encoded.told_left(left)
    return Listing(root, files, told and f"left out in {root}: {told}")


def list_images(root, folder):
    """([path below root of an image below a folder], Counter of others' suffixes).

    Folders below are gone into, links too, but not in circles; hidden things are not there.
    """
    images, left, above = [], collections.Counter(), {}
    for place, folders, files in os.walk(root / folder, followlinks=True):
        real = os.path.realpath(place)
        circle = above.get(os.path.dirname(place), frozenset())
        above[place] = circle | {real}
        if real in circle:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not encoded.is_hidden(name)]
        for name in files:
            if encoded.is_hidden(name):
                continue
            if encoded.is_image(name):
                images.append(os.path.relpath(os.path.join(place, name), root))
            else:
                left[encoded.suffix(name)] += 1
    return sorted(images), left


def folder_split(found, names, options):
    """The images of a Listing, classes numbered by the names of training."""
    unknown = sorted(found.files.keys() - set(names))
    if unknown:
        raise UsageError(f"{found.root} has classes that training has not: {unknown[:3]}")
    if not found.files:
        raise UsageError(f"no {', '.join(encoded.SUFFIXES)} files in {found.root}/<class>/")
    number = {name: i for i, name in enumerate(names)}
    pairs = [
        (path, number[name]) for name in sorted(found.files) for path in found.files[name]
    ]
    paths, labels = zip(*pairs, strict=True)
    reader = encoded.Files(str(found.root), list(paths), np.array(labels, np.int32))
    return encoded.Encoded(reader, options["channels"], options["skip_corrupt"])


def tar(path, options):
    """Tars of images in one folder: see `advadapters.data.tars`."""
    found = tars.open_tars(path, options["test_split"])
    train, test = (
        encoded.Encoded(reader, options["channels"], options["skip_corrupt"])
        for reader in (found.train, found.test)
    )
    return Source(train, test, len(found.names), found.names, found.notes)


def tar_test(path, options):
    """The test set of a folder of tars, whose training set need not be there."""
    found = tars.open_test(path)
    split = encoded.Encoded(found.test, options["channels"], options["skip_corrupt"])
    return TestSet(split, found.names, found.notes)


def npz(path, options):
    """Arrays train_images, train_labels, test_images, test_labels in one .npz file."""
    arrays = read_npz(path)
    train, test = (npz_split(path, arrays, split) for split in ("train", "test"))
    return Source(train, test, 0)


def npz_test(path, options):
    """Arrays test_images and test_labels."""
    return TestSet(npz_split(path, read_npz(path), "test"))


def read_npz(path):
    """{name: array} of an .npz file."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read {path} as .npz: {error}") from None


def npz_split(path, arrays, split):
    """The images and labels of a split."""
    try:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    except KeyError as error:
        raise UsageError(f"{path} has no array {error}; it has {sorted(arrays)}") from None
    if images.ndim == 3:
        images = images[..., None]
    whole = labels.ndim == 1 and labels.dtype.kind in "iu"
    fits = images.ndim == 4 and labels.shape == images.shape[:1]
    if images.dtype != np.uint8 or not (whole and fits):
        raise UsageError(
            f"{path}: {split}_images must be uint8 [N, H, W, C] and {split}_labels "
            f"whole numbers [N], got {images.dtype} {images.shape} and "
            f"{labels.dtype} {labels.shape}"
        )
    return ArraySplit(images, labels)


def idx(path, options):
    """A folder of the four MNIST-style IDX files, gzipped or not."""
    return Source(idx_split(path, "train"), idx_test(path, options).split, 0)


def idx_test(path, options):
    """The two files of the test set."""
    return TestSet(idx_split(path, "t10k"))


def idx_split(path, prefix):
    """The images and labels of a split."""
    root = pathlib.Path(path).expanduser()
    images = read_idx(root, f"{prefix}-images-idx3-ubyte")[..., None]
    return ArraySplit(images, read_idx(root, f"{prefix}-labels-idx1-ubyte"))


def read_idx(root, name):
    """One IDX file -> uint8 array of the shape in its header."""
    for path, opener in ((root / f"{name}.gz", gzip.open), (root / name, open)):
        if path.is_file():
            try:
                with opener(path, "rb") as file:
                    data: Any = file.read()
                shape = np.frombuffer(data, ">i4", data[3], 4)
                values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
                return values.reshape(shape)
            except (OSError, EOFError, ValueError, IndexError) as error:
                raise UsageError(f"cannot read {path}: {error}") from None
    raise UsageError(
        f"no {name}.gz in {root}: Fashion-MNIST's files are in Debian's package "
        "dataset-fashion-mnist; `apt-get install dataset-fashion-mnist` and set "
        "config.data.source=idx:/usr/share/datasets/fashion-mnist"
    )


def tfds(path, options):
    """A TFDS data set by name, prepared as ArrayRecord, read without TensorFlow."""
    try:
        builder = prepared.open_set(path, options["data_dir"])
        tests = prepared.test_splits(builder, options["test_split"])
        splits = []
        for names in (("train",), tests):
            split, source = prepared.read(builder, path, names)
            reader = encoded.Records(source, f"{path}/{split}")
            splits.append(
                encoded.Encoded(reader, options["channels"], options["skip_corrupt"])
            )
        features: Any = builder.info.features
        (train, test), label = splits, features["label"]
        return Source(train, test, label.num_classes, prepared.names_of(label))
    except UsageError:
        raise
    # Whatever TFDS says of a name or of files that it cannot use is bad input to us.
    except Exception as error:
        line = str(error).strip().splitlines()[0]
        raise UsageError(f"cannot read TFDS {path!r} as ArrayRecord: {line}") from None


def blank(path, options):
    """COUNT[,TESTS] black images, for dry runs and for timing where no data is at hand.

    As many to test as to train, if nothing else is said.
    """
    counts = path.split(",")
    if len(counts) > 2 or not all(n.isdecimal() and int(n) for n in counts):
        raise UsageError(
            f"source 'blank' takes a number of images, or two, to train and to test, got "
            f"{path!r}"
        )
    train, test = (BlankSplit(int(n), options["channels"]) for n in (counts * 2)[:2])
    return Source(train, test, 0)


SOURCES = {
    "digits": digits,
    "fashion": fashion,
    "folder": folder,
    "tar": tar,
    "npz": npz,
    "idx": idx,
    "tfds": tfds,
    "blank": blank,
}


# The test set alone: (path, options) -> TestSet. Of others the whole source is opened.
TESTED = {"folder": folder_test, "tar": tar_test, "npz": npz_test, "idx": idx_test}
NAMED = ("folder", "tar", "tfds")  # whose test split has a name
INSIDE = ("digits", "fashion")  # that take no path


def load(spec, *, channels=3, skip_corrupt=False, data_dir="", test_split=""):
    """A Source from "KIND" or "KIND:PATH"; raises UsageError if it cannot be read.

    test_split: the split of TFDS, or the folder or tar, to evaluate on; "" for the default.
    """
    kind, _, path = spec.partition(":")
    if test_split and kind not in NAMED:
        raise UsageError(
            f"config.data.test_split={test_split!r} is for {', '.join(NAMED)}; source "
            f"{kind!r} has one test set: leave it at ''"
        )
    options = dict(
        channels=channels,
        skip_corrupt=skip_corrupt,
        data_dir=data_dir,
        test_split=test_split,
    )
    return pick(SOURCES, kind, "data source")(path, options)


def load_test(spec, *, channels=3, skip_corrupt=False):
    """The TestSet of "KIND:PATH", whose training set need not be there, see `load`."""
    kind, _, path = spec.partition(":")
    if kind not in TESTED:
        source = load(spec, channels=channels, skip_corrupt=skip_corrupt)
        return TestSet(source.test, source.names, source.notes)
    return TESTED[kind](path, {"channels": channels, "skip_corrupt": skip_corrupt})


def check(source, classes, channels):
    """Raises UsageError if labels or channels do not fit a model for `classes` (0: any)."""
    if classes and source.classes and source.classes != classes:
        raise UsageError(
            f"the data has {source.classes} classes but config.model.classes={classes}"
        )
    for name, split in (("train", source.train), ("test", source.test)):
        check_split(name, split, classes, channels)


def check_split(name, split, classes, channels):
    """Raises UsageError if labels or channels of a split do not fit."""
    if not len(split):
        raise UsageError(f"the {name} split is empty")
    if split.labels is not None:
        check_labels(name, split.labels, classes)
    example = split[0]
    if example is not None and example[0].shape[2:] != (channels,):
        raise UsageError(
            f"{name} images have shape {example[0].shape}, but "
            f"config.data.channels={channels}"
        )


def check_labels(name, labels, classes):
    """Raises UsageError for labels [N] that a model for `classes` (0: any) cannot have."""
    low, high = labels.min(), labels.max()
    if low < 0 or (classes and high >= classes):
        i = labels.argmin() if low < 0 else labels.argmax()
        allowed = f"a model with {classes} classes allows" if classes else "classes are"
        raise UsageError(
            f"{name} labels run from {low} to {high}, {labels[i]} first at image {i}; "
            f"{allowed} 0 to {classes - 1 if classes else 'one less than there are'}"
        )
