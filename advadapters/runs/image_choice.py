"""Which of a run's test images are evaluated on: so many of them, or those of a list."""

import os
from typing import Any

import numpy as np

from advadapters.data import splits
from advadapters.data.splits import Subset
from advadapters.errors import UsageError


def test_images(run: Any, examples: int | None = None, names: str = "") -> Any:
    """The test images of a run: only so many of them, or those that a file names."""
    if names:
        return named(run.data.test, names)
    return splits.few(run.data.test, examples)


def named(split: Any, path: str | os.PathLike) -> Subset:
    """The examples of a split whose files are named in a text file, a line each.

    A line is the end of a path, such as n01440764/ILSVRC2012_val_00000293.JPEG. Raises
    UsageError for a line that fits no file or several, and for images that are no files.
    """
    try:
        with open(os.path.expanduser(path)) as file:
            lines = dict.fromkeys(line.strip() for line in file if line.strip())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read --names={path}: {error}") from None
    name_of = getattr(getattr(split, "reader", None), "file", None)
    if name_of is None:
        raise UsageError(
            "--names is for images that are files: config.data.source=folder:DIR or tar:DIR"
        )
    places = {}
    for number in range(len(split)):
        name = "/" + name_of(number)
        places.setdefault(name.rpartition("/")[2], []).append((number, name))
    chosen = []
    for line in lines:
        near = places.get(line.rpartition("/")[2], [])
        matches = [number for number, name in near if name.endswith("/" + line)] or [
            number for number, _ in near
        ]
        if len(matches) != 1:
            many = f"{len(matches)} test images have" if matches else "no test image has"
            raise UsageError(f"--names={path}: {many} the name {line!r}")
        chosen += matches
    if not chosen:
        raise UsageError(f"--names={path} names no image")
    return Subset(split, np.array(sorted(chosen)))
