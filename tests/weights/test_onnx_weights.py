"""Graphs as torch writes them: matrices without names, modules in the names of nodes."""

import numpy as np
import pytest
from weights.test_rules import VIT, network

from advadapters import weights
from advadapters.errors import UsageError
from advadapters.weights import vits
from advadapters.weights.layouts import Geometry

onnx = pytest.importorskip("onnx")
TOLD = VIT | dict(layer_scale=0.1)


def write(path, family, change=None):
    """A graph of all matrices of a small ViT in products, and its arrays."""
    arrays = weights.write(family.name, network(family, TOLD), Geometry(4, 4), TOLD)
    nodes, tensors = [], []
    for number, (name, array) in enumerate(arrays.items()):
        module = "backbone." + name.rpartition(".")[0]
        if array.ndim == 2:
            whole = f"onnx::MatMul_{number}"
            node = "/" + module.replace(".", "/").replace("/layer/", "/layer.")
            node = node.replace("/blocks/", "/blocks.") + "/MatMul"
            if name.startswith("head") or name.startswith("classifier"):
                node = node.replace("MatMul", "Gemm")
                made = onnx.helper.make_node("Gemm", ["x", whole], ["y"], node, transB=1)
            else:
                array = array.T
                made = onnx.helper.make_node("MatMul", ["x", whole], ["y"], node)
            nodes.append(made)
        else:
            whole = f"backbone.{name}"
        tensors.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), whole))
    graph = onnx.helper.make_graph(nodes, "vit", [], [], tensors)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return arrays


@pytest.mark.parametrize("family", [vits.TIMM, vits.HF_DINOV2], ids=lambda one: one.name)
def test_matrices_get_the_names_of_their_modules(family, tmp_path):
    write(tmp_path / "w", family)
    read = weights.read(tmp_path / "w")
    assert read.kind == "onnx" and read.family == family.name
    expected = network(family, TOLD)["params"]
    assert read.leaves["params"].keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(read.leaves["params"][path], leaf)


def test_damaged_graphs_are_one_line(tmp_path):
    write(tmp_path / "w", vits.TIMM)
    whole = (tmp_path / "w").read_bytes()
    for end in (9, 20, 1000, len(whole) - 5):
        (tmp_path / "w").write_bytes(whole[:end])
        with pytest.raises(UsageError) as error:
            weights.read(tmp_path / "w")
        assert "\n" not in str(error.value)
