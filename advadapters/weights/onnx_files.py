"""Weights of an ONNX graph, by the names of the modules that it was exported from.

torch's exporter gives a matrix that it has transposed a number for a name, but the product
that uses it is named after the module: /encoder/layer.0/mlp/fc1/MatMul.
"""

from typing import Any

import numpy as np

from advadapters.errors import UsageError
from advadapters.weights.layouts import Stored


def read(data: bytes) -> dict[str, Stored]:
    """{name in torch: array} of an ONNX file. Raises UsageError for a damaged one."""
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        from google.protobuf.message import DecodeError
    except ImportError:
        raise UsageError(
            "it may be an ONNX file, which needs onnx: pip install 'advadapters[onnx]'"
        ) from None
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError, TypeError):
        raise UsageError("it is no ONNX file, or a damaged one") from None
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors.values()):
        raise UsageError("its weights are in files beside it, which are not read")
    names = {name: (name, False) for name in tensors if not name.startswith("onnx::")}
    for node in model.graph.node:
        for name in node.input:
            if name in tensors and name not in names:
                names[name] = _name_of(node, list(tensors[name].dims))
    _name_positions(names)
    arrays = {}
    for name, (known, turned) in names.items():
        array = onnx.numpy_helper.to_array(tensors[name])
        if known and array.ndim:
            arrays[known] = array.T if turned else array
    return _with_class_position(arrays)


def _name_of(node: Any, shape: list[int]) -> tuple[str, bool]:
    """(name of an anonymous matrix, whether it is transposed), of the node that uses it.

    "" for what is no weight of a dense layer; positions are told by their shape.
    """
    *modules, last = node.name.strip("/").split("/")
    module = ".".join(modules)
    if node.op_type in ("MatMul", "Gemm") and len(shape) == 2:
        turned = node.op_type == "MatMul" or not _transposed(node)
        return f"{module}.weight", turned
    if len(shape) == 3 and module.endswith("embeddings"):
        return f"{module}.{'class' if shape[1] == 1 else 'patch'}_positions", False
    return "", False


def _transposed(node: Any) -> bool:
    """Whether a Gemm transposes its second matrix, as torch keeps it."""
    return any(a.name == "transB" and a.i for a in node.attribute)


def _name_positions(names: dict[str, tuple[str, bool]]) -> None:
    """Leaves out what the exporter folded into several constants of one name."""
    taken: set[str] = set()
    for key, (name, turned) in list(names.items()):
        if name in taken and key.startswith("onnx::"):
            names[key] = ("", turned)
        taken.add(name)


def _with_class_position(arrays: dict[str, Stored]) -> dict[str, Stored]:
    """Positions in one array, where the exporter has cut them in two."""
    for name in [n for n in arrays if n.endswith(".patch_positions")]:
        base = name.removesuffix(".patch_positions")
        parts = [arrays.pop(f"{base}.class_positions", None), arrays.pop(name)]
        known = [part for part in parts if part is not None]
        arrays[f"{base}.position_embeddings"] = np.concatenate(known, axis=1)
    return arrays
