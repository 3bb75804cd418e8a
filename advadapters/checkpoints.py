"""Checkpoints: the only file that knows Orbax."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from advadapters.errors import UsageError
from advadapters.shapes import PyTree


class Checkpoints:
    """Training states under one folder.

    Saves are asynchronous; leave the `with` block to wait for the last one.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 2,
        best: bool = False,
        read_only: bool = False,
    ) -> None:
        """Opens a folder.

        Args:
          folder: an absolute path.
          keep: how many of the newest states stay.
          best: whether the state with the highest score stays too.
          read_only: whether nothing is saved or cleaned up.
        """
        self.folder, self._has_scores = folder, best
        policies: list = [checkpoint_managers.LatestN(keep)]
        if best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=_score_of,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        with _quiet_orbax():
            if jax.process_count() == 1:
                _write_whole_arrays()
            options = ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=_score_of if best else None,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            )
            self.manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.manager.close()

    def steps(self) -> list[int]:
        """The steps that there are, oldest first."""
        return sorted(self.manager.all_steps())

    def latest(self) -> int | None:
        """The newest step, or None if there is none."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step with the highest score, or None if none has one."""
        return self.manager.best_step() if self._has_scores else None

    def find(self, text: str, where: object) -> int:
        """The step that a text names.

        Args:
          text: "latest", "best" or a number.
          where: what the error message calls the folder.

        Raises:
          UsageError: there is no such step.
        """
        names = {"latest": self.latest, "best": self.best}
        step = names[text]() if text in names else int(text) if text.isdecimal() else None
        if step is None or step not in self.steps():
            raise UsageError(
                f"{where} has no checkpoint {text!r}; there are: "
                + (", ".join(map(str, self.steps())) or "none")
            )
        return step

    def save(self, step: int, state: PyTree, score: float | None = None) -> None:
        """Starts to save a state.

        With a score, of which higher ones are better, it may be the best.
        """
        metrics = None if score is None else {"score": float(score)}
        arguments = ocp.args.StandardSave(state)
        self.manager.save(step, args=arguments, metrics=metrics, force=True)

    def restore_raw(self, step: int) -> dict[str, Any]:
        """The state at a step as nested dicts of numpy arrays, without the optimizer's.

        It may come from any number of devices.

        Raises:
          UsageError: it cannot be read.
        """
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        try:
            with _quiet_orbax(), ocp.StandardCheckpointer() as reader:
                path = epath.Path(self.folder) / str(step) / "default"
                metadata = dict(reader.metadata(path).item_metadata.tree)
            metadata.pop("optimizer", None)
            target = jax.tree.map(
                lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place), metadata
            )
            item = self.restore_part(target, step)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(f"cannot read checkpoint {step}: {reason}") from None
        return jax.tree.map(np.asarray, item)

    def restore_part(self, abstract: Mapping[str, Any], step: int) -> Any:
        """A part of the state at a step; nothing else is read.

        Args:
          abstract: nested dicts of shapes with shardings, of the leaves to be read and
            where to place them.
          step: a step that there is.
        """
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        restore = ocp.args.PyTreeRestore(
            item=abstract, restore_args=arguments, partial_restore=True
        )
        return self.manager.restore(step, args=restore)

    def restore(self, abstract: PyTree, step: int) -> Any:
        """The state at a step, placed like the abstract tree of the same structure."""
        state = self.manager.restore(step, args=ocp.args.StandardRestore(abstract))
        # Restored buffers cannot always be donated; fresh copies can.
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=places)
        return copy(state)


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Suppresses Orbax's warnings, which are about what it was asked for."""
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _write_whole_arrays() -> None:
    """Has Orbax write each array at once, not a piece from each device that has a copy.

    Several processes share the work by pieces. In one process they gain nothing, and every
    piece is cut by a program of its own that is compiled at the first save (136 programs
    for eight devices were seen).
    """
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def _score_of(metrics: Mapping[str, float]) -> float:
    """What the best checkpoint has most of."""
    return metrics["score"]
