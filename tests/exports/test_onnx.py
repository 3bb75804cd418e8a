"""Exported networks as ONNX; needs jax2onnx and onnxruntime, see launch/to_onnx.py."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
import tiny

from advadapters import trees
from advadapters.exports import writing
from advadapters.training import states

pytest.importorskip("jax2onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "to_onnx.py"
MODEL = {
    "name": "vit", "size": "16x1x32x2", "classes": 5, "patch": 4, "mean": [0.5],
    "std": [0.25], "pool": "tokens", "positions": "learned", "attention": "auto",
    "drop_path": 0.0, "remat": "none", "scan": False, "resize": 0, "norm": "layer",
    "added": {}, "prompts": 0, "head_std": 0.02, "film": {}, "dtype": "float32",
}  # fmt: skip
ABOUT = {
    "name": "",
    "domains": ["clean", "linf"],
    "classes": list("abcde"),
    "image": [8, 8, 1],
    "eps": {},
    "preprocessing": "",
    "source": {"model": MODEL, "network": {}},
}


@pytest.mark.parametrize("mixed", [True, False], ids=["a mixture", "fixed"])
def test_onnxruntime_computes_the_same_logits(mixed, tmp_path):
    spec = importlib.util.spec_from_file_location("to_onnx", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    network = tiny.network()
    variables = states.branches(tiny.plain(network), ["class_token"], 2)
    token = variables["adapters"]["class_token"]
    variables["adapters"]["class_token"] = token * np.array([1, -3]).reshape(2, 1, 1, 1)
    weights = np.float32([0.3, 0.7])
    plain = trees.plain(variables, weights)
    about = ABOUT if mixed else ABOUT | {"domains": []}
    tree, at = (variables, trees.plain) if mixed else (plain, None)
    exportable = writing.Exportable(network.evaluate, at, jax.device_get(tree))
    writing.write(exportable, tmp_path / "a.stablehlo", about)
    target = str(tmp_path / "a.onnx")
    assert script.convert(str(tmp_path / "a.stablehlo"), target) < 1e-5
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
    session = onnxruntime.InferenceSession(target)
    given = {"images": images} | ({"mixture": weights} if mixed else {})
    (logits,) = session.run(None, given)
    np.testing.assert_allclose(
        logits, network.evaluate(plain, images), rtol=1e-5, atol=1e-5
    )
