"""Checkpoints: the only file that knows Orbax."""

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from advadapters.errors import UsageError


class Checkpoints:
    """Training states under one folder: the newest `keep`, and the best one.

    Saves are asynchronous; leave the `with` block to wait for the last one.
    """

    def __init__(self, folder, *, keep=2):
        newest = policies.LatestN(keep)
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["score"],
            reverse=False,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self.manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([newest, best]),
                best_fn=lambda metrics: metrics["score"],
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.manager.close()

    def latest(self):
        """The newest step saved, or None."""
        return self.manager.latest_step()

    def best(self):
        """The step with the highest score, or None if none has one."""
        return self.manager.best_step()

    def save(self, step, state, score=None):
        """Starts to save; `score` (higher is better) makes it a candidate for the best."""
        metrics = None if score is None else {"score": float(score)}
        arguments = ocp.args.StandardSave(state)
        self.manager.save(step, args=arguments, metrics=metrics, force=True)

    def restore(self, abstract, step=None):
        """The state at `step` (default: the newest), placed like the abstract tree.

        Raises UsageError if the checkpoint has other leaves or shapes.
        """
        step = self.latest() if step is None else step
        try:
            state = self.manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except FileNotFoundError:
            raise UsageError(
                f"no checkpoint of step {step}; there are {self.manager.all_steps()}"
            ) from None
        # Restored buffers cannot always be donated; fresh copies can.
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=places)(
            state
        )


def abstract(state, sharding):
    """Shapes and types of a state (or of a function's result), placed by `sharding`."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
    )
