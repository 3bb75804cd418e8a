"""Files that are there whole or not at all."""

import io
import os
import pathlib
import uuid
from collections.abc import Callable
from typing import IO

from etils import epath

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
