"""Images inside tar files, read where they are: nothing is ever extracted.

A split is one tar or a folder of them. The class of an image is, where there is one, the
number in KEY.cls beside KEY.jpg (WebDataset's shards); else the first folder of its path,
without those that all images are in, where a tar inside the other counts as a folder
(ImageNet's ILSVRC2012_img_train.tar); else the name of its tar, of several; else a line of
TAR.txt beside TAR.tar, which has one class for each image, by sorted names. Hidden files
are passed over, as in folders. Offsets are kept in SPLIT.index.npz beside the tars where
that can be written, as finding them reads the header of every image.
"""

import collections
import contextlib
import functools
import os
import pathlib
import tarfile
import unicodedata
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from advadapters.data import encoded
from advadapters.errors import UsageError
from advadapters.files import write_whole

NAMES = {
    "train": ("train", "ILSVRC2012_img_train"),
    "test": ("test", "val", "validation", "valid", "ILSVRC2012_img_val"),
}
KINDS = "UiiiiSSbU"  # of the arrays of a Tar


class Tar(NamedTuple):
    """Images at `offsets` of the files[numbers]; all but `files` have one entry each.

    classes: bytes, the class's name or number, or nothing.
    """

    files: np.ndarray  # str [F]
    stamps: np.ndarray  # int64 [F, 2]: size and time of change
    numbers: np.ndarray  # int32
    offsets: np.ndarray  # int64
    sizes: np.ndarray  # int64
    names: np.ndarray  # bytes
    classes: np.ndarray  # bytes
    numbered: np.ndarray  # bool []: whether classes are numbers
    left: np.ndarray  # str []: what was left out, in words


class TarReader(NamedTuple):
    """A Tar whose classes are labels int32 [N]."""

    tar: Tar
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def file(self, i):
        """The name in its tar."""
        return bytes(self.tar.names[i]).decode(errors="replace")

    def name(self, i):
        """The tar and the name in it."""
        return f"{self.file(i)!r} in {self.tar.files[self.tar.numbers[i]]}"

    def read(self, i):
        """(bytes, label)."""
        offset, size = int(self.tar.offsets[i]), int(self.tar.sizes[i])
        with open(str(self.tar.files[self.tar.numbers[i]]), "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise OSError(f"{self.name(i)} is cut off")
        return data, int(self.labels[i])


class Tars(NamedTuple):
    """Readers of both splits, names of the classes or (), and lines to be told."""

    train: TarReader | None
    test: TarReader
    names: tuple[str, ...]
    notes: tuple[str, ...]


def open_tars(path, test_split=""):
    """The Tars of a folder; test_split: the name of the tar or folder, "" for the usual."""
    root = pathlib.Path(path).expanduser()
    tests = (test_split,) if test_split else NAMES["test"]
    (train, *told), (test, *more) = (
        read_split(root, split, names)
        for split, names in (("train", NAMES["train"]), ("test", tests))
    )
    if train.numbered != test.numbered:
        raise UsageError(f"{root}: only one split has its classes as numbers in .cls files")
    names = () if train.numbered else np.unique(train.classes)
    first, second = (labelled(tar, names, root) for tar in (train, test))
    notes = tuple(filter(None, (*told, *more)))
    return Tars(first, second, tuple(map(os.fsdecode, names)), notes)


def open_test(path):
    """Tars without training: classes are numbered by the names in the test set."""
    root = pathlib.Path(path).expanduser()
    test, *told = read_split(root, "test", NAMES["test"])
    names = () if test.numbered else np.unique(test.classes)
    notes = tuple(filter(None, told))
    return Tars(None, labelled(test, names, root), tuple(map(os.fsdecode, names)), notes)


def labelled(tar, names, root):
    """The TarReader of a Tar whose classes are numbered by sorted names, if not numbers."""
    if tar.numbered:
        return TarReader(tar, as_numbers(tar, root))
    unknown = set(np.unique(tar.classes)) - set(names)
    if unknown:
        shown = ", ".join(sorted(name.decode(errors="replace") for name in unknown)[:3])
        raise UsageError(f"{root}: the test split has classes not in training: {shown}")
    return TarReader(tar, np.searchsorted(names, tar.classes).astype(np.int32))


def as_numbers(tar, root):
    """int32 [N] of classes that are numbers."""
    try:
        return tar.classes.astype(np.int32)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{root}: a .cls file holds no class number: {error}") from None


def read_split(root, split, names):
    """(the Tar of a split, notes), from its index if that is of these very files."""
    place, files, note = find(root, split, names)
    stamps = np.array([(f.stat().st_size, f.stat().st_mtime_ns) for f in files], np.int64)
    index = root / f"{place.stem}.index.npz"
    tar = load(index)
    if tar is None or not fits(tar, files, stamps):
        tar = build(files, stamps, place.is_dir())
        save(index, tar)
    tar = tar._replace(files=np.array([str(file) for file in files]))
    left = str(tar.left) and f"left out in {place}: {tar.left}"
    named = tar.classes != b""
    if named.any() and not named.all():
        odd = bytes(tar.names[named.argmin()]).decode(errors="replace")
        raise UsageError(f"{place}: {odd!r} is in no class folder, others are")
    return (tar if named.all() else listed(tar, place)), note, left


def find(root, split, names):
    """(the tar or the folder of a split, [tar files], what to say of the choice).

    Of the names the first that there is. Raises UsageError if there is none.
    """
    found = []
    for name in names:
        file, folder = root / f"{name}.tar", root / name
        if file.is_file():
            found.append((file, [file]))
        elif folder.is_dir() and (inside := sorted(folder.glob("[!.]*.tar"))):
            found.append((folder, inside))
    if not found:
        tried = ", ".join(f"{name}.tar or {name}/*.tar" for name in names)
        raise UsageError(
            f"no {split} tar in {root}: expected {tried}; "
            f"`tar -cf {root / split}.tar -C FOLDER .` packs a FOLDER of class folders"
        )
    there = [place.name for place, _ in found]
    return *found[0], encoded.told_choice(root, split, there)


def build(files, stamps, own_classes):
    """Goes through the tars; own_classes: each may be the tar of a class."""
    found, keys, folders, left = [], {}, set(), collections.Counter()
    for number, file in enumerate(files):
        try:
            with tarfile.open(file, "r:") as tar:
                for entry in members(tar):
                    keep(entry, number, found, keys, folders, left)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise UsageError(
                f"cannot read {file} as an uncompressed tar: {error}; compressed ones "
                "have to be unpacked (gunzip) first"
            ) from None
    if not found:
        shown = f"{files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        raise UsageError(f"no {', '.join(encoded.SUFFIXES)} files in {shown}")
    if keys:
        missing = [name for number, key, name, *_ in found if (number, key) not in keys]
        if missing:
            raise UsageError(f"{files[0].parent}: no .cls file for {missing[0]!r}")
    groups = [file.stem if own_classes else "" for file in files]
    by_folder = classes_of(found, folders, groups, files[0].parent if not keys else None)
    numbers, names = [row[0] for row in found], [row[2] for row in found]
    classes = [keys.get(row[:2], name) for row, name in zip(found, by_folder, strict=True)]
    return Tar(
        files=np.array([file.name for file in files]),
        stamps=stamps,
        numbers=np.array(numbers, np.int32),
        offsets=np.array([row[4] for row in found], np.int64),
        sizes=np.array([row[5] for row in found], np.int64),
        names=np.array([os.fsencode(name) for name in names]),
        classes=np.array([os.fsencode(name) for name in classes]),
        numbered=np.array(bool(keys)),
        left=np.array(encoded.told_left(left)),
    )


def keep(entry, number, found, keys, folders, left):
    """Notes an entry of tar file `number`: an image, the class in a .cls file, a folder."""
    above, name, offset, info, tar = entry
    parts = (*above, *parts_of(name))
    if any(map(encoded.is_hidden, parts)):
        return
    key, suffix = os.path.splitext(name)
    if info.isdir():
        folders.add(parts)
    elif not info.isreg():
        pass
    elif suffix == ".cls":
        keys[number, key] = tar.extractfile(info).read(20).decode().strip()
    elif encoded.is_image(name):
        found.append((number, key, name, parts[:-1], offset, info.size))
        folders.add(parts[:-1])
    else:
        left[encoded.suffix(name)] += 1


def parts_of(name):
    """The names in a path, which leads nowhere."""
    return tuple(part for part in name.split("/") if part not in ("", ".", ".."))


def classes_of(found, folders, groups, place):
    """[class of an image]: the first folder below those that all images are in.

    groups: by tar file, of images that are in no folder. place: what to call the tars if
    there are folders without images, None if folders are no classes.
    """
    paths = [row[3] for row in found]
    first, depth = paths[0], 0
    while all(len(path) > depth + 1 and path[depth] == first[depth] for path in paths):
        depth += 1
    named = [
        unicodedata.normalize("NFC", path[depth] if path[depth:] else groups[row[0]])
        for path, row in zip(paths, found, strict=True)
    ]
    if place is not None and any(paths):
        below = {path[depth] for path in folders if path[:depth] == first[:depth] != path}
        empty = {unicodedata.normalize("NFC", name) for name in below} - set(named)
        if empty:
            raise UsageError(
                f"class folder {min(empty)!r} in the tars of {place} has no images: pack "
                "them without it, or with its images"
            )
    return named


def members(tar, above=(), start=0):
    """Yields (folders above, name, offset in the outermost file, entry, its tar).

    Tars inside a tar are gone through and count as folders, those inside them not.
    """
    while (info := tar.next()) is not None:
        tar.members.clear()  # it keeps every entry otherwise
        if info.size < 0 or tar.offset <= info.offset:
            raise tarfile.TarError(f"{info.name!r} has a size below 0")
        if info.isreg() and info.issparse():
            raise tarfile.TarError(f"{info.name!r} is stored as a sparse file")
        parts = parts_of(info.name)
        hidden = any(map(encoded.is_hidden, parts))
        if start == 0 and info.isreg() and info.name.endswith(".tar") and not hidden:
            folder = (*parts[:-1], parts[-1].removesuffix(".tar"))
            with tarfile.open(fileobj=tar.extractfile(info), mode="r:") as inner:
                yield from members(inner, folder, info.offset_data)
        else:
            yield above, info.name, start + info.offset_data, info, tar
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.TarError(f"no tar header at byte {start + tar.offset}")


def listed(tar, place):
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


def fits(tar, files, stamps):
    """Whether an index is of these very files and its entries agree with each other."""
    count = len(tar.names)
    return (
        "".join(entries.dtype.kind for entries in tar) == KINDS
        and tar.files.tolist() == [file.name for file in files]
        and np.array_equal(tar.stamps, stamps)
        and all(len(entries) == count for entries in tar[2:7])
        and count > 0
        and 0 <= tar.numbers.min() <= tar.numbers.max() < len(files)
        and tar.offsets.min() >= 0
        and tar.sizes.min() >= 0
        and bool(np.all(tar.offsets + tar.sizes <= stamps[tar.numbers, 0]))
    )


def load(index):
    """The Tar of an index file, or None if it is not there or none."""
    try:
        with np.load(index, allow_pickle=False) as file:
            return Tar(**{key: file[key] for key in Tar._fields})
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def save(index, tar):
    """Writes an index file whole or, where that is not allowed, not at all."""
    with contextlib.suppress(OSError):
        write = functools.partial(np.savez_compressed, **tar._asdict())
        write_whole(index, write, several=True)
