"""Sources of image files in folders, a folder for each class."""

import collections
import os
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from advadapters.data import encoded
from advadapters.data.arrays import Options
from advadapters.data.splits import Source, TestSet
from advadapters.errors import UsageError

TESTS = ("test", "val", "validation", "valid")  # names of the test folder, in this order


class Listing(NamedTuple):
    """The image files below a folder of class folders.

    files: {class: [path below root]}, sorted. Names of classes are in Unicode's composed
    form (NFC), so that one name is one class, whatever system wrote it. note: what was left
    out, in words.
    """

    root: pathlib.Path
    files: dict[str, list[str]]
    note: str


def folder(path: str, options: Options) -> Source:
    """DIR/train/<class>/**/*.jpg and the like, and DIR/test/<class>/...

    A class is the folder directly in train/, whatever folders are below it.
    """
    root = _need_folder(path)
    train = _list_classes(_need_folder(root / "train"))
    names = sorted(train.files)
    if not names:
        raise UsageError(f"no class folders in {root / 'train'}")
    place, note = _find_test(root, options["test_split"])
    test = _list_classes(place)
    first, second = (_folder_split(listing, names, options) for listing in (train, test))
    notes = tuple(filter(None, (note, train.note, test.note)))
    return Source(first, second, len(names), tuple(names), notes)


def folder_test(path: str, options: Options) -> TestSet:
    """DIR/test/<class>/..., or DIR/<class>/... where there is no such folder."""
    root = _need_folder(path)
    place, note = root, ""
    if (root / "train").is_dir() or any((root / name).is_dir() for name in TESTS):
        place, note = _find_test(root, "")
    listing = _list_classes(place)
    names = sorted(listing.files)
    notes = tuple(filter(None, (note, listing.note)))
    return TestSet(_folder_split(listing, names, options), tuple(names), notes)


def _find_test(root: pathlib.Path, name: str) -> tuple[pathlib.Path, str]:
    """The folder to evaluate on, and a note where it was chosen among several.

    name: of the folder that is wanted; "" takes the first of TESTS.
    """
    names = (name,) if name else TESTS
    existing = [name for name in names if (root / name).is_dir()]
    chosen = (existing or names)[0]
    return _need_folder(root / chosen), encoded.choice_note(root, "test", existing)


def _need_folder(path: str | pathlib.Path) -> pathlib.Path:
    """The path, if it is an existing folder."""
    path = pathlib.Path(path).expanduser()
    if not path.is_dir():
        raise UsageError(
            f"data folder {path} is not there: the source's folder must have "
            "train/<class>/*.jpg and test/<class>/*.jpg; from tars, take "
            "config.data.source=tar:DIR or `mkdir -p DIR/train && tar -xf train.tar -C "
            "DIR/train`"
        )
    return path


def _list_classes(root: pathlib.Path) -> Listing:
    """The Listing of a folder; raises UsageError for a class without images."""
    files, ignored = {}, collections.Counter()
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if encoded.is_hidden(entry.name):
            continue
        if not entry.is_dir():
            ignored[encoded.suffix(entry.name)] += 1
            continue
        name = unicodedata.normalize("NFC", entry.name)
        images, others = _list_images(root, entry.name)
        if not images:
            raise UsageError(
                f"class folder {os.path.join(root, entry.name)} has no images ("
                f"{encoded.suffix_counts(others) or 'nothing'} in it; read are "
                f"{', '.join(encoded.SUFFIXES)}): remove the folder, or put its images in"
            )
        files.setdefault(name, []).extend(images)
        ignored += others
    counts = encoded.suffix_counts(ignored)
    return Listing(root, files, counts and f"left out in {root}: {counts}")


def _list_images(
    root: pathlib.Path, name: str
) -> tuple[list[str], collections.Counter[str]]:
    """The images in a folder of the root, as paths below the root, and what else is there.

    Folders below are searched too, also through links, but not in circles; hidden files and
    folders are passed over. The second result counts the suffixes of all other files.
    """
    images, others, above = [], collections.Counter(), {}
    for place, folders, files in os.walk(root / name, followlinks=True):
        real = os.path.realpath(place)
        circle = above.get(os.path.dirname(place), frozenset())
        above[place] = circle | {real}
        if real in circle:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not encoded.is_hidden(name)]
        for file in files:
            if encoded.is_hidden(file):
                continue
            if encoded.is_image(file):
                images.append(os.path.relpath(os.path.join(place, file), root))
            else:
                others[encoded.suffix(file)] += 1
    return sorted(images), others


def _folder_split(
    listing: Listing, names: Sequence[str], options: Options
) -> encoded.Encoded:
    """The images of a Listing, their classes numbered by the names of training."""
    unknown = sorted(listing.files.keys() - set(names))
    if unknown:
        raise UsageError(f"{listing.root} has classes that training has not: {unknown[:3]}")
    if not listing.files:
        suffixes = ", ".join(encoded.SUFFIXES)
        raise UsageError(f"no {suffixes} files in {listing.root}/<class>/")
    number = {name: i for i, name in enumerate(names)}
    pairs = [
        (path, number[name])
        for name in sorted(listing.files)
        for path in listing.files[name]
    ]
    paths, labels = zip(*pairs, strict=True)
    reader = encoded.Files(str(listing.root), list(paths), np.array(labels, np.int32))
    return encoded.Encoded(reader, options["channels"], options["skip_corrupt"])
