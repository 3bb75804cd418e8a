"""One network as a folder for other programs: which files, and what is in them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from advadapters.errors import UsageError, pick
from advadapters.exports import timm_files, torch_files, transformers_files

Tree = Mapping[str, Any]


class Folder(NamedTuple):
    """What is in a folder beside the model card.

    arrays: {name: array} of model.safetensors. files: {name: JSON}. usage: Markdown on how
    the folder is loaded.
    """

    arrays: dict[str, np.ndarray]
    files: dict[str, dict[str, Any]]
    usage: str


def _timm(plain: Tree, about: Tree, data: Tree, name: str) -> Folder:
    """A vision transformer, or a ResNet, of timm's classes."""
    if about["source"]["model"]["name"] != "vit":
        if about["source"]["model"]["name"] != "resnet" or not torch_files.is_timms(about):
            raise UsageError(
                "timm's names are written of a vit, and of a resnet with stem='imagenet' "
                f"and {torch_files.WIDTH} channels: use --to=torch"
            )
        return _torch(plain, about, data, name)
    arrays = timm_files.arrays_of(plain, about)
    files = {"config.json": timm_files.config_of(about, data)}
    return Folder(arrays, files, timm_files.usage(about, name))


def _torch(plain: Tree, about: Tree, data: Tree, name: str) -> Folder:
    """A residual network of torchvision's or RobustBench's classes."""
    arrays = torch_files.arrays_of(plain, about)
    files = {"config.json": torch_files.config_of(about, data)}
    return Folder(arrays, files, torch_files.usage(about, name))


def _transformers(plain: Tree, about: Tree, data: Tree, name: str) -> Folder:
    """A vision transformer of transformers' class."""
    arrays = transformers_files.arrays_of(plain, about)
    files = transformers_files.configs_of(about, data)
    return Folder(arrays, files, transformers_files.usage(about, name))


KINDS: dict[str, Callable[[Tree, Tree, Tree, str], Folder]] = {
    "timm": _timm,
    "torch": _torch,
    "transformers": _transformers,
}


def make(kind: str, plain: Tree, about: Tree, data: Tree, name: str) -> Folder:
    """The folder of one network {"params", "batch_stats"}.

    Args:
      kind: a row of `KINDS`, whose names the arrays get.
      about: the metadata of the network.
      data: config.data of its run.
      name: of the folder, for its model card.

    Raises:
      UsageError: the classes of that program cannot be this network.
    """
    return pick(KINDS, kind, "program for a folder")(plain, about, data, name)
