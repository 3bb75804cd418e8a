"""The training step: one jitted program, the same for every method and mesh."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from advadapters import meshes, rng
from advadapters.training import optim, states


def make_step(loss, augment, tx, *, ema_decay, accumulate, mesh, places=None):
    """jit: (state, batch of uint8 [B, ...], seed) -> (state, metrics); donates the state.

    loss: (variables, batch, key) -> (float32 [], (new stats, metrics)); it runs on each
    device's rows alone, the mesh's axis "data" being bound there.

    All randomness comes from (seed, state.step), so that a resumed run goes on as
    if it had not stopped. seed: uint32 [], an argument so that what is compiled for one
    serves all. With accumulate > 1 the batch is worked off in that many
    parts one after the other, and the mean gradient makes one update. In the loss's
    batch, "step" int32 [B] holds state.step in every row.

    To the loss's metrics it adds two global L2 norms over the trained parameters, those
    of all domains' adapters included: gradient_norm, of the mean gradient before any
    clipping, and weight_norm, of the parameters that the gradient was taken at; and
    nonfinite, how many updates in a row were skipped.

    places: a NamedSharding for each leaf of the state; None replicates it. What is split
    over the devices is gathered once a step, before anything looks at it, and so the loss
    and its attacks see whole parameters and send nothing; the optimizer and the averages
    work on what each device keeps.
    """
    everywhere, rows = meshes.replicated(mesh), meshes.batched(mesh)
    kept = everywhere if places is None else places
    own = everywhere if places is None else states.trained(places.variables)
    gradients = over_devices(accumulated(differentiated(loss), accumulate), mesh, own)

    def step(state, batch, seed):
        key = rng.fold(jax.random.key(seed), "train", state.step)
        with jax.named_scope("augment"):
            batch = augment(batch, rng.fold(key, "augment"))
        batch["step"] = jnp.full_like(batch["index"], state.step)
        batch = meshes.keep_batched(mesh, batch)
        with jax.named_scope("loss"):
            slopes, stats, metrics = gradients(
                state.variables, batch, rng.fold(key, "loss")
            )
        with jax.named_scope("update"):
            return update(state, slopes, stats, metrics)

    def update(state, slopes, stats, metrics):
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
        in_shardings=(kept, rows, everywhere),
        out_shardings=(kept, everywhere),
        donate_argnums=0,
    )


def over_devices(gradients, mesh, places):
    """Runs on every device's own rows, then averages once over the devices.

    places: of the gradients, one NamedSharding for each or for all; where they are split
    each device receives the mean of its own part only (a reduce-scatter).

    Data parallelism by hand: under `vmap` over views a convolution merges the axes of
    views and images into one, of which the compiler could split only a part.
    """
    specs = jax.tree.map(lambda place: place.spec, places)

    def mean(spec, slopes):
        if "data" not in spec:
            return jax.lax.pmean(slopes, "data")
        axis = spec.index("data")
        total = jax.lax.psum_scatter(slopes, "data", scatter_dimension=axis, tiled=True)
        return total / mesh.size

    def local(variables, batch, key):
        slopes, stats, metrics = gradients(variables, batch, key)
        slopes = jax.tree.map(mean, specs, slopes)
        return slopes, *jax.lax.pmean((stats, metrics), "data")

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P("data"), P()),
        out_specs=(specs, P(), P()),
        check_vma=False,
    )


def differentiated(loss):
    """(variables, batch, key) -> (gradients of the trained branches, stats, metrics)."""

    def split_loss(trained, variables, batch, key):
        return loss(variables | trained, batch, key)

    gradient = jax.grad(split_loss, has_aux=True)

    def gradients(variables, batch, key):
        slopes, (stats, metrics) = gradient(
            states.trained(variables), variables, batch, key
        )
        return slopes, stats, metrics

    return gradients


def accumulated(gradients, parts):
    """The same over `parts` of a batch: mean gradients and metrics, the last stats.

    Part p holds rows p, p + parts, ... Statistics run from part to part, but for the
    running errors, whose means are taken: all parts draw by those before the batch.
    """

    def add_up(variables, batch, key):
        split = jax.tree.map(
            lambda rows: jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0),
            batch,
        )

        def add(carry, rows):
            total, stats = carry
            stats = stats | {"errors": variables["stats"]["errors"]}
            slopes, stats, metrics = gradients(variables | {"stats": stats}, rows, key)
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
