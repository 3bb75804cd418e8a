"""An exported network: one file with a network whose trade-off is an input.

The file is a zip, nothing in it compressed, with these members and no others:

    metadata.json           what the network is
    network.stablehlo       `jax.export`: (parameters, images [B, H, W, C]) -> logits
                            [B, L]; where there are domains, a mixture [K] comes before
                            the images, and lambda [] of a network that goes by it
    rows.stablehlo          the same with a mixture [B, K] or lambda [B] for each image;
                            not in a file of one fixed network
    parameters.safetensors  the first argument, {path: array}
    check.safetensors       images, mixtures or lambdas, and the logits that they had when
                            the file was written

Reading one needs jax, numpy and flatbuffers, and nothing of it is unpickled.
"""

import contextlib
import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from advadapters.errors import UsageError
from advadapters.exports import tensors
from advadapters.exports.network import Exported

FORMAT = 1
METADATA, NETWORK, ROWS = "metadata.json", "network.stablehlo", "rows.stablehlo"
PARAMETERS, CHECK = "parameters.safetensors", "check.safetensors"
LARGEST_METADATA = 16 * 1024**2  # bytes
# What checks that shapes fit; other calls of this kind may run any code of this process.
HARMLESS = "stablehlo.custom_call @shape_assertion("
# Of a network that goes by lambda, the metadata tell which it knows, [] for all in [0, 1].
LAMBDAS = "lambdas"
FIELDS: dict[str, type] = {  # of the metadata
    "format": int,
    "name": str,
    "domains": list,
    "classes": list,
    "image": list,
    "eps": dict,
    "preprocessing": str,
    "source": dict,
    "sha256": dict,
}
# What a damaged zip raises besides ValueError.
BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, NotImplementedError,
    OverflowError, RuntimeError,
)  # fmt: skip
ArrayLike = jax.Array | np.ndarray | Sequence[Any]


def load_exported(path: str | os.PathLike, check: bool = True) -> Exported:
    """A network from a file that `export` wrote; needs jax, numpy and flatbuffers only.

    check: whether to compute the logits of a few stored images again and to compare them
    with those that are stored beside them.

    Raises UsageError for a file that is damaged or is none, and where logits differ.
    """
    path = os.fspath(path)
    with _told(path):
        metadata, members = _read(path)
        parameters = _read_parameters(members[PARAMETERS])
        programs = {
            name: _read_program(name, members[name], metadata, parameters)
            for name in (NETWORK, ROWS)
            if name in members
        }
        arrays = _read_check(members[CHECK], metadata)
    exported = Exported(metadata, parameters, programs[NETWORK], programs.get(ROWS))
    if check:
        exported.check(arrays)
    return exported


def read_arrays(
    path: str | os.PathLike,
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(metadata, parameters {path: array}, check) of a file, as it is for other programs.

    check: "images" [N, H, W, C], their "logits" [M, N, L], and the "mixtures" [M, K] or
    "lambdas" [M] of these, where there are any. Raises UsageError for a file that is
    damaged or is none.
    """
    path = os.fspath(path)
    with _told(path):
        metadata, members = _read(path)
        parameters = _read_parameters(members[PARAMETERS])
        return metadata, parameters, _read_check(members[CHECK], metadata)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """Errors of reading as a UsageError of one line."""
    try:
        yield
    except (OSError, ValueError, *BROKEN) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(f"cannot read {path} as an exported network: {reason}") from None


def _read(path: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(metadata, {name: bytes}) of a file; raises ValueError, or one of `BROKEN`."""
    with zipfile.ZipFile(path) as archive:
        rows = {row.filename: row for row in archive.infolist()}
        needed = {METADATA, NETWORK, PARAMETERS, CHECK}
        if len(rows) != len(archive.infolist()) or rows.keys() | {ROWS} != needed | {ROWS}:
            names = ", ".join(map(repr, [*rows][:6]))
            raise ValueError(f"its members are {names}, not those of an export")
        if any(
            row.compress_type != zipfile.ZIP_STORED or row.file_size != row.compress_size
            for row in rows.values()
        ):
            raise ValueError("a member is compressed, which no export is")
        if sum(row.file_size for row in rows.values()) > os.path.getsize(path):
            raise ValueError("its members claim to be larger than the file")
        if rows[METADATA].file_size > LARGEST_METADATA:
            raise ValueError(f"{METADATA} is larger than {LARGEST_METADATA} bytes")
        members = {name: archive.read(name) for name in rows}
    metadata = _read_metadata(members[METADATA])
    hashes = {name: sha256(data) for name, data in members.items() if name != METADATA}
    if metadata["sha256"] != hashes:
        raise ValueError("its members are not those that its metadata was written for")
    if (ROWS in members) != (knob_shape(metadata) is not None):
        raise ValueError(f"{ROWS} goes with domains or lambdas, and there are either")
    return metadata, members


def knob_shape(metadata: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of what chooses the network: lambda, a mixture, or nothing."""
    if metadata.get(LAMBDAS) is not None:
        return ()
    return (len(metadata["domains"]),) if metadata["domains"] else None


def knobs_name(metadata: Mapping[str, Any]) -> str:
    """What these are called among the arrays of a check."""
    return LAMBDAS if metadata.get(LAMBDAS) is not None else "mixtures"


def sha256(data: bytes) -> str:
    """The hash of bytes as the metadata tell it."""
    return hashlib.sha256(data).hexdigest()


def _read_metadata(data: bytes) -> dict[str, Any]:
    """metadata.json; raises ValueError unless all of `FIELDS` are there as they must be."""
    try:
        metadata = json.loads(data)
    except RecursionError:
        raise ValueError(f"{METADATA} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{METADATA} is no JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{METADATA} is no table")
    for field, kind in FIELDS.items():
        if type(metadata.get(field)) is not kind:
            raise ValueError(f"{METADATA} has no {field!r} that is a {kind.__name__}")
    if metadata["format"] != FORMAT:
        raise ValueError(
            f"it is of format {metadata['format']}, this program reads {FORMAT}: install "
            "the version that wrote it, or export again"
        )
    for field, kind, least in (("domains", str, 0), ("classes", str, 2), ("image", int, 3)):
        value = metadata[field]
        if len(value) < least or any(type(item) is not kind for item in value):
            raise ValueError(f"{METADATA} has {field} that are no list of {kind.__name__}")
    if len(metadata["image"]) != 3 or not all(0 < n < 2**16 for n in metadata["image"]):
        raise ValueError(f"{METADATA} tells no [H, W, C] of images")
    if not all(isinstance(rows, list) for rows in metadata["eps"].values()):
        raise ValueError(f"{METADATA} has radii that are no lists")
    lambdas = metadata.get(LAMBDAS)
    if lambdas is not None and not (
        isinstance(lambdas, list)
        and all(isinstance(lam, float | int) and 0 <= lam <= 1 for lam in lambdas)
        and not metadata["domains"]
    ):
        raise ValueError(f"{METADATA} has lambdas that are no numbers in [0, 1]")
    return metadata


def _read_parameters(data: bytes) -> dict[str, np.ndarray]:
    """The parameters {path: array}; raises ValueError for numbers that are not finite."""
    parameters = tensors.unpack(data)
    for path, array in parameters.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{PARAMETERS} has values that are not finite in {path!r}")
    return parameters


def _read_program(
    name: str, data: bytes, metadata: dict[str, Any], parameters: dict[str, np.ndarray]
) -> export.Exported:
    """A program that takes these parameters, images and mixtures; else ValueError."""
    try:
        program = export.deserialize(bytearray(data))
        texts = program.mlir_module(), program.vjp().mlir_module()
        arguments, keywords = jax.tree.unflatten(program.in_tree, program.in_avals)
        leaves, *mixtures, images = arguments
        given = [(path, leaf.shape, leaf.dtype) for path, leaf in sorted(leaves.items())]
        (logits,) = program.out_avals
    except ModuleNotFoundError as error:
        raise UsageError(f"{error}: pip install flatbuffers") from None
    except Exception as error:  # whatever a parser of foreign bytes raises
        cause = f"{type(error).__name__} {error}".partition("\n")[0]
        raise ValueError(f"jax {jax.__version__} reads no program in it: {cause}") from None
    if any(text.count("custom_call") != text.count(HARMLESS) for text in texts):
        raise ValueError("its program calls code outside of itself, which no export does")
    rows = [(path, array.shape, array.dtype) for path, array in sorted(parameters.items())]
    shape = knob_shape(metadata)
    if given != rows or keywords or len(mixtures) != (shape is not None):
        raise ValueError("its parameters are not those that its program takes")
    if images.shape[1:] != tuple(metadata["image"]):
        raise ValueError("its program takes images of another size than it tells")
    for mixture in mixtures:
        rows_first = int(name == ROWS)
        axes = len(shape or ()) + rows_first
        if mixture.ndim != axes or mixture.shape[rows_first:] != shape:
            raise ValueError(f"{name} takes other weights than those of its domains")
    if logits.shape[1:] != (len(metadata["classes"]),):
        raise ValueError("its program has another number of classes than it tells")
    return program


def _read_check(data: bytes, metadata: dict[str, Any]) -> dict[str, np.ndarray]:
    """Images, mixtures and logits of a check; raises ValueError for other arrays."""
    arrays = tensors.unpack(data)
    shape, classes = knob_shape(metadata), len(metadata["classes"])
    knobs = knobs_name(metadata)
    names = {"images", "logits"} | (set() if shape is None else {knobs})
    if arrays.keys() != names:
        raise ValueError(f"{CHECK} holds {sorted(arrays)}, not {sorted(names)}")
    count = len(arrays["images"])
    mixtures = 1 if shape is None else len(arrays[knobs])
    right = (
        arrays["images"].shape == (count, *metadata["image"])
        and arrays["images"].dtype == np.uint8
        and arrays["logits"].shape == (mixtures, count, classes)
        and (shape is None or arrays[knobs].shape == (mixtures, *shape))
    )
    if not right or not count or not mixtures:
        raise ValueError(f"{CHECK} holds arrays of other shapes than the metadata tell")
    return arrays
