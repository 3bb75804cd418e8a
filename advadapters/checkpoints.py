"""Checkpoints: the only file that knows Orbax."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from advadapters.errors import UsageError


class Checkpoints:
    """Training states under one folder: the newest `keep`, and the best if asked for.

    Saves are asynchronous; leave the `with` block to wait for the last one.
    """

    def __init__(self, folder, *, keep=2, best=False, read_only=False):
        self.folder, self.scored = folder, best
        policies: list = [checkpoint_managers.LatestN(keep)]
        if best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=score_of,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        with unwarned():
            if jax.process_count() == 1:
                write_whole_arrays()
            options = ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=score_of if best else None,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            )
            self.manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.manager.close()

    def steps(self):
        """The steps that there are, oldest first."""
        return sorted(self.manager.all_steps())

    def latest(self):
        """The newest step saved, or None."""
        return self.manager.latest_step()

    def best(self):
        """The step with the highest score, or None if none has one."""
        return self.manager.best_step() if self.scored else None

    def find(self, text, where):
        """The step that "latest", "best" or a number names; raises UsageError."""
        named = {"latest": self.latest, "best": self.best}
        step = named[text]() if text in named else int(text) if text.isdecimal() else None
        if step not in self.steps():
            raise UsageError(
                f"{where} has no checkpoint {text!r}; there are: "
                + (", ".join(map(str, self.steps())) or "none")
            )
        return step

    def save(self, step, state, score=None):
        """Starts to save; `score` (higher is better) makes it a candidate for the best."""
        metrics = None if score is None else {"score": float(score)}
        arguments = ocp.args.StandardSave(state)
        self.manager.save(step, args=arguments, metrics=metrics, force=True)

    def restore_raw(self, step):
        """The state at `step` as nested dicts of numpy arrays, but for the optimizer's.

        From any number of devices; raises UsageError if it cannot be read.
        """
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        try:
            with unwarned(), ocp.StandardCheckpointer() as reader:
                path = epath.Path(self.folder) / str(step) / "default"
                there = dict(reader.metadata(path).item_metadata.tree)
            there.pop("optimizer", None)
            target = jax.tree.map(
                lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place), there
            )
            item = self.restore_part(target, step)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(f"cannot read checkpoint {step}: {reason}") from None
        return jax.tree.map(np.asarray, item)

    def restore_part(self, abstract, step):
        """What an abstract tree, nested dicts, has of the state at `step`, placed like it.

        Nothing else is read.
        """
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        wanted = ocp.args.PyTreeRestore(
            item=abstract, restore_args=arguments, partial_restore=True
        )
        return self.manager.restore(step, args=wanted)

    def restore(self, abstract, step):
        """The state at `step`, placed like the abstract tree."""
        state = self.manager.restore(step, args=ocp.args.StandardRestore(abstract))
        # Restored buffers cannot always be donated; fresh copies can.
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=places)
        return copy(state)


@contextlib.contextmanager
def unwarned():
    """Keeps back Orbax's warnings, which are about what it was asked for."""
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def write_whole_arrays():
    """Has Orbax write each array at once, not a piece from each device that has a copy.

    Several processes share the work by that. In one it gains nothing, and every piece is
    cut by a program of its own, compiled at the first save (seen: 136 for eight devices).
    """
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def score_of(metrics):
    """What the best checkpoint has most of."""
    return metrics["score"]
