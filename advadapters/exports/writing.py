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
from advadapters.shapes import (
    AnyArray,
    Float,
    Images,
    Logits,
    Mixture,
    Mixtures,
    PerImage,
    Scalar,
)

PLATFORMS = ("cpu", "cuda", "tpu")
CHECKED = 4  # images whose logits are stored

Leaves = Mapping[str, AnyArray]  # parameters by path
Knob = Mixture | Scalar  # weights of the domains, or lambda
Knobs = Mixtures | PerImage  # one for each image


class Exportable(NamedTuple):
    """What of a network goes into a file.

    evaluate: (plain, images) -> logits, see `networks.Network`.
    at: (tree, mixture [K]) -> plain, or (tree, lambda []) -> plain of a network that is
      conditioned on it; None where the tree is one.
    tree: the parameters, of all domains if there are any; this process can read them.
    """

    evaluate: Callable[[Any, Any], Any]
    at: Callable[[Any, Any], Any] | None
    tree: Any


def write(network: Exportable, path: files.AnyPath, about: Mapping[str, Any]) -> None:
    """Writes a network to a file, whole or not at all.

    about: the metadata in `reading.FIELDS`, but for the format and the hashes; "domains"
    are those that the network takes weights of, none without `network.at`. A network that
    takes lambda has none, and "lambdas", see `reading`.

    Raises UsageError where jax has no flatbuffers to write programs with.
    """
    knobs = knobs_to_check(about)
    parameters = {
        name: np.asarray(jax.device_get(leaf))
        for name, leaf in trees.leaves_by_path(network.tree).items()
    }
    image = tuple(about["image"])
    with _no_locations():
        shape = None if knobs is None else knobs.shape[1:]
        programs = _programs(network, parameters, image, shape)
        members = {name: _serialize(program) for name, program in programs.items()}
    check = _check(programs[reading.NETWORK], parameters, image, knobs)
    if knobs is not None:
        check |= {reading.knobs_name(about): knobs}
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
    network: Exportable,
    parameters: Mapping[str, np.ndarray],
    image: tuple[int, ...],
    shape: tuple[int, ...] | None,
) -> dict[str, export.Exported]:
    """{member: program}; image: [H, W, C], shape: of a mixture or lambda, or None."""

    def alone(leaves: Leaves, images: Images) -> Logits:
        return network.evaluate(_tree(network, leaves), images)

    def chosen(leaves: Leaves, knob: Knob, images: Images) -> Logits:
        assert network.at is not None
        return network.evaluate(network.at(_tree(network, leaves), knob), images)

    def by_row(leaves: Leaves, knobs: Knobs, images: Images) -> Logits:
        return jax.vmap(lambda w, x: chosen(leaves, w, x[None])[0])(knobs, images)

    (batch,) = export.symbolic_shape("batch")
    leaves = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in parameters.items()
    }
    images = jax.ShapeDtypeStruct((batch, *image), jnp.float32)
    if shape is None:
        return {reading.NETWORK: _export(alone, leaves, images)}
    shared = jax.ShapeDtypeStruct(shape, jnp.float32)
    each = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    return {
        reading.NETWORK: _export(chosen, leaves, shared, images),
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


def knobs_to_check(about: Mapping[str, Any]) -> Float[np.ndarray, "M ..."] | None:
    """Mixtures [M, K] or lambdas [M] at which logits are stored, None of a fixed network.

    Each mode and all domains alike; or the lambdas that the network knows, 0, 1/2 and 1 if
    it takes any.
    """
    if about.get(reading.LAMBDAS) is not None:
        return np.array(about[reading.LAMBDAS] or (0.0, 0.5, 1.0), np.float32)
    count = len(about["domains"])
    if not count:
        return None
    members = [soups.one_hot(count, k) for k in range(count)]
    if count > 1:
        members.append(soups.average(count, range(count)))
    return np.array(members, np.float32)


def _check(
    program: export.Exported,
    parameters: Mapping[str, np.ndarray],
    image: tuple[int, ...],
    knobs: Float[np.ndarray, "M ..."] | None,
) -> dict[str, np.ndarray]:
    """Images of noise and their logits [M, N, L], for each of the knobs.

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
    if knobs is None:
        logits = [np.asarray(call(parameters, pixels))]
    else:
        logits = [np.asarray(call(parameters, knob, pixels)) for knob in knobs]
    return {"images": images, "logits": np.stack(logits)}
