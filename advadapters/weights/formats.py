"""Files of weights as {name: array}: which format a file has, its content says.

Nothing of a file is executed: pickles are read by torch's unpickler of plain tensors alone,
and object arrays by nobody. What is damaged, or too large for what it says it holds, raises
a UsageError.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from advadapters.errors import UsageError
from advadapters.files import AnyPath
from advadapters.weights import onnx_files
from advadapters.weights.layouts import Stored

Arrays = dict[str, Stored]

# Bytes that a compressed file may unpack to: so many, or so many times its size.
_ROOM, _RATIO = 2**30, 100
_MOST_ARRAYS = 100_000
_LONGEST_NAME = 500  # characters

# Files of a folder, in the order in which they are looked for.
_USUAL_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
_CONTAINERS = ("model", "state_dict", "model_state_dict", "net", "teacher")


class File(NamedTuple):
    """kind: its format. arrays: by name. about: JSON of the files beside it and of its own
    header, {"config", "preprocessor_config", "advadapters": ...}, as far as it is there.
    """

    kind: str
    arrays: Arrays
    about: dict[str, Any]


def read(path: AnyPath) -> File:
    """The arrays of a file, or of a folder as Hugging Face's programs write it.

    Raises UsageError for what is none, or damaged.
    """
    try:
        return _read(path)
    except UsageError as error:
        raise UsageError(f"cannot read weights from {path}: {error}") from None
    except Exception as error:  # whatever parsers of foreign bytes raise
        reason = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
        reason = _printable(reason[:300])
        raise UsageError(f"cannot read weights from {path}: {reason}") from None


def _printable(text: str) -> str:
    """A text in which other characters are shown by their numbers, as repr does."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _read(path: AnyPath) -> File:
    """`read`, with errors as they come."""
    if path.is_dir():
        path = _file_of(path)
    about = _beside(path) if path.name in _USUAL_NAMES else {}
    with path.open("rb") as file:
        head = file.read(16)
    kind = kind_of(head)
    if kind == "index":
        arrays = _from_index(path)
        return File("safetensors or torch, in parts", arrays, about)
    data = path.read_bytes()
    if kind == "zip":
        kind = _kind_of_zip(data)
    readers = {
        "safetensors": lambda: _from_safetensors(data, about),
        "npz": lambda: _from_npz(data),
        "torch": lambda: _from_torch(data),
        "onnx": lambda: onnx_files.read(data),
    }
    if kind not in readers:
        raise UsageError(
            "it is neither safetensors nor .npz, torch's, ONNX, nor a folder of these"
        )
    arrays = readers[kind]()
    if len(arrays) > _MOST_ARRAYS:
        raise UsageError(f"{len(arrays):,} arrays are no network's")
    for name in arrays:
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise UsageError(f"{name[:100]!r} is no name of an array")
    return File(kind, arrays, about)


def kind_of(head: bytes) -> str:
    """The format that the first 16 bytes of a file show; "" for none that is known."""
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "torch"  # a pickle, as torch wrote it before 1.6
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "safetensors"
    if head[:6] == b"\x93NUMPY":
        raise UsageError("it is a single array, no .npz")
    if head.lstrip()[:1] == b"{":
        return "index"
    if head[:1] == b"\x08" and 0 < head[1] < 64:
        return "onnx"
    return ""


def _kind_of_zip(data: bytes) -> str:
    """Which zip it is. Raises UsageError where it holds far more than its size."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
    whole = sum(member.file_size for member in members)
    if whole > max(_ROOM, _RATIO * len(data)):
        raise UsageError(f"its {len(data):,} bytes say that they hold {whole:,}")
    if any(re.fullmatch(r"(.*/)?data\.pkl", m.filename) for m in members):
        return "torch"
    for member in members:
        if not member.filename.endswith(".npy"):
            raise UsageError(f"{member.filename[:200]} is no array")
    return "npz"


def _file_of(folder: AnyPath) -> AnyPath:
    """The file of weights in a folder."""
    for name in _USUAL_NAMES:
        if (folder / name).exists():
            return folder / name
    if (folder / "checkpoints").is_dir():
        raise UsageError("it is a run of this program: name it in config.start.workdir")
    raise UsageError(f"the folder has none of {', '.join(_USUAL_NAMES)}")


def _beside(path: AnyPath) -> dict[str, Any]:
    """What lies beside a file of weights and describes it."""
    arrays_by_name = {}
    for name in ("config", "preprocessor_config"):
        file = path.parent / f"{name}.json"
        if file.exists():
            arrays_by_name[name] = _parsed(file.read_bytes(), file.name)
    return arrays_by_name


def _parsed(text: str | bytes, name: str) -> dict[str, Any]:
    """A JSON object. Raises UsageError for anything else."""
    try:
        index = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is no JSON: {error}") from None
    if not isinstance(index, dict):
        raise UsageError(f"{name} is no JSON object")
    return index


def _from_index(path: AnyPath) -> Arrays:
    """The arrays of all parts that an index names, which lie beside it."""
    places = _parsed(path.read_bytes(), path.name).get("weight_map")
    if not isinstance(places, Mapping) or not places:
        raise UsageError("it is JSON without a weight_map, so no index of weights")
    arrays: Arrays = {}
    for part in sorted({str(value) for value in places.values()}):
        if not re.fullmatch(r"[\w.-]*[\w-]", part) or part.endswith(".json"):
            raise UsageError(f"its part {part[:200]!r} is no file beside it")
        arrays |= _read(path.parent / part).arrays
    lacking = [name for name in places if name not in arrays]
    if lacking:
        raise UsageError(f"its parts lack {lacking[0]} and {len(lacking) - 1} more")
    return arrays


def _from_safetensors(data: bytes, about: dict[str, Any]) -> Arrays:
    """The arrays of safetensors; `about` gets what this program wrote into the header."""
    try:
        import safetensors  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError("it needs safetensors: pip install safetensors") from None
    try:
        tensors = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise UsageError(str(error)) from None
    length = int.from_bytes(data[:8], "little")
    header = _parsed(data[8 : 8 + length], "its header").get("__metadata__") or {}
    if "advadapters" in header:
        about["advadapters"] = _parsed(header["advadapters"], "its description")
    return {name: _tensor(name, tensor) for name, tensor in tensors}


def _tensor(name: str, tensor: Mapping[str, Any]) -> Stored:
    """An array as safetensors holds it."""
    if tensor["dtype"] not in _TYPES:
        raise UsageError(f"{name[:200]} must hold floats, got {tensor['dtype']}")
    flat = np.frombuffer(tensor["data"], _TYPES[tensor["dtype"]])
    return flat.reshape(tensor["shape"])


def _from_npz(data: bytes) -> Arrays:
    """The arrays of an .npz; two bytes without a type are bfloat16."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for name, array in arrays.items():
        if array.dtype == np.dtype("V2"):
            arrays[name] = array.view(ml_dtypes.bfloat16)
    return arrays


def _from_torch(data: bytes) -> Arrays:
    """The tensors of a file of torch's, without whatever is around them."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(
            "it is a file of torch's, which needs torch: pip install 'advadapters[torch]'"
        ) from None
    import argparse
    import pickle

    try:
        # Programs keep their flags beside the weights; a Namespace holds plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            contents = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(
            r"(Unsupported (?:global|class|operand)[^.\n]*|GLOBAL [\w.]+)", str(error)
        )
        what = match[1] if match else "it is no file of plain tensors"
        raise UsageError(f"torch refuses it as unsafe: {what}") from None
    return _numpy(_inside(contents))


def _inside(contents: Any) -> Mapping[str, Any]:
    """The dictionary of tensors in what a program saved."""
    for _ in range(4):
        if not isinstance(contents, Mapping):
            raise UsageError(f"it holds a {type(contents).__name__}, no tensors by name")
        inner = [
            contents[key] for key in _CONTAINERS if isinstance(contents.get(key), Mapping)
        ]
        if not inner:
            break
        contents = inner[0]
    return contents


def _numpy(tensors: Mapping[str, Any]) -> Arrays:
    """torch's tensors as arrays; what is no tensor is left out."""
    import torch  # pyright: ignore[reportMissingImports]

    def array(tensor: Any) -> Stored:
        tensor = tensor.detach()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    items: Iterable[tuple[Any, Any]] = tensors.items()
    return {str(k): array(v) for k, v in items if isinstance(v, torch.Tensor)}
