"""Files of what was trained beside a frozen backbone: kilobytes instead of the network.

A file is an .npz of the trained leaves, with a fingerprint of the frozen ones and with the
settings that no array shows, such as a LoRA's scale. Nothing in it is pickled.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from advadapters import trees
from advadapters.errors import UsageError
from advadapters.files import AnyPath, OpenFile

BROKEN = (zipfile.BadZipFile, zlib.error)  # what a damaged file raises besides
BRANCHES = ("shared", "adapters", "stats")


def fingerprint(variables: Mapping[str, Any]) -> str:
    """A hash of the frozen parameters, by names, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in sorted(trees.flatten(variables["frozen"]).items()):
        array = np.ascontiguousarray(jax.device_get(leaf), np.float32)
        digest.update(f"{path} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save(
    file: OpenFile, variables: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> None:
    """Writes the trained parameters and the statistics of a network to an open file.

    Args:
      file: open for writing bytes.
      variables: all of them, see `training.states.branches`. The frozen ones are not
        written.
      settings: plain values by name that must be the same where the file is used.
    """
    moving = trees.flatten({branch: variables[branch] for branch in BRANCHES})
    arrays: dict[str, Any] = {
        path: np.asarray(jax.device_get(leaf)) for path, leaf in moving.items()
    }
    head = {"fingerprint": fingerprint(variables), "settings": dict(settings or {})}
    arrays[""] = np.array(json.dumps(head))
    np.savez(file, **arrays)


def load(
    path: AnyPath | str,
    variables: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Reads what `save` wrote, and puts it on the backbone of some variables.

    Args:
      path: of the file.
      variables: a network with the same frozen parameters. Its other leaves say which
        shapes and types the file must have.
      settings: those that the file must have been written with.

    Returns:
      The variables with the file's leaves in place of their own.

    Raises:
      UsageError: the file was made on another backbone or with other settings, has other
        leaves, shapes or types, or cannot be read.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(str(arrays.pop("")))
        backbone, file_settings = head["fingerprint"], dict(head["settings"])
    except (OSError, ValueError, LookupError, TypeError, EOFError, *BROKEN) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"cannot read adapters from {path}: {reason}") from None
    if backbone != fingerprint(variables):
        raise UsageError(
            f"{path} was trained on another backbone: its frozen parameters differ from "
            "those of this network"
        )
    run_settings = json.loads(json.dumps(dict(settings or {})))
    for key in sorted(run_settings.keys() | file_settings.keys()):
        if run_settings.get(key) != file_settings.get(key):
            raise UsageError(
                f"{path} was trained with {key} {file_settings.get(key)}, this network has "
                f"{run_settings.get(key)}: use it with a run of the same model and domains"
            )
    leaves = trees.flatten({branch: variables[branch] for branch in BRANCHES})
    run_kinds = {name: (np.shape(leaf), leaf.dtype) for name, leaf in leaves.items()}
    file_kinds = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if run_kinds != file_kinds:
        differ = sorted(run_kinds.items() ^ file_kinds.items())[:2]
        raise UsageError(f"{path} holds other adapters than this network has: {differ}")
    return {**variables, **trees.unflatten(arrays)}
