"""The training state: everything that a resumed run needs, nothing else."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from advadapters import trees


@flax.struct.dataclass
class State:
    """step: int32 [], steps done; variables and ema: {"shared", "adapters"}."""

    step: Any
    variables: Any
    ema: Any
    optimizer: Any


def branches(params, patterns, domains):
    """An ordinary parameter tree -> {"shared": rest, "adapters": chosen, K equal rows}.

    Raises PatternError for a pattern that matches nothing.
    """
    shared, chosen = trees.split(params, patterns)
    return {"shared": shared, "adapters": trees.replicate(chosen, domains)}


def create(params, patterns, domains, tx):
    """The state before the first step."""
    variables = branches(params, patterns, domains)
    return State(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        ema=jax.tree.map(jnp.copy, variables),
        optimizer=tx.init(variables),
    )


def average(ema, variables, step, decay):
    """The moving average after `step` updates.

    The average starts as a copy of the first parameters; so that it forgets them,
    the decay grows as (1 + step) / (10 + step) until it reaches `decay`.
    """
    step = step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(variables, ema, 1 - decay)
