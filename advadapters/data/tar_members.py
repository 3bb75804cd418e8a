"""What is in tar files by their headers: images, classes, folders and other files."""

import collections
import io
import os
import pathlib
import tarfile
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from advadapters.data import encoded
from advadapters.errors import UsageError

REST = 1 << 20  # bytes that are read at once behind the end of an archive


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


def read_contents(files: Sequence[pathlib.Path]) -> Contents:
    """The Contents of the tars of a split.

    Raises:
      UsageError: a file is not an uncompressed tar, or it is broken.
    """
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
    return contents


def folder_classes(
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
    # An archive ends with zeros up to its end. A header that was zeroed looks like the end,
    # and what follows would be lost without a word.
    tar.fileobj.seek(tar.offset)
    while block := tar.fileobj.read(REST):
        if block.strip(b"\0"):
            raise tarfile.TarError(f"no tar header at byte {start + tar.offset}")
