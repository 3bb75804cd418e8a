"""Writes an exported network as ONNX, with the mixture as an input.

    python -m venv onnx
    onnx/bin/pip install jax2onnx onnxruntime absl-py ml-collections etils
    onnx/bin/pip install --no-deps .
    onnx/bin/python launch/to_onnx.py soup.stablehlo soup.onnx

It has an environment of its own, since jax2onnx needs an older Orbax than this program. The
network is built again from the file's settings and parameters, and what onnxruntime makes
of the stored images is compared with the logits beside them.
"""

import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import trees
from advadapters.builders import model
from advadapters.errors import UsageError
from advadapters.exports import reading
from advadapters.sections import Section


class Images:
    """What of config.data a model needs."""

    def __init__(self, image):
        self.image_size, _, self.channels = image


def build(metadata):
    """(plain, images) -> logits, of the network that a file's metadata describe."""
    source = metadata["source"]
    section = Section("model", {k: retuple(v) for k, v in source["model"].items()})
    classes, data = section.take("classes", int), Images(metadata["image"])
    exact = dict(exact=jnp.float32, precision="highest")
    widths = model.read_model(section, data, classes, exact, "cpu")
    return widths.make(source["network"].get("width", 1.0)).evaluate


def retuple(value):
    """JSON's lists as the tuples that configs have."""
    if isinstance(value, dict):
        return {key: retuple(inner) for key, inner in value.items()}
    return tuple(map(retuple, value)) if isinstance(value, list) else value


def function_of(metadata, parameters):
    """(images[, mixture]) -> logits."""
    evaluate, tree = build(metadata), trees.unflatten(parameters)
    if not metadata["domains"]:
        return lambda images: evaluate({"batch_stats": {}} | tree, images)
    stats = {"shared": {}, "adapters": {}} | tree.get("stats", {})
    tree = {"shared": {}, "adapters": {}} | tree | {"stats": stats}
    return lambda images, mixture: evaluate(trees.plain(tree, mixture), images)


def convert(source, target):
    """Writes the file; returns the largest difference of logits."""
    import jax2onnx
    import onnxruntime

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # warns of each reshape
    metadata, parameters, check = reading.read_arrays(source)
    if metadata.get(reading.LAMBDAS) is not None:
        raise UsageError("export the network at one lambda, by --lambda=0.2")
    function = function_of(metadata, parameters)
    inputs = {"images": ("B", *metadata["image"])}
    if metadata["domains"]:
        inputs["mixture"] = (len(metadata["domains"]),)
    jax2onnx.to_onnx(
        function,
        list(inputs.values()),
        input_names=list(inputs),
        output_names=["logits"],
        return_mode="file",
        output_path=target,
        export_mode="web",  # one file
    )
    session = onnxruntime.InferenceSession(target)
    images = check["images"].astype(np.float32) / np.float32(255)
    pairs = list(zip(check.get("mixtures", [None]), check["logits"], strict=True))
    return max(
        np.abs(session.run(None, given(images[:count], mixture))[0] - logits[:count]).max()
        for mixture, logits in pairs
        for count in (1, len(images))
    )


def given(images, mixture):
    """What a session takes."""
    return {"images": images} | ({} if mixture is None else {"mixture": mixture})


def main(argv):
    """Returns the exit code."""
    if len(argv) != 2:
        print(__doc__)
        return 2
    try:
        off = convert(*argv)
    except UsageError as error:
        print(f"to_onnx: {error}", file=sys.stderr)
        return 2
    print(f"{argv[1]}: logits differ by {off:.1e} at most on the stored images")
    return 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(sys.argv[1:]))
