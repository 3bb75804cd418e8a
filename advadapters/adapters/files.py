"""Files of what was trained beside a frozen backbone: kilobytes instead of the network.

An .npz of the trained leaves with a fingerprint of the frozen ones and the settings that
no array shows, like a LoRA's scale. Nothing in it is pickled.
"""

import hashlib
import json
import zipfile
import zlib
from typing import Any

import jax
import numpy as np

from advadapters import trees
from advadapters.errors import UsageError

BROKEN = (zipfile.BadZipFile, zlib.error)  # what a damaged file raises besides
BRANCHES = ("shared", "adapters", "stats")


def fingerprint(variables):
    """A hash of the frozen parameters: names, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in sorted(trees.flatten(variables["frozen"]).items()):
        array = np.ascontiguousarray(jax.device_get(leaf), np.float32)
        digest.update(f"{path} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save(file, variables, settings=None):
    """Writes all but the frozen branch of the variables to an open file.

    settings: {name: plain value} that must be the same where the file is used.
    """
    moving = trees.flatten({branch: variables[branch] for branch in BRANCHES})
    arrays: dict[str, Any] = {
        path: np.asarray(jax.device_get(leaf)) for path, leaf in moving.items()
    }
    told = {"fingerprint": fingerprint(variables), "settings": settings or {}}
    arrays[""] = np.array(json.dumps(told))
    np.savez(file, **arrays)


def load(path, variables, settings=None):
    """The variables with what a file holds, on the backbone that they have.

    Raises UsageError if the file was made on another backbone or with other settings, has
    other leaves, shapes or types, or cannot be read.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        told = json.loads(str(arrays.pop("")))
        backbone, made = told["fingerprint"], dict(told["settings"])
    except (OSError, ValueError, LookupError, TypeError, EOFError, *BROKEN) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"cannot read adapters from {path}: {reason}") from None
    if backbone != fingerprint(variables):
        raise UsageError(
            f"{path} was trained on another backbone: its frozen parameters differ from "
            "those of this network"
        )
    here = json.loads(json.dumps(settings or {}))
    for key in sorted(here.keys() | made.keys()):
        if here.get(key) != made.get(key):
            raise UsageError(
                f"{path} was trained with {key} {made.get(key)}, this network has "
                f"{here.get(key)}: use it with a run of the same model and domains"
            )
    own = trees.flatten({branch: variables[branch] for branch in BRANCHES})
    shapes = {name: (np.shape(leaf), leaf.dtype) for name, leaf in own.items()}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if shapes != found:
        differ = sorted(shapes.items() ^ found.items())[:2]
        raise UsageError(f"{path} holds other adapters than this network has: {differ}")
    return variables | trees.unflatten(arrays)
