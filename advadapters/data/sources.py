"""Sources of labelled images: `load("digits")`, "folder:DIR", "tfds:NAME", ...

A split has a length and gives example i as (uint8 image [H, W, C], int label), or
None for a corrupt image that may be skipped. Nothing is shuffled or resized here.
"""

import gzip
import os
import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np

from advadapters.data import encoded, tars
from advadapters.errors import UsageError, pick


class Source(NamedTuple):
    """The two splits and the number of classes, 0 where only the labels tell."""

    train: Any
    test: Any
    classes: int


class ArraySplit(NamedTuple):
    """Images uint8 [N, H, W, C] and labels [N] in memory."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i])


class BlankSplit(NamedTuple):
    """So many black pixels of class 0."""

    size: int
    channels: int

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return np.zeros((1, 1, self.channels), np.uint8), 0


class Subset(NamedTuple):
    """The examples of a split at the given positions."""

    split: Any
    positions: np.ndarray

    def __len__(self):
        return len(self.positions)

    def __getitem__(self, i):
        return self.split[int(self.positions[i])]


def hold_out(split, fraction):
    """(rest, held out): a fixed random `fraction` of a split, the same in every run."""
    order = np.random.default_rng(0).permutation(len(split))
    held = round(fraction * len(split))
    return Subset(split, np.sort(order[held:])), Subset(split, np.sort(order[:held]))


def digits(path, options):
    """scikit-learn's 1,797 handwritten digits 8x8 (UCI test part); 360 are the test set."""
    if path:
        raise UsageError(f"source 'digits' takes no path, got {path!r}")
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    whole = ArraySplit(images, data.target.astype(np.int32))
    train, test = hold_out(whole, 360 / len(whole))
    return Source(train, test, 10)


def folder(path, options):
    """DIR/train/<class>/*.jpg|png and DIR/test (or val)/<class>/..."""
    root = need_folder(path)
    names = sorted(p.name for p in need_folder(root / "train").iterdir() if p.is_dir())
    if not names:
        raise UsageError(f"no class folders in {root / 'train'}")
    test = root / "test" if (root / "test").is_dir() else root / "val"
    splits = [folder_split(need_folder(p), names, options) for p in (root / "train", test)]
    return Source(*splits, len(names))


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


def folder_split(root, names, options):
    """The images below root/<class>, classes numbered by the sorted names of training."""
    found = {p.name for p in root.iterdir() if p.is_dir()}
    if found - set(names):
        raise UsageError(
            f"{root} has classes that training has not: {sorted(found - set(names))[:3]}"
        )
    number = {name: i for i, name in enumerate(names)}
    files = [
        (os.path.join(name, file), number[name])
        for name in sorted(found)
        for file in sorted(os.listdir(root / name))
        if encoded.is_image(file)
    ]
    if not files:
        raise UsageError(f"no {', '.join(encoded.SUFFIXES)} files in {root}/<class>/")
    paths, labels = zip(*files, strict=True)
    reader = encoded.Files(str(root), list(paths), np.array(labels, np.int32))
    return encoded.Encoded(reader, options["channels"], options["skip_corrupt"])


def tar(path, options):
    """Tars of images in one folder: see `advadapters.data.tars`."""
    train, test, classes = tars.open_tars(path)
    splits = (
        encoded.Encoded(reader, options["channels"], options["skip_corrupt"])
        for reader in (train, test)
    )
    return Source(*splits, classes)


def npz(path, options):
    """Arrays train_images, train_labels, test_images, test_labels in one .npz file."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read {path} as .npz: {error}") from None
    splits = []
    for split in ("train", "test"):
        try:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        except KeyError as error:
            raise UsageError(
                f"{path} has no array {error}; it has {sorted(arrays)}"
            ) from None
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
        splits.append(ArraySplit(images, labels))
    return Source(*splits, 0)


def idx(path, options):
    """A folder of the four MNIST-style IDX files, gzipped or not."""
    root = pathlib.Path(path).expanduser()
    train = ArraySplit(
        read_idx(root, "train-images-idx3-ubyte")[..., None],
        read_idx(root, "train-labels-idx1-ubyte"),
    )
    test = ArraySplit(
        read_idx(root, "t10k-images-idx3-ubyte")[..., None],
        read_idx(root, "t10k-labels-idx1-ubyte"),
    )
    return Source(train, test, 0)


def read_idx(root, name):
    """One IDX file -> uint8 array of the shape in its header."""
    for path, opener in ((root / f"{name}.gz", gzip.open), (root / name, open)):
        if path.is_file():
            try:
                with opener(path, "rb") as file:
                    data = file.read()
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
    """A TFDS data set by name, prepared as ArrayRecord, read without TensorFlow.

    Images are left to our own decoder: TFDS leaves a JPEG as it is, gray or CMYK.
    """
    import tensorflow_datasets

    where = f" --data_dir={options['data_dir']}" if options["data_dir"] else ""
    try:
        builder = tensorflow_datasets.builder(path, data_dir=options["data_dir"] or None)
        names = [name for name in ("test", "validation") if name in builder.info.splits]
        if "train" not in builder.info.splits or not names:
            raise UsageError(
                f"TFDS {path!r} is not prepared: no train and test splits in "
                f"{builder.data_path}; run `tfds build {path} --file_format=array_record"
                f"{where}` where TensorFlow is installed"
            )
        undecoded = {"image": tensorflow_datasets.decode.SkipDecoding()}
        splits = [
            encoded.Encoded(
                encoded.Records(
                    builder.as_data_source(split=name, decoders=undecoded), f"{path}/{name}"
                ),
                options["channels"],
                options["skip_corrupt"],
            )
            for name in ("train", names[0])
        ]
        return Source(*splits, builder.info.features["label"].num_classes)
    except UsageError:
        raise
    # Whatever TFDS says of a name or of files that it cannot use is bad input to us.
    except Exception as error:
        line = str(error).strip().splitlines()[0]
        raise UsageError(f"cannot read TFDS {path!r} as ArrayRecord: {line}") from None


def blank(path, options):
    """COUNT black images, for dry runs and for timing where the data is not at hand."""
    if not (path.isdecimal() and int(path)):
        raise UsageError(f"source 'blank' takes a number of images, got {path!r}")
    split = BlankSplit(int(path), options["channels"])
    return Source(split, split, 0)


SOURCES = {
    "digits": digits,
    "folder": folder,
    "tar": tar,
    "npz": npz,
    "idx": idx,
    "tfds": tfds,
    "blank": blank,
}


def load(spec, *, channels=3, skip_corrupt=False, data_dir=""):
    """A Source from "KIND" or "KIND:PATH"; raises UsageError if it cannot be read."""
    kind, _, path = spec.partition(":")
    options = {"channels": channels, "skip_corrupt": skip_corrupt, "data_dir": data_dir}
    return pick(SOURCES, kind, "data source")(path, options)


def check(source, classes, channels):
    """Raises UsageError if labels or channels do not fit a model for `classes` (0: any)."""
    if classes and source.classes and source.classes != classes:
        raise UsageError(
            f"the data has {source.classes} classes but config.model.classes={classes}"
        )
    for name, split in (("train", source.train), ("test", source.test)):
        if not len(split):
            raise UsageError(f"the {name} split is empty")
        labels = getattr(split, "labels", None)
        known = classes and labels is not None
        if known and not (0 <= labels.min() <= labels.max() < classes):
            raise UsageError(
                f"{name} labels run from {labels.min()} to {labels.max()}; a model with "
                f"{classes} classes allows 0 to {classes - 1}"
            )
        example = split[0]
        if example is not None and example[0].shape[2:] != (channels,):
            raise UsageError(
                f"{name} images have shape {example[0].shape}, but "
                f"config.data.channels={channels}"
            )
