"""How Orbax is used: quietly, with whole arrays, and with states that it must keep."""

import contextlib
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging


class KeepVerified:
    """Orbax's policy that keeps the state which was read back last, if there is one."""

    def __init__(self) -> None:
        self.step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of the checkpoints stay."""
        return [checkpoint.step == self.step for checkpoint in checkpoints]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses Orbax's warnings, which are about what it was asked for.

    Where reading fails, the threads that read other arrays print that their event loop is
    closed. The error itself is raised all the same.
    """
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, logging.ERROR))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                yield
            except Exception:
                time.sleep(0.2)  # until these threads have ended
                raise
    finally:
        logging.set_verbosity(before)


def write_whole_arrays() -> None:
    """Has Orbax write each array at once, not a piece from each device that has a copy.

    Several processes share the work by pieces. In one process they gain nothing, and every
    piece is cut by a program of its own that is compiled at the first save (136 programs
    for eight devices were seen).
    """
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def score_of(metrics: Mapping[str, float]) -> float:
    """What the best checkpoint has most of."""
    return metrics["score"]
