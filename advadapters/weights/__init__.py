"""Weights of other programs: read from their files, written by their names.

`formats` opens files (`onnx_files` those of ONNX), `rules` turns names and layouts into
ours and back by the tables in `vits` and `resnets`, `settings` says what else is known of
the network, and `fitting` fits its leaves to another size or form.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from advadapters import trees
from advadapters.errors import UsageError
from advadapters.files import AnyPath, write_whole
from advadapters.weights import fitting, formats, resnets, rules, settings, vits
from advadapters.weights.layouts import Geometry, Leaf, Stored, values

FAMILIES = (
    vits.TIMM,
    vits.HF_VIT,
    vits.HF_DINOV2,
    vits.HF_CLIP,
    vits.FLAX,
    resnets.RESNET,
    resnets.CIFAR_RESNET,
    resnets.PREACT_RESNET,
    resnets.WIDE_RESNET,
)
OURS = "advadapters"  # the family of the files that `advadapters convert` writes


class Weights(NamedTuple):
    """What a file of weights holds.

    leaves: {branch: {path: leaf}}, by the names of `models`; of a ViT unrolled, with
    whatever it has. model: settings of config.model that are known ("heads" among them, and
    "size" as from_vit has it). data: those of config.data. ignored: names of arrays that
    are no part of the network. family, kind: whose names they are, and the file's format.
    """

    leaves: dict[str, dict[str, Leaf]]
    model: dict[str, Any]
    data: dict[str, Any]
    ignored: list[str]
    family: str
    kind: str


def read(path: AnyPath, grid: fitting.Rectangle | None = None) -> Weights:
    """The weights in a file, or in a folder with one.

    grid: of the positions of a ViT where they are no square.

    Raises UsageError for what is none, is damaged, or is of a network that no model here
    can be.
    """
    file = formats.read(path)
    try:
        if "advadapters" in file.about:
            return _ours(file)
        family = rules.choose(FAMILIES, list(file.arrays))
        return _theirs(file, family, grid)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _theirs(
    file: formats.File, family: rules.Family, grid: fitting.Rectangle | None
) -> Weights:
    """The weights of another program."""
    arrays = _unrolled(file.arrays) if family is vits.FLAX else file.arrays
    named = rules.read(family, arrays)
    about, data = settings.from_about(file.about)
    shown = {}
    if grid:
        params = fitting.squared(named.leaves["params"], grid)
        named = named._replace(leaves=named.leaves | {"params": params})
    if family.model == "vit":
        shown = settings.from_vit(named.leaves["params"])
    usual = family.usual
    if family is vits.FLAX:
        usual = usual | dict(pool="class" if shown["class_token"] else "normed_tokens")
    known = usual | about | resnets.inputs(arrays) | named.settings | shown
    model = dict(name=family.model) | known
    return Weights(named.leaves, model, data, named.ignored, family.name, file.kind)


def _unrolled(arrays: Mapping[str, Stored]) -> dict[str, Stored]:
    """flax's blocks apart, where they are one array with a leading axis."""
    unrolled: dict[str, Stored] = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(.*Transformer/encoderblock)(/.*)", name)
        if match and array.ndim and len(array) < 1000:
            unrolled |= {f"{match[1]}_{i}{match[2]}": row for i, row in enumerate(array)}
        else:
            unrolled[name] = array
    return unrolled


def _ours(file: formats.File) -> Weights:
    """The weights in a file that this program wrote."""
    leaves: dict[str, dict[str, Leaf]] = {"params": {}, "batch_stats": {}}
    for name, array in file.arrays.items():
        branch, _, path = name.partition("/")
        if branch not in leaves or not path:
            raise UsageError(f"{name[:200]} is no leaf of a network")
        leaves[branch][path] = values(array, name, array.ndim)
    for flat in leaves.values():
        try:
            trees.unflatten(flat)
        except ValueError as error:
            raise UsageError(str(error)) from None
    model, data = settings.from_about(file.about)
    model = {k: tuple(v) if isinstance(v, list) else v for k, v in model.items()}
    if model.get("name") == "vit":
        leaves["params"] = fitting.unrolled_blocks(leaves["params"])
    return Weights(leaves, model, data, [], OURS, file.kind)


def save(path: AnyPath, network: Weights) -> None:
    """Writes weights by this program's names, with what is known of their network."""
    import safetensors.numpy  # pyright: ignore[reportMissingImports]

    arrays = {
        f"{branch}/{leaf}": np.ascontiguousarray(array)
        for branch, flat in network.leaves.items()
        for leaf, array in flat.items()
    }
    about = json.dumps({"model": network.model, "data": network.data}, default=list)
    data = safetensors.numpy.save(arrays, {"advadapters": about, "format": "np"})
    write_whole(path, lambda file: file.write(data))


def write(
    name: str,
    leaves: Mapping[str, Mapping[str, Leaf]],
    geometry: Geometry,
    model: Mapping[str, Any],
) -> dict[str, Leaf]:
    """{name: array} by the names of a family, of {branch: {path: leaf}}.

    name: of the family. geometry: what no array shows. model: settings of config.model. The
    blocks of a ViT may be scanned. Raises UsageError for a leaf without a name there.
    """
    table = {family.name: family for family in FAMILIES}
    if name not in table:
        raise UsageError(f"no family is called {name!r}; there are: {', '.join(table)}")
    flat = {branch: dict(tree) for branch, tree in leaves.items()}
    if table[name].model == "vit":
        flat = {branch: fitting.unrolled_blocks(tree) for branch, tree in flat.items()}
    return rules.write(table[name], flat, geometry, model)
