"""What a run remembers of its data: names of classes, images of each, and fingerprints.

A record is {"classes": [names] (empty where there are none), "train": PART, "test": PART},
where PART is {"images": how many, "counts": [images of each class] or None where only
reading tells, "fingerprint": of their order and content}. These are plain values, kept as
JSON.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from advadapters.data import encoded
from advadapters.data.splits import Source, SourceSplit
from advadapters.errors import UsageError

SAMPLE = 64  # images that a fingerprint looks at, evenly spread
FEW = 20  # classes that are printed one by one
SPLITS = ("train", "test")

Record = dict[str, Any]


def describe(source: Source, classes: int) -> Record:
    """The record of a Source, whose labels are below `classes`."""
    parts = {name: describe_split(getattr(source, name), classes) for name in SPLITS}
    return {"classes": list(source.names)} | parts


def describe_split(split: SourceSplit, classes: int) -> Record:
    """The part of a record about one split."""
    counts = None
    if split.labels is not None:
        counts = np.bincount(split.labels, minlength=classes).tolist()
    return {"images": len(split), "counts": counts, "fingerprint": fingerprint(split)}


def fingerprint(split: SourceSplit) -> str:
    """A hash of all labels that are known and of the bytes of SAMPLE images.

    The bytes are those before decoding, so that versions of decoders do not matter, and
    the same files have the same one wherever they lie, as long as their order is the same.
    """
    digest = hashlib.sha256(str(len(split)).encode())
    if split.labels is not None:
        digest.update(np.asarray(split.labels, np.int64).tobytes())
    for i in np.linspace(0, len(split) - 1, SAMPLE).astype(int):
        digest.update(hashlib.sha256(split.raw(int(i))).digest())
    return digest.hexdigest()[:16]


class Absent:
    """A split of a known size whose images were not opened; to ask for one is refused."""

    labels = None

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: Any) -> NoReturn:
        raise UsageError("the images of this run were not opened")

    find = raw = __getitem__


def absent(record: Record | None = None) -> Source:
    """The Source of a record, for what needs its numbers and no image; empty for None."""
    if record is None:
        return Source(Absent(0), Absent(0), 0)
    train, test = (Absent(record[name]["images"]) for name in SPLITS)
    return Source(train, test, len(record["classes"]), tuple(record["classes"]))


def need_same_names(
    first: Sequence[str], second: Sequence[str], titles: tuple[str, str]
) -> str:
    """Compares two lists of class names; nothing is compared where one is empty.

    Args:
      first: names of the classes, by their numbers.
      second: names of the classes that should be the same.
      titles: what the user calls the two.

    Returns:
      A line for the user where only one of the two has names, else "".

    Raises:
      UsageError: the names differ; it says where they do so first.
    """
    if bool(first) != bool(second):
        missing = titles[0 if second else 1]
        return f"class names are not compared: {missing} without any"
    if not first:
        return ""
    for number, pair in enumerate(itertools.zip_longest(first, second)):
        if pair[0] != pair[1]:
            shown = ["missing" if name is None else repr(name) for name in pair]
            same = {*first} == {*second}
            kind = "the same names in another order" if same else "other names"
            raise UsageError(
                f"class {number} is {shown[0]} in {titles[0]} and {shown[1]} in "
                f"{titles[1]} ({kind}): predictions would be counted as other classes; "
                "name and number them alike"
            )
    return ""


def numbers(
    known: Sequence[str], names: Sequence[str], titles: tuple[str, str]
) -> np.ndarray:
    """int [len(names)]: the number of each name in the list of known names.

    titles: what the user calls the two lists. Raises UsageError for a name that is not
    known.
    """
    number_of = {name: number for number, name in enumerate(known)}
    unknown = [name for name in names if name not in number_of]
    if unknown:
        raise UsageError(
            f"{titles[1]} has class {unknown[0]!r}, which is none of the {len(known)} of "
            f"{titles[0]} ({', '.join(known[:3])}, ...): rename it, or leave it out"
        )
    return np.array([number_of[name] for name in names])


def differences(old: Record, new: Record) -> list[str]:
    """How the images of two parts of records differ, in words; [] where they do not."""
    if old["images"] != new["images"]:
        return [f"{old['images']:,} images then, {new['images']:,} now"]
    if old["fingerprint"] != new["fingerprint"]:
        return ["other images, labels or another order"]
    return []


def lines_about(record: Record) -> list[str]:
    """Lines for the user on the classes: names, images of each, and imbalance."""
    names = [encoded.printable(name) for name in record["classes"]]
    train, test = (record[name]["counts"] for name in SPLITS)
    if train is None:
        shown = ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")
        count = f"{len(names):,} classes: {shown}; " if names else ""
        return [f"{count}how many images each class has is not known before reading"]
    names = names or [str(number) for number in range(len(train))]
    lines = [f"training images by class: {counts_in_words(names, train)}"]
    if test is not None:
        lines.append(f"test images by class: {counts_in_words(names, test)}")
    return lines


def counts_in_words(names: Sequence[str], counts: Sequence[int]) -> str:
    """The images of each class, as in "cat 300, dog 280", or a summary of many classes."""
    pairs = list(zip(names, counts, strict=False))
    if len(pairs) <= FEW:
        text = ", ".join(f"{name} {count:,}" for name, count in pairs)
    else:
        low, high = (f(pairs, key=lambda pair: pair[1]) for f in (min, max))
        text = (
            f"{len(pairs):,} classes, the fewest {low[1]:,} ({low[0]}), the most "
            f"{high[1]:,} ({high[0]})"
        )
    few, many = min(counts), max(counts)
    if few == 0:
        missing = [name for name, count in pairs if not count]
        text += f"; NONE of {len(missing)} classes: {', '.join(missing[:5])}"
    elif many >= 2 * few:
        text += f"; the largest has {many / few:.1f} times as many as the smallest"
    return text
