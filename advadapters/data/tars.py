"""Images inside tar files, read where they are: nothing is ever extracted.

A split is one tar or a folder of them. The class of an image is, where there is one, the
number in KEY.cls beside KEY.jpg (WebDataset's shards); else the folder it is in; else the
name of the tar of its class, which may lie inside the other (ImageNet's
ILSVRC2012_img_train.tar); else a line of TAR.txt beside TAR.tar, which has one class for
each image, by sorted names. Offsets are kept in SPLIT.index.npz beside the tars where that
can be written, as finding them reads the header of every image.
"""

import contextlib
import os
import pathlib
import tarfile
import uuid
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from advadapters.data import encoded
from advadapters.errors import UsageError

NAMES = {
    "train": ("train", "ILSVRC2012_img_train"),
    "test": ("test", "val", "ILSVRC2012_img_val"),
}
KINDS = "UiiiiSSb"  # of the arrays of a Tar


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


class TarReader(NamedTuple):
    """A Tar whose classes are labels int32 [N]."""

    tar: Tar
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def name(self, i):
        """The tar and the name in it."""
        name = self.tar.names[i].decode(errors="replace")
        return f"{name!r} in {self.tar.files[self.tar.numbers[i]]}"

    def read(self, i):
        """(bytes, label)."""
        offset, size = int(self.tar.offsets[i]), int(self.tar.sizes[i])
        with open(self.tar.files[self.tar.numbers[i]], "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise OSError(f"{self.name(i)} is cut off")
        return data, int(self.labels[i])


def open_tars(path):
    """(reader of training, reader of testing, number of classes or 0) of a folder."""
    root = pathlib.Path(path).expanduser()
    train, test = (read_split(root, split) for split in ("train", "test"))
    if train.numbered != test.numbered:
        raise UsageError(f"{root}: only one split has its classes as numbers in .cls files")
    if train.numbered:
        return *(TarReader(tar, as_numbers(tar, root)) for tar in (train, test)), 0
    known = np.unique(train.classes)
    for tar in (train, test):
        unknown = set(np.unique(tar.classes)) - set(known)
        if unknown:
            shown = ", ".join(sorted(name.decode(errors="replace") for name in unknown)[:3])
            raise UsageError(f"{root}: the test split has classes not in training: {shown}")
    labels = [np.searchsorted(known, t.classes).astype(np.int32) for t in (train, test)]
    return TarReader(train, labels[0]), TarReader(test, labels[1]), len(known)


def as_numbers(tar, root):
    """int32 [N] of classes that are numbers."""
    try:
        return tar.classes.astype(np.int32)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{root}: a .cls file holds no class number: {error}") from None


def read_split(root, split):
    """The Tar of a split, from its index if that is of these very files."""
    place, files = find(root, split)
    stamps = np.array([(f.stat().st_size, f.stat().st_mtime_ns) for f in files], np.int64)
    index = root / f"{place.stem}.index.npz"
    tar = load(index)
    if tar is None or not fits(tar, files, stamps):
        tar = build(files, stamps, place.is_dir())
        save(index, tar)
    tar = tar._replace(files=np.array([str(file) for file in files]))
    named = tar.classes != b""
    if named.any() and not named.all():
        odd = tar.names[named.argmin()].decode(errors="replace")
        raise UsageError(f"{place}: {odd!r} is in no class folder, others are")
    return tar if named.all() else listed(tar, place)


def find(root, split):
    """(the tar or the folder of a split, [tar files]); raises UsageError if not there."""
    for name in NAMES[split]:
        file, folder = root / f"{name}.tar", root / name
        if file.is_file():
            return file, [file]
        if folder.is_dir() and (inside := sorted(folder.glob("*.tar"))):
            return folder, inside
    tried = ", ".join(f"{name}.tar or {name}/*.tar" for name in NAMES[split])
    raise UsageError(
        f"no {split} tar in {root}: expected {tried}; "
        f"`tar -cf {root / split}.tar -C FOLDER .` packs a FOLDER of class folders"
    )


def build(files, stamps, own_classes):
    """Goes through the tars; own_classes: each may be the tar of a class."""
    found, keys = [], {}
    for number, file in enumerate(files):
        try:
            with tarfile.open(file, "r:") as tar:
                for entry in members(tar, file.stem if own_classes else ""):
                    keep(entry, number, found, keys)
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
    numbers, names = [row[0] for row in found], [row[2] for row in found]
    classes = [keys.get(row[:2], row[3]) for row in found]
    return Tar(
        files=np.array([file.name for file in files]),
        stamps=stamps,
        numbers=np.array(numbers, np.int32),
        offsets=np.array([row[4] for row in found], np.int64),
        sizes=np.array([row[5] for row in found], np.int64),
        names=np.array([os.fsencode(name) for name in names]),
        classes=np.array([os.fsencode(name) for name in classes]),
        numbered=np.array(bool(keys)),
    )


def keep(entry, number, found, keys):
    """Notes an image, or the class in a .cls file, of tar file `number`."""
    name, group, offset, info, tar = entry
    key, suffix = os.path.splitext(name)
    if suffix == ".cls":
        keys[number, key] = tar.extractfile(info).read(20).decode().strip()
    elif encoded.is_image(name):
        folder = os.path.basename(os.path.dirname(name))
        folder = "" if folder == "." else folder
        found.append((number, key, name, folder or group, offset, info.size))


def members(tar, group, start=0):
    """Yields (name, class by the tar, offset in the outermost file, entry, its tar).

    Links, devices and folders are passed over. Tars inside a tar are gone through, those
    inside them not.
    """
    while (info := tar.next()) is not None:
        tar.members.clear()  # it keeps every entry otherwise
        if info.size < 0 or tar.offset <= info.offset:
            raise tarfile.TarError(f"{info.name!r} has a size below 0")
        if not info.isreg():
            continue
        if info.issparse():
            raise tarfile.TarError(f"{info.name!r} is stored as a sparse file")
        if start == 0 and info.name.endswith(".tar"):
            stem = os.path.basename(info.name).removesuffix(".tar")
            with tarfile.open(fileobj=tar.extractfile(info), mode="r:") as inner:
                yield from members(inner, stem, info.offset_data)
        else:
            yield info.name, group, start + info.offset_data, info, tar
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
    part = index.with_name(f"{index.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "wb") as file:
            np.savez_compressed(file, **tar._asdict())
        part.replace(index)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
