"""What a run remembers of its data: names of classes, images of each, and fingerprints.

A record is {"classes": [names] (empty where there are none), "train": PART, "test": PART}
with PART {"images": how many, "counts": [of each class] or None where only reading tells,
"fingerprint": of their order and content}: plain values, kept as JSON.
"""

import hashlib
import itertools
from typing import Any

import numpy as np

from advadapters.data import encoded
from advadapters.data.sources import Source
from advadapters.errors import UsageError

SAMPLE = 64  # images that a fingerprint looks at, evenly spread
FEW = 20  # classes that are told one by one
SPLITS = ("train", "test")


def describe(source, classes) -> dict[str, Any]:
    """The record of a Source, whose labels are below `classes`."""
    parts = {name: describe_split(getattr(source, name), classes) for name in SPLITS}
    return {"classes": list(source.names)} | parts


def describe_split(split, classes):
    """A part of the record."""
    counts = None
    if split.labels is not None:
        counts = np.bincount(split.labels, minlength=classes).tolist()
    return {"images": len(split), "counts": counts, "fingerprint": fingerprint(split)}


def fingerprint(split):
    """A hash of all labels that are known and of the bytes of SAMPLE images.

    The bytes are those before decoding, so that versions of decoders do not matter, and
    the same files have the same one wherever they lie, as long as their order is the same.
    """
    found = hashlib.sha256(str(len(split)).encode())
    if split.labels is not None:
        found.update(np.asarray(split.labels, np.int64).tobytes())
    for i in np.linspace(0, len(split) - 1, SAMPLE).astype(int):
        found.update(hashlib.sha256(split.raw(int(i))).digest())
    return found.hexdigest()[:16]


class Absent:
    """So many images that nobody opened; position in it is refused."""

    labels = None

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        raise UsageError("the images of this run were not opened")


def absent(record=None):
    """The Source of a record, for what needs its numbers and no image; empty for None."""
    if record is None:
        return Source(Absent(0), Absent(0), 0)
    train, test = (Absent(record[name]["images"]) for name in SPLITS)
    return Source(train, test, len(record["classes"]), tuple(record["classes"]))


def need_same_names(there, here, titles):
    """Raises UsageError with the first difference between two lists of class names.

    titles: of both, in words. Nothing is compared where one has no names; returns a line
    that says so where the other has, else "".
    """
    if bool(there) != bool(here):
        missing = titles[0 if here else 1]
        return f"class names are not compared: {missing} without any"
    if not there:
        return ""
    for number, (old, new) in enumerate(itertools.zip_longest(there, here)):
        if old != new:
            told = ["missing" if name is None else repr(name) for name in (old, new)]
            kind = (
                "the same names in another order" if {*there} == {*here} else "other names"
            )
            raise UsageError(
                f"class {number} is {told[0]} in {titles[0]} and {told[1]} in {titles[1]} "
                f"({kind}): predictions would be counted as other classes; name and number "
                "them alike"
            )
    return ""


def numbers(there, here, titles):
    """int [len(here)]: the number in the list `there` of each name in the list `here`.

    Raises UsageError for a name that is not in it.
    """
    known = {name: number for number, name in enumerate(there)}
    unknown = [name for name in here if name not in known]
    if unknown:
        raise UsageError(
            f"{titles[1]} has class {unknown[0]!r}, which is none of the {len(there)} of "
            f"{titles[0]} ({', '.join(there[:3])}, ...): rename it, or leave it out"
        )
    return np.array([known[name] for name in here])


def differences(old, new):
    """[what of the images differs, in words] between two parts of records."""
    if old["images"] != new["images"]:
        return [f"{old['images']:,} images then, {new['images']:,} now"]
    if old["fingerprint"] != new["fingerprint"]:
        return ["other images, labels or another order"]
    return []


def told(record):
    """Lines about the classes: names, images of each, imbalance, classes without any."""
    names = [encoded.printable(name) for name in record["classes"]]
    train, test = (record[name]["counts"] for name in SPLITS)
    if train is None:
        shown = ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")
        count = f"{len(names):,} classes: {shown}; " if names else ""
        return [f"{count}how many images each class has is not known before reading"]
    names = names or [str(number) for number in range(len(train))]
    lines = [f"training images by class: {told_counts(names, train)}"]
    if test is not None:
        lines.append(f"test images by class: {told_counts(names, test)}")
    return lines


def told_counts(names, counts):
    """ "cat 300, dog 280", or a summary of many."""
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
