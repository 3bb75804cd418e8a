"""Sources of arrays: those inside packages, .npz files, and IDX files."""

import gzip
import importlib.util
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from advadapters.data.splits import ArraySplit, Source, TestSet, hold_out
from advadapters.errors import UsageError

Options = Mapping[str, Any]  # see `sources.load`


def digits(path: str, options: Options) -> Source:
    """scikit-learn's 1,797 handwritten digits 8x8 (UCI test part); 360 are the test set."""
    _need_no_path("digits", path)
    # Its file alone: importing scikit-learn takes a second.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("source 'digits' is in scikit-learn: pip install scikit-learn")
    folder = spec.submodule_search_locations[0]
    file = os.path.join(folder, "datasets", "data", "digits.csv.gz")
    rows = np.loadtxt(file, delimiter=",")  # 64 pixels of 0 to 16, and the class
    images = np.round(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    split = ArraySplit(images, rows[:, -1].astype(np.int32))
    train, test = hold_out(split, 360 / len(split))
    return Source(train, test, 10)


FASHION = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip


def fashion(path: str, options: Options) -> Source:
    """3,000 training and 2,000 test images of Fashion-MNIST 28x28, inside this package."""
    _need_no_path("fashion", path)
    file = pathlib.Path(__file__).parent / "fashion" / "images.npz"
    return npz(str(file), options)._replace(classes=len(FASHION), names=FASHION)


def _need_no_path(kind: str, path: str) -> None:
    """Raises UsageError where a source that has its images inside is given a path."""
    if path:
        raise UsageError(f"source {kind!r} takes no path, got {path!r}: leave it away")


def npz(path: str, options: Options) -> Source:
    """Arrays train_images, train_labels, test_images, test_labels in one .npz file."""
    arrays = _read_npz(path)
    train, test = (_npz_split(path, arrays, split) for split in ("train", "test"))
    return Source(train, test, 0)


def npz_test(path: str, options: Options) -> TestSet:
    """The arrays test_images and test_labels of an .npz file."""
    return TestSet(_npz_split(path, _read_npz(path), "test"))


def _read_npz(path: str) -> dict[str, np.ndarray]:
    """{name: array} of an .npz file."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read {path} as .npz: {error}") from None


def _npz_split(path: str, arrays: Mapping[str, np.ndarray], split: str) -> ArraySplit:
    """The images and labels of a split, "train" or "test"."""
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


def idx(path: str, options: Options) -> Source:
    """A folder of the four IDX files that MNIST comes as, gzipped or not."""
    return Source(_idx_split(path, "train"), idx_test(path, options).split, 0)


def idx_test(path: str, options: Options) -> TestSet:
    """The test set of a folder of IDX files."""
    return TestSet(_idx_split(path, "t10k"))


def _idx_split(path: str, prefix: str) -> ArraySplit:
    """The images and labels of a split, whose files' names begin with the prefix."""
    root = pathlib.Path(path).expanduser()
    images = _read_idx(root, f"{prefix}-images-idx3-ubyte")
    labels = _read_idx(root, f"{prefix}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UsageError(
            f"{root}: {prefix}-images-idx3-ubyte must hold [N, H, W] and "
            f"{prefix}-labels-idx1-ubyte [N] numbers, got {list(images.shape)} and "
            f"{list(labels.shape)}"
        )
    return ArraySplit(images[..., None], labels)


def _read_idx(root: pathlib.Path, name: str) -> np.ndarray:
    """One IDX file as a uint8 array of the shape in its header."""
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
