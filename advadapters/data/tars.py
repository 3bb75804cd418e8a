"""Images inside tar files, read where they are: nothing is ever extracted.

A split is one tar or a folder of them. The class of an image is, where there is one, the
number in KEY.cls beside KEY.jpg (WebDataset's shards); else the first folder of its path,
without those that all images are in, where a tar inside the other counts as a folder
(ImageNet's ILSVRC2012_img_train.tar); else the name of its tar, of several; else a line of
TAR.txt beside TAR.tar, which has one class for each image, by sorted names. Hidden files
are passed over, as in folders. Offsets are kept in SPLIT.index.npz beside the tars where
that can be written, as finding them reads the header of every image.
"""

import contextlib
import functools
import os
import pathlib
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from advadapters.data import encoded, tar_members
from advadapters.data.splits import Number
from advadapters.errors import UsageError
from advadapters.files import write_whole

NAMES = {
    "train": ("train", "ILSVRC2012_img_train"),
    "test": ("test", "val", "validation", "valid", "ILSVRC2012_img_val"),
}
KINDS = "UiiiiSSbU"  # of the arrays of a Tar


class Tar(NamedTuple):
    """Images in tar files: image i has sizes[i] bytes at offsets[i] of files[numbers[i]].

    An index file has arrays of these names.
    """

    files: np.ndarray  # str [F]
    stamps: np.ndarray  # int64 [F, 2]: size and time of change
    numbers: np.ndarray  # int32: of each image's file
    offsets: np.ndarray  # int64
    sizes: np.ndarray  # int64
    names: np.ndarray  # bytes: of each image in its tar
    classes: np.ndarray  # bytes: each class's name or number, or nothing
    numbered: np.ndarray  # bool []: whether classes are numbers
    left: np.ndarray  # str []: what was left out, in words


class TarReader(NamedTuple):
    """A reader of the images in a Tar, with labels int32 [N].

    Files are opened for each image, so that readers travel to worker processes.
    """

    tar: Tar
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def file(self, i: Number) -> str:
        """The name in its tar."""
        return bytes(self.tar.names[i]).decode(errors="replace")

    def name(self, i: Number) -> str:
        """The tar and the name in it."""
        return f"{self.file(i)!r} in {self.tar.files[self.tar.numbers[i]]}"

    def read(self, i: Number) -> tuple[bytes, int]:
        """The bytes of image i and its label."""
        offset, size = int(self.tar.offsets[i]), int(self.tar.sizes[i])
        with open(str(self.tar.files[self.tar.numbers[i]]), "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise OSError(f"{self.name(i)} is cut off")
        return data, int(self.labels[i])


class Tars(NamedTuple):
    """Readers of both splits, the names of the classes or (), and lines for the user."""

    train: TarReader | None
    test: TarReader
    names: tuple[str, ...]
    notes: tuple[str, ...]


def open_tars(path: str, test_split: str = "") -> Tars:
    """The Tars of a folder.

    Args:
      path: the folder.
      test_split: the name of the tar or folder of the test split; "" takes the first of
        NAMES that there is.

    Raises:
      UsageError: a split is missing, cannot be read, or has classes that training has not.
    """
    root = pathlib.Path(path).expanduser()
    tests = (test_split,) if test_split else NAMES["test"]
    train, train_notes = _read_split(root, "train", NAMES["train"])
    test, test_notes = _read_split(root, "test", tests)
    if train.numbered != test.numbered:
        raise UsageError(f"{root}: only one split has its classes as numbers in .cls files")
    names = () if train.numbered else np.unique(train.classes)
    return Tars(
        train=_labelled(train, names, root),
        test=_labelled(test, names, root),
        names=tuple(map(os.fsdecode, names)),
        notes=(*train_notes, *test_notes),
    )


def open_test(path: str) -> Tars:
    """The Tars of a test set alone, whose classes are numbered by its own names."""
    root = pathlib.Path(path).expanduser()
    test, notes = _read_split(root, "test", NAMES["test"])
    names = () if test.numbered else np.unique(test.classes)
    return Tars(None, _labelled(test, names, root), tuple(map(os.fsdecode, names)), notes)


def _labelled(tar: Tar, names: np.ndarray | tuple[()], root: pathlib.Path) -> TarReader:
    """The reader of a Tar whose classes are numbers, or are numbered by sorted names."""
    if tar.numbered:
        return TarReader(tar, _class_numbers(tar, root))
    unknown = set(np.unique(tar.classes)) - set(names)
    if unknown:
        shown = ", ".join(sorted(name.decode(errors="replace") for name in unknown)[:3])
        raise UsageError(f"{root}: the test split has classes not in training: {shown}")
    return TarReader(tar, np.searchsorted(names, tar.classes).astype(np.int32))


def _class_numbers(tar: Tar, root: pathlib.Path) -> np.ndarray:
    """int32 [N]: the classes of a Tar in which they are numbers."""
    try:
        return tar.classes.astype(np.int32)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{root}: a .cls file holds no class number: {error}") from None


def _read_split(
    root: pathlib.Path, split: str, names: Sequence[str]
) -> tuple[Tar, tuple[str, ...]]:
    """The Tar of a split, from its index if that is of these very files, and notes.

    names: of the split's tar or folder, of which the first that there is counts.
    """
    place, files, note = _find(root, split, names)
    stamps = np.array([(f.stat().st_size, f.stat().st_mtime_ns) for f in files], np.int64)
    index = root / f"{place.stem}.index.npz"
    tar = _load(index)
    if tar is None or not _fits(tar, files, stamps):
        tar = _build(files, stamps, place.is_dir())
        _save(index, tar)
    tar = tar._replace(files=np.array([str(file) for file in files]))
    ignored = str(tar.left) and f"left out in {place}: {tar.left}"
    named = tar.classes != b""
    if named.any() and not named.all():
        odd = bytes(tar.names[named.argmin()]).decode(errors="replace")
        raise UsageError(f"{place}: {odd!r} is in no class folder, others are")
    notes = tuple(filter(None, (note, ignored)))
    return (tar if named.all() else _listed(tar, place)), notes


def _find(
    root: pathlib.Path, split: str, names: Sequence[str]
) -> tuple[pathlib.Path, list[pathlib.Path], str]:
    """The tar or folder of a split, its tar files, and a note where there are several.

    The first of the names that there is counts. Raises UsageError if there is none.
    """
    places = []
    for name in names:
        file, folder = root / f"{name}.tar", root / name
        if file.is_file():
            places.append((file, [file]))
        elif folder.is_dir() and (inside := sorted(folder.glob("[!.]*.tar"))):
            places.append((folder, inside))
    if not places:
        tried = ", ".join(f"{name}.tar or {name}/*.tar" for name in names)
        raise UsageError(
            f"no {split} tar in {root}: expected {tried}; "
            f"`tar -cf {root / split}.tar -C FOLDER .` packs a FOLDER of class folders"
        )
    existing = [place.name for place, _ in places]
    return *places[0], encoded.choice_note(root, split, existing)


def _build(files: Sequence[pathlib.Path], stamps: np.ndarray, by_file: bool) -> Tar:
    """The Tar of what is in the files; by_file: whether each may be the tar of a class."""
    contents = tar_members.read_contents(files)
    images = contents.images
    if not images:
        shown = f"{files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        raise UsageError(f"no {', '.join(encoded.SUFFIXES)} files in {shown}")
    if contents.classes:
        missing = [entry.name for entry in images if entry[:2] not in contents.classes]
        if missing:
            raise UsageError(f"{files[0].parent}: no .cls file for {missing[0]!r}")
    groups = [file.stem if by_file else "" for file in files]
    place = files[0].parent if not contents.classes else None
    by_folder = tar_members.folder_classes(contents, groups, place)
    classes = [
        contents.classes.get(entry[:2], name)
        for entry, name in zip(images, by_folder, strict=True)
    ]
    return Tar(
        files=np.array([file.name for file in files]),
        stamps=stamps,
        numbers=np.array([entry.number for entry in images], np.int32),
        offsets=np.array([entry.offset for entry in images], np.int64),
        sizes=np.array([entry.size for entry in images], np.int64),
        names=np.array([os.fsencode(entry.name) for entry in images]),
        classes=np.array([os.fsencode(name) for name in classes]),
        numbered=np.array(bool(contents.classes)),
        left=np.array(encoded.suffix_counts(contents.ignored)),
    )


def _listed(tar: Tar, place: pathlib.Path) -> Tar:
    """The Tar with the classes of a text file, a line for each image by sorted names."""
    file = place.with_suffix(".txt")
    try:
        lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"{tar.files[0]} has images outside of class folders: {file} must have the "
            "class of each, a line for each image by sorted names"
        ) from None
    if len(lines) != len(tar.names):
        raise UsageError(f"{file} has {len(lines)} lines for {len(tar.names)} images")
    classes = np.empty(len(lines), f"S{max(len(os.fsencode(line)) for line in lines)}")
    lines = [unicodedata.normalize("NFC", line) for line in lines]
    classes[np.argsort(tar.names)] = [os.fsencode(line) for line in lines]
    return tar._replace(classes=classes)


def _fits(tar: Tar, files: Sequence[pathlib.Path], stamps: np.ndarray) -> bool:
    """Whether an index is of these very files and its entries agree with each other."""
    count = len(tar.names)
    return bool(
        "".join(entries.dtype.kind for entries in tar) == KINDS
        and tar.files.tolist() == [file.name for file in files]
        and np.array_equal(tar.stamps, stamps)
        and all(len(entries) == count for entries in tar[2:7])
        and count > 0
        and 0 <= tar.numbers.min() <= tar.numbers.max() < len(files)
        and tar.offsets.min() >= 0
        and tar.sizes.min() >= 0
        and np.all(tar.offsets + tar.sizes <= stamps[tar.numbers, 0])
    )


def _load(index: pathlib.Path) -> Tar | None:
    """The Tar of an index file, or None where there is no such file or it is broken."""
    try:
        with np.load(index, allow_pickle=False) as file:
            return Tar(**{key: file[key] for key in Tar._fields})
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _save(index: pathlib.Path, tar: Tar) -> None:
    """Writes an index file whole or, where that is not allowed, not at all."""
    with contextlib.suppress(OSError):
        write = functools.partial(np.savez_compressed, **tar._asdict())
        write_whole(index, write, several=True)
