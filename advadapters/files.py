"""Files that are there whole or not at all."""

import errno
import io
import os
import pathlib
import uuid
from collections.abc import Callable
from typing import IO

from etils import epath

TROUBLE = 74  # exit code of a program that could not write its files, as in sysexits.h
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk does not work",
    errno.ESTALE: "the file system is gone",
}
OpenFile = IO[bytes] | io.BufferedIOBase  # to write to; of memory too
AnyPath = pathlib.Path | epath.Path  # a local file, or one of a bucket


def write_whole(
    path: AnyPath, write: Callable[[IO[bytes]], object], several: bool = False
) -> None:
    """Has `write` fill an open binary file beside `path`, which then takes its place.

    Whoever is killed, or meets an error, leaves what was there before. several: whether
    several processes may write it at once; the last one's stays.
    """
    tag = f".{uuid.uuid4().hex}" if several else ""
    part = path.with_name(f"{path.name}{tag}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def move_into(path: str, folder: str) -> None:
    """Moves a file or a folder into a folder; under a further name if that is taken."""
    source, target = epath.Path(path), epath.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    place, number = target / source.name, 1
    while place.exists():
        number += 1
        place = target / f"{source.name}-{number}"
    source.rename(place)


def trouble(error: BaseException) -> str:
    """What to tell a user of an error that a disk caused, "" of any other error.

    Looks through the errors that led to it, and reads the texts of libraries that do not
    keep the number of the error.
    """
    chain: BaseException | None = error
    while chain is not None:
        for number, words in REASONS.items():
            known = isinstance(chain, OSError) and chain.errno == number
            if known or os.strerror(number) in str(chain):
                place = getattr(chain, "filename", None)
                return (
                    f"{words}"
                    + (f" ({place})" if place else "")
                    + ": what was saved before "
                    "is whole; make room, and give the same command again"
                )
        chain = chain.__cause__ or chain.__context__
    return ""
