"""Sources of labelled images by name: `load("digits")`, "folder:DIR", "tfds:NAME", ...

A source is a function (path, options) -> Source; `splits` says what a Source is.
"""

from typing import Any

from advadapters.data import encoded, prepared, tars
from advadapters.data.arrays import (
    Options,
    digits,
    fashion,
    idx,
    idx_test,
    npz,
    npz_test,
)
from advadapters.data.folders import folder, folder_test
from advadapters.data.splits import BlankSplit, Source, TestSet
from advadapters.errors import UsageError, pick


def tar(path: str, options: Options) -> Source:
    """Tars of images in one folder, as `advadapters.data.tars` reads them."""
    opened = tars.open_tars(path, options["test_split"])
    train, test = (_encoded(reader, options) for reader in (opened.train, opened.test))
    return Source(train, test, len(opened.names), opened.names, opened.notes)


def tar_test(path: str, options: Options) -> TestSet:
    """The test set of a folder of tars, whose training set need not be there."""
    opened = tars.open_test(path)
    return TestSet(_encoded(opened.test, options), opened.names, opened.notes)


def tfds(path: str, options: Options) -> Source:
    """A TFDS data set by name, prepared as ArrayRecord, read without TensorFlow."""
    try:
        builder = prepared.open_set(path, options["data_dir"])
        tests = prepared.test_splits(builder, options["test_split"])
        splits = []
        for names in (("train",), tests):
            name, records = prepared.read(builder, path, names)
            splits.append(_encoded(encoded.Records(records, f"{path}/{name}"), options))
        features: Any = builder.info.features
        (train, test), label = splits, features["label"]
        return Source(train, test, label.num_classes, prepared.names_of(label))
    except UsageError:
        raise
    # Whatever TFDS says of a name or of files that it cannot use is bad input to us.
    except Exception as error:
        line = str(error).strip().splitlines()[0]
        raise UsageError(f"cannot read TFDS {path!r} as ArrayRecord: {line}") from None


def blank(path: str, options: Options) -> Source:
    """COUNT[,TESTS] black images, for dry runs and for timing where no data is at hand.

    There are as many test images as training images if the path has one number.
    """
    counts = path.split(",")
    if len(counts) > 2 or not all(n.isdecimal() and int(n) for n in counts):
        raise UsageError(
            f"source 'blank' takes a number of images, or two, to train and to test, got "
            f"{path!r}"
        )
    train, test = (BlankSplit(int(n), options["channels"]) for n in (counts * 2)[:2])
    return Source(train, test, 0)


def _encoded(reader: Any, options: Options) -> encoded.Encoded:
    """The images of an `encoded.Reader`, decoded as the options say."""
    return encoded.Encoded(reader, options["channels"], options["skip_corrupt"])


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


def load(
    spec: str,
    *,
    channels: int = 3,
    skip_corrupt: bool = False,
    data_dir: str = "",
    test_split: str = "",
) -> Source:
    """Opens a source.

    Args:
      spec: "KIND" or "KIND:PATH", where KIND is a key of SOURCES.
      channels: that images are decoded to, 3 for RGB or 1 for gray.
      skip_corrupt: whether images that cannot be decoded are left out.
      data_dir: the folder of TFDS; "" is its own default.
      test_split: the split of TFDS, or the folder or tar, to evaluate on; "" for the
        default.

    Raises:
      UsageError: the source cannot be read.
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


def load_test(spec: str, *, channels: int = 3, skip_corrupt: bool = False) -> TestSet:
    """Opens the test set of a source, whose training set need not be there; see `load`."""
    kind, _, path = spec.partition(":")
    if kind not in TESTED:
        source = load(spec, channels=channels, skip_corrupt=skip_corrupt)
        return TestSet(source.test, source.names, source.notes)
    return TESTED[kind](path, {"channels": channels, "skip_corrupt": skip_corrupt})
