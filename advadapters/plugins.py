"""Modules of other packages that add rows to the tables of this one.

`config.plugins = ("my_package.attacks",)` names them. They are imported wherever a run is
opened, so that what they register is known in evaluation as it was in training.
"""

import importlib
from collections.abc import Iterable

from advadapters.errors import UsageError


def load(names: Iterable[str]) -> None:
    """Imports modules by name; raises UsageError for one that cannot be imported."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever the module does
            kind, reason = type(error).__name__, (str(error).splitlines() or [""])[0]
            raise UsageError(
                f"config.plugins: cannot import {name!r} ({kind}: {reason}): "
                "install its package, or put its folder on PYTHONPATH"
            ) from None
