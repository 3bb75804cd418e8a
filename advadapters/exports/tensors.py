"""Named arrays as bytes in the layout of safetensors, with numpy alone.

Eight bytes with the length of a header, the header in JSON, and the arrays one after the
other. What is read back is compared with the layout in full, so that no file, however it
was made, is read beyond its end or taken for another type.
(https://github.com/huggingface/safetensors, "Format")
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

DTYPES = {"F32": np.float32, "I32": np.int32, "U8": np.uint8}
HEADER = 64 * 1024**2  # bytes of a header, at most


def pack(arrays: Mapping[str, np.ndarray], about: Mapping[str, str] | None = None) -> bytes:
    """Arrays of the types in `DTYPES` as the bytes of a safetensors file.

    about: {name: text} that is told beside them.

    Raises ValueError for an array of another type.

    >>> unpack(pack({"a": np.zeros(3, np.float32)}))
    {'a': array([0., 0., 0.], dtype=float32)}
    """
    words = {np.dtype(kind): word for word, kind in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
    parts, start = [], 0
    for name, array in sorted(arrays.items()):
        if array.dtype not in words:
            raise ValueError(f"{name!r} is {array.dtype}, which is none of {[*DTYPES]}")
        stop = start + array.nbytes
        offsets = [start, stop]
        shape = list(array.shape)
        word = words[array.dtype]
        header[name] = {"dtype": word, "shape": shape, "data_offsets": offsets}
        little = array.dtype.newbyteorder("<")
        parts.append(np.ascontiguousarray(array, little).tobytes())
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays begin at a multiple of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of such bytes; raises ValueError for any that `pack` does not make."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(HEADER, len(data) - 8):
        raise ValueError("the header of the arrays is cut off")
    try:
        header = json.loads(data[8 : 8 + length])
    except RecursionError:
        raise ValueError("the header of the arrays is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("the header of the arrays is no table")
    header.pop("__metadata__", None)
    arrays, start = {}, 8 + length
    for name, row in header.items():
        dtype, shape = _read_row(name, row)
        size = math.prod(shape) * dtype.itemsize
        offset = start - 8 - length
        if row["data_offsets"] != [offset, offset + size] or start + size > len(data):
            raise ValueError(f"the array {name!r} is not where its header says")
        flat = np.frombuffer(data, dtype, math.prod(shape), start)
        arrays[name] = flat.reshape(shape).astype(dtype.newbyteorder("="), copy=False)
        start += size
    if start != len(data):
        raise ValueError("there are bytes after the last array")
    return arrays


def _read_row(name: str, row: Any) -> tuple[np.dtype, tuple[int, ...]]:
    """(type, shape) of an array by its row of the header."""
    if not isinstance(row, dict) or row.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the header of the array {name!r} is not that of safetensors")
    word, shape = row["dtype"], row["shape"]
    if not isinstance(word, str) or word not in DTYPES:
        raise ValueError(f"the array {name!r} is {word!r}, which is none of {[*DTYPES]}")
    whole = isinstance(shape, list) and all(type(side) is int for side in shape)
    if not whole or len(shape) > 8 or min(shape, default=0) < 0:
        raise ValueError(f"the array {name!r} has the shape {shape!r}")
    return np.dtype(DTYPES[word]).newbyteorder("<"), tuple(shape)
