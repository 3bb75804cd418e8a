"""The training step: one jitted program, the same for every method and mesh."""

import jax
import jax.numpy as jnp
import optax

from advadapters import mesh as meshes
from advadapters import rng
from advadapters.training import optim
from advadapters.training import state as states


def make_step(loss, augment, tx, *, seed, ema_decay, accumulate, mesh):
    """jit: (state, batch of uint8 [B, ...]) -> (state, metrics); the state is donated.

    All randomness comes from (seed, state.step), so that a resumed run goes on as
    if it had not stopped. With accumulate > 1 the batch is worked off in that many
    parts one after the other, and the mean gradient makes one update.
    """
    gradients = accumulated(jax.value_and_grad(loss, has_aux=True), accumulate)

    def step(state, batch):
        key = rng.fold(jax.random.key(seed), "train", state.step)
        batch = augment(batch, rng.fold(key, "augment"))
        batch = meshes.keep_batched(mesh, batch)
        slopes, metrics = gradients(state.variables, batch, rng.fold(key, "loss"))
        updates, optimizer = tx.update(slopes, state.optimizer, state.variables)
        variables = optax.apply_updates(state.variables, updates)
        metrics["gradient_norm"] = optax.tree.norm(slopes)
        metrics["nonfinite"] = optim.nonfinite(optimizer)
        return states.State(
            step=state.step + 1,
            variables=variables,
            ema=states.average(state.ema, variables, state.step, ema_decay),
            optimizer=optimizer,
        ), metrics

    everywhere, rows = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(
        step,
        in_shardings=(everywhere, rows),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def accumulated(value_and_grad, parts):
    """(variables, batch, key) -> (mean gradients, mean metrics) over `parts` of a batch.

    Part p holds rows p, p + parts, ...: so every device works on its own rows only.
    """

    def gradients(variables, batch, key):
        (_, metrics), slopes = value_and_grad(variables, batch, key)
        return slopes, metrics  # which hold the loss

    def add_up(variables, batch, key):
        split = jax.tree.map(
            lambda rows: jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0),
            batch,
        )

        def add(total, rows):
            return jax.tree.map(jnp.add, total, gradients(variables, rows, key)), None

        part = jax.tree.map(lambda rows: rows[0], split)
        shapes = jax.eval_shape(gradients, variables, part, key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, split)
        return jax.tree.map(lambda leaf: leaf / parts, total)

    return gradients if parts == 1 else add_up
