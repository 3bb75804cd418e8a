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
import io
import os
import pathlib
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from advadapters.data import encoded
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


class Entry(NamedTuple):
    """An image in a tar file: the file's number, and what its header says.

    key: the name without its suffix, which a .cls file shares. folders: that it is in.
    """

    number: int
    key: str
    name: str
    folders: tuple[str, ...]
    offset: int
    size: int


class Contents(NamedTuple):
    """What is in the tars of a split, filled entry by entry.

    classes: {(file's number, key): class} of .cls files. folders: all there are, each as
    its path. ignored: how many files of each other suffix there are.
    """

    images: list[Entry]
    classes: dict[tuple[int, str], str]
    folders: set[tuple[str, ...]]
    ignored: collections.Counter[str]


def _build(files: Sequence[pathlib.Path], stamps: np.ndarray, by_file: bool) -> Tar:
    """Goes through the tars; by_file: whether each may be the tar of a class."""
    contents = Contents([], {}, set(), collections.Counter())
    for number, file in enumerate(files):
        try:
            with tarfile.open(file, "r:") as tar:
                for member in _members(tar):
                    _keep(member, number, contents)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise UsageError(
                f"cannot read {file} as an uncompressed tar: {error}; compressed ones "
                "have to be unpacked (gunzip) first"
            ) from None
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
    by_folder = _folder_classes(contents, groups, place)
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


class Member(NamedTuple):
    """An entry of a tar.

    above: folders that the tar itself counts as, if it is inside another. offset: of its
    bytes in the outermost file.
    """

    above: tuple[str, ...]
    offset: int
    info: tarfile.TarInfo
    tar: tarfile.TarFile


def _keep(member: Member, number: int, contents: Contents) -> None:
    """Notes an entry of tar file `number`: an image, the class in a .cls file, a folder."""
    info, name = member.info, member.info.name
    parts = (*member.above, *_parts(name))
    if any(map(encoded.is_hidden, parts)):
        return
    key, suffix = os.path.splitext(name)
    if info.isdir():
        contents.folders.add(parts)
    elif not info.isreg():
        pass
    elif suffix == ".cls":
        contents.classes[number, key] = _inside(member.tar, info).read(20).decode().strip()
    elif encoded.is_image(name):
        entry = Entry(number, key, name, parts[:-1], member.offset, info.size)
        contents.images.append(entry)
        contents.folders.add(parts[:-1])
    else:
        contents.ignored[encoded.suffix(name)] += 1


def _parts(name: str) -> tuple[str, ...]:
    """The names in a path, without those that lead elsewhere or nowhere."""
    return tuple(part for part in name.split("/") if part not in ("", ".", ".."))


def _inside(tar: tarfile.TarFile, info: tarfile.TarInfo) -> io.BufferedReader:
    """The bytes of an entry that is a regular file, to be read."""
    file = tar.extractfile(info)
    assert isinstance(file, io.BufferedReader)  # it is None for other kinds of entries
    return file


def _folder_classes(
    contents: Contents, groups: Sequence[str], place: pathlib.Path | None
) -> list[str]:
    """The class of each image: the first folder below those that all images are in.

    Args:
      contents: of the tars.
      groups: for each tar file the class of its images that are in no folder.
      place: what to call the tars if there are folders without images; None if folders are
        no classes.
    """
    paths = [entry.folders for entry in contents.images]
    first, depth = paths[0], 0
    while all(len(path) > depth + 1 and path[depth] == first[depth] for path in paths):
        depth += 1
    names = [
        path[depth] if path[depth:] else groups[entry.number]
        for path, entry in zip(paths, contents.images, strict=True)
    ]
    classes = [unicodedata.normalize("NFC", name) for name in names]
    if place is not None and any(paths):
        above = first[:depth]
        below = {path[depth] for path in contents.folders if path[:depth] == above != path}
        empty = {unicodedata.normalize("NFC", name) for name in below} - set(classes)
        if empty:
            raise UsageError(
                f"class folder {min(empty)!r} in the tars of {place} has no images: pack "
                "them without it, or with its images"
            )
    return classes


def _members(tar: Any, above: tuple[str, ...] = (), start: int = 0) -> Iterator[Member]:
    """The entries of a TarFile, as `Member` says; start: of the tar in the outermost file.

    Tars inside a tar are gone through and count as folders, those inside them not.
    """
    while (info := tar.next()) is not None:
        tar.members.clear()  # it keeps every entry otherwise
        if info.size < 0 or tar.offset <= info.offset:
            raise tarfile.TarError(f"{info.name!r} has a size below 0")
        if info.isreg() and info.issparse():
            raise tarfile.TarError(f"{info.name!r} is stored as a sparse file")
        parts = _parts(info.name)
        hidden = any(map(encoded.is_hidden, parts))
        if start == 0 and info.isreg() and info.name.endswith(".tar") and not hidden:
            folder = (*parts[:-1], parts[-1].removesuffix(".tar"))
            with tarfile.open(fileobj=_inside(tar, info), mode="r:") as inner:
                yield from _members(inner, folder, info.offset_data)
        else:
            yield Member(above, start + info.offset_data, info, tar)
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.TarError(f"no tar header at byte {start + tar.offset}")


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
