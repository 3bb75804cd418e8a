"""The training step: one jitted program, the same for every method and mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from advadapters import meshes, rng
from advadapters.networks import Variables
from advadapters.shapes import Array, Num, PRNGKey, PyTree, Shaped
from advadapters.training import optim, states
from advadapters.training.method import Batch, Loss, Metrics, Outcome

# (variables, batch, key) -> gradients of the trained branches, new statistics, metrics
Gradients = Callable[[Variables, Batch, PRNGKey], tuple[Any, Any, Metrics]]


def make_step(
    loss: Loss,
    augment: Callable[[Batch, PRNGKey], Batch],
    tx: optax.GradientTransformation,
    *,
    ema_decay: float,
    accumulate: int,
    mesh: Mesh,
    places: states.State | None = None,
) -> Any:
    """Makes the jitted step (state, batch, seed) -> (state, metrics).

    The state's buffers are donated. The batch holds uint8 images [B, H, W, C]. The seed is
    uint32 [], an argument so that what is compiled for one seed serves all. All randomness
    comes from the seed and state.step, so a resumed run goes on as if it had not stopped.

    Three metrics are added to those of the loss. Two are global L2 norms over the trained
    parameters, those of all domains' adapters included: "gradient_norm" is that of the
    mean gradient before any clipping, and "weight_norm" that of the parameters at which
    the gradient was taken. The third is "nonfinite", the number of updates in a row that
    were skipped.

    Args:
      loss: what a method makes, see `Method.loss`. It runs on each device's rows alone,
        where the mesh's axis "data" is bound. In its batch, "step" int32 [B] holds
        state.step in every row.
      augment: (batch, key) -> batch with float images in [0, 1].
      tx: the optimizer, which counts updates that are not finite, see `optim.make`.
      ema_decay: that of the averages, see `states.average`.
      accumulate: the number of parts in which a batch is worked off, one after the other.
        The mean gradient of all makes one update.
      mesh: the devices.
      places: a NamedSharding for each leaf of the state; None replicates it. What is split
        over the devices is gathered once a step, before anything looks at it. So the loss
        and its attacks see whole parameters and send nothing, while the optimizer and the
        averages work on what each device keeps.
    """
    everywhere, rows = meshes.replicated(mesh), meshes.batched(mesh)
    if places is None:
        state_places = gradient_places = everywhere
    else:
        state_places, gradient_places = places, states.trained(places.variables)
    gradients = over_devices(
        accumulated(differentiated(loss), accumulate), mesh, gradient_places
    )

    def step(
        state: states.State, batch: Batch, seed: Num[Array, ""]
    ) -> tuple[states.State, Metrics]:
        key = rng.fold(jax.random.key(seed), "train", state.step)
        with jax.named_scope("augment"):
            batch = augment(batch, rng.fold(key, "augment"))
        numbers = jnp.full_like(batch["index"], state.step)
        batch = meshes.keep_batched(mesh, {**batch, "step": numbers})
        with jax.named_scope("loss"):
            slopes, stats, metrics = gradients(
                state.variables, batch, rng.fold(key, "loss")
            )
        with jax.named_scope("update"):
            return update(state, slopes, stats, metrics)

    def update(
        state: states.State, slopes: PyTree, stats: PyTree, metrics: Metrics
    ) -> tuple[states.State, Metrics]:
        trained = states.trained(state.variables)
        updates, optimizer = tx.update(slopes, state.optimizer, trained)
        variables = optax.apply_updates(trained, updates)
        # Where the update was skipped, statistics of what made it so are no good either.
        bad = optim.nonfinite(optimizer) > 0
        stats = jax.tree.map(
            lambda new, old: jnp.where(bad, old, new), stats, state.variables["stats"]
        )
        variables = state.variables | variables | {"stats": stats}
        metrics["gradient_norm"] = optax.tree.norm(slopes)
        metrics["weight_norm"] = optax.tree.norm(trained)
        metrics["nonfinite"] = optim.nonfinite(optimizer)
        return states.State(
            step=state.step + 1,
            variables=variables,
            ema=states.average(state.ema, states.moving(variables), state.step, ema_decay),
            optimizer=optimizer,
        ), metrics

    return jax.jit(
        step,
        in_shardings=(state_places, rows, everywhere),
        out_shardings=(state_places, everywhere),
        donate_argnums=0,
    )


def over_devices(gradients: Gradients, mesh: Mesh, places: PyTree) -> Gradients:
    """The same function, run on every device's own rows and averaged over the devices.

    The average is taken once, after all else. The rows are split by hand, because under
    `vmap` over views a convolution merges the axes of views and images into one, of which
    the compiler could split only a part.

    Args:
      gradients: (variables, batch, key) -> gradients, statistics and metrics.
      mesh: the devices.
      places: those of the gradients, one NamedSharding for each leaf or for all. Where a
        gradient is split, each device receives the mean of its own part only (a
        reduce-scatter).
    """
    specs = jax.tree.map(lambda place: place.spec, places)

    def average(spec: PartitionSpec, slopes: PyTree) -> PyTree:
        if "data" not in spec:
            return jax.lax.pmean(slopes, "data")
        axis = spec.index("data")
        total = jax.lax.psum_scatter(slopes, "data", scatter_dimension=axis, tiled=True)
        return total / mesh.size

    def run_locally(
        variables: Variables, batch: Batch, key: PRNGKey
    ) -> tuple[Any, Any, Metrics]:
        slopes, stats, metrics = gradients(variables, batch, key)
        slopes = jax.tree.map(average, specs, slopes)
        return slopes, *jax.lax.pmean((stats, metrics), "data")

    return jax.shard_map(
        run_locally,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data"), PartitionSpec()),
        out_specs=(specs, PartitionSpec(), PartitionSpec()),
        check_vma=False,
    )


def differentiated(loss: Loss) -> Gradients:
    """(variables, batch, key) -> (gradients of the trained branches, stats, metrics)."""

    def loss_of_trained(
        trained: states.Tree, variables: Variables, batch: Batch, key: PRNGKey
    ) -> Outcome:
        return loss({**variables, **trained}, batch, key)

    gradient = jax.grad(loss_of_trained, has_aux=True)

    def gradients(
        variables: Variables, batch: Batch, key: PRNGKey
    ) -> tuple[Any, Any, Metrics]:
        slopes, (stats, metrics) = gradient(
            states.trained(variables), variables, batch, key
        )
        return slopes, stats, metrics

    return gradients


def accumulated(gradients: Gradients, parts: int) -> Gradients:
    """The same function, run on `parts` of a batch one after the other.

    Part p holds rows p, p + parts, ... Gradients and metrics are means over the parts.
    Statistics run from part to part, except the running errors: all parts draw by those
    before the batch, and the mean of what they become is taken.
    """

    def split_rows(rows: Shaped[Array, "B ..."]) -> Shaped[Array, "parts b ..."]:
        return jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0)

    def add_up(
        variables: Variables, batch: Batch, key: PRNGKey
    ) -> tuple[Any, Any, Metrics]:
        split = jax.tree.map(split_rows, batch)

        def add(carry: tuple[PyTree, Any], rows: Batch) -> tuple[tuple[PyTree, Any], None]:
            total, stats = carry
            stats = stats | {"errors": variables["stats"]["errors"]}
            slopes, stats, metrics = gradients({**variables, "stats": stats}, rows, key)
            part = (slopes, metrics, stats["errors"])
            return (jax.tree.map(jnp.add, total, part), stats), None

        part = jax.tree.map(lambda rows: rows[0], split)
        slopes, stats, metrics = jax.eval_shape(gradients, variables, part, key)
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), (slopes, metrics, stats["errors"])
        )
        (total, stats), _ = jax.lax.scan(add, (zeros, variables["stats"]), split)
        slopes, metrics, errors = jax.tree.map(lambda leaf: leaf / parts, total)
        return slopes, stats | {"errors": errors}, metrics

    return gradients if parts == 1 else add_up
