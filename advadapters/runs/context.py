"""A run that is open: what the modules of this room hand to each other."""

from typing import Any, NamedTuple

from jax.sharding import Mesh


class OpenRun(NamedTuple):
    """A run with its mesh and its folder.

    run: a `builders.Run`, or its `builders.Networks` where no images are read. mesh: the
    devices. folder: a `files.AnyPath`, None where nothing is written. cache: programs that
    were compiled, and counts, by what they are of. config: the whole config, plain values.
    """

    run: Any
    mesh: Mesh
    folder: Any
    cache: dict[Any, Any]
    config: dict[str, Any]
