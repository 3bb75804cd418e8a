"""Networks as the programs and bytes of an exported file, see `exports.reading`."""

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from advadapters import files, soups, trees
from advadapters.errors import UsageError
from advadapters.exports import reading, tensors
from advadapters.shapes import AnyArray, Images, Logits, Mixture, Mixtures

PLATFORMS = ("cpu", "cuda", "tpu")
CHECKED = 4  # images whose logits are stored

Leaves = Mapping[str, AnyArray]  # parameters by path


class Exportable(NamedTuple):
    """What of a network goes into a file.

    evaluate: (plain, images) -> logits, see `networks.Network`.
    at: (tree, mixture [K]) -> plain; None where the tree is one.
    tree: the parameters, of all domains if there are any; this process can read them.
    """

    evaluate: Callable[[Any, Any], Any]
    at: Callable[[Any, Any], Any] | None
    tree: Any


def write(network: Exportable, path: files.AnyPath, about: Mapping[str, Any]) -> None:
    """Writes a network to a file, whole or not at all.

    about: the metadata in `reading.FIELDS`, but for the format and the hashes; "domains"
    are those that the network takes weights of, none without `network.at`.

    Raises UsageError where jax has no flatbuffers to write programs with.
    """
    count = len(about["domains"])
    parameters = {
        name: np.asarray(jax.device_get(leaf))
        for name, leaf in trees.leaves_by_path(network.tree).items()
    }
    image = tuple(about["image"])
    with _no_locations():
        programs = _programs(network, parameters, image, count)
        members = {name: _serialize(program) for name, program in programs.items()}
    check = _check(programs[reading.NETWORK], parameters, image, count)
    members |= {reading.PARAMETERS: tensors.pack(parameters)}
    members |= {reading.CHECK: tensors.pack(check)}
    hashes = {name: reading.sha256(data) for name, data in members.items()}
    metadata = {"format": reading.FORMAT, **about, "sha256": hashes}
    members = {reading.METADATA: json.dumps(metadata, indent=1).encode(), **members}

    def fill(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                # A fixed time, so that the same network is the same file.
                archive.writestr(zipfile.ZipInfo(name), data)

    files.write_whole(path, fill)


@contextlib.contextmanager
def _no_locations() -> Iterator[None]:
    """Programs that are lowered in it do not tell whose files they come from."""
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)


def _programs(
    network: Exportable, parameters: Mapping[str, np.ndarray], image: tuple, count: int
) -> dict[str, export.Exported]:
    """{member: program}; image: [H, W, C], count: K."""

    def alone(leaves: Leaves, images: Images) -> Logits:
        return network.evaluate(_tree(network, leaves), images)

    def mixed(leaves: Leaves, mixture: Mixture, images: Images) -> Logits:
        assert network.at is not None
        return network.evaluate(network.at(_tree(network, leaves), mixture), images)

    def by_row(leaves: Leaves, mixtures: Mixtures, images: Images) -> Logits:
        return jax.vmap(lambda w, x: mixed(leaves, w, x[None])[0])(mixtures, images)

    (batch,) = export.symbolic_shape("batch")
    leaves = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in parameters.items()
    }
    images = jax.ShapeDtypeStruct((batch, *image), jnp.float32)
    if not count:
        return {reading.NETWORK: _export(alone, leaves, images)}
    shared_mixture = jax.ShapeDtypeStruct((count,), jnp.float32)
    each = jax.ShapeDtypeStruct((batch, count), jnp.float32)
    return {
        reading.NETWORK: _export(mixed, leaves, shared_mixture, images),
        reading.ROWS: _export(by_row, leaves, each, images),
    }


def _tree(network: Exportable, leaves: Mapping[str, Any]) -> Any:
    """The network's tree with other leaves, which no gradient reaches.

    Gradients of parameters would make the stored programs larger and slower.
    """
    stopped = {name: jax.lax.stop_gradient(leaf) for name, leaf in leaves.items()}
    return trees.replace_leaves(network.tree, stopped)


def _export(function: Callable[..., Any], *shapes: Any) -> export.Exported:
    """The program of a function of arguments with these shapes."""
    return export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)


def _serialize(program: export.Exported) -> bytes:
    """The bytes of a program and of its gradient."""
    try:
        return bytes(program.serialize(vjp_order=1))
    except ModuleNotFoundError as error:
        raise UsageError(f"{error}: pip install flatbuffers") from None


def _check(
    program: export.Exported, parameters: Mapping[str, np.ndarray], image: tuple, count: int
) -> dict[str, np.ndarray]:
    """Images of noise, mixtures, and their logits: each mode, and all domains alike.

    Noise, so that no file holds an image that somebody owns; half of it is as smooth as
    pictures are.
    """
    draw = np.random.default_rng(0)
    fine = draw.uniform(size=(CHECKED, *image))
    fine[::2] = np.cumsum(fine[::2] - 0.5, axis=1).cumsum(axis=2)
    fine[::2] = 0.5 + 0.5 * fine[::2] / np.abs(fine[::2]).max()
    images = np.round(255 * fine).astype(np.uint8)
    pixels = images.astype(np.float32) / np.float32(255)
    call = jax.jit(program.call)
    if not count:
        return {"images": images, "logits": np.asarray(call(parameters, pixels))[None]}
    members = [soups.one_hot(count, k) for k in range(count)]
    if count > 1:
        members.append(soups.average(count, range(count)))
    mixtures = np.array(members, np.float32)
    logits = [np.asarray(call(parameters, mixture, pixels)) for mixture in mixtures]
    return {"images": images, "mixtures": mixtures, "logits": np.stack(logits)}
