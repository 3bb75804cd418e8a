"""The training state: everything that a resumed run needs, nothing else."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from advadapters import trees

TRAINED = ("shared", "adapters")


@flax.struct.dataclass
class State:
    """step: int32 [], steps done; variables and ema: see `branches`."""

    step: Any
    variables: Any
    ema: Any
    optimizer: Any


def branches(plain, patterns, domains, separate=False, errors=None):
    """An ordinary network {"params", "batch_stats"} -> the variables of training.

    {"shared":   the parameters that no pattern matches,
     "adapters": those that one does, K = domains equal rows,
     "stats": {"shared", "adapters": running statistics, with K rows if `separate`,
               "errors": running robust errors of views that draw their attack}}

    Raises PatternError for a pattern that matches nothing.
    """
    shared, chosen = trees.split(plain["params"], patterns)
    stats = plain.get("batch_stats", {})
    one, many = ({}, stats) if separate else (stats, {})
    return {
        "shared": shared,
        "adapters": trees.replicate(chosen, domains),
        "stats": {
            "shared": one,
            "adapters": trees.replicate(many, domains),
            "errors": errors or {},
        },
    }


def trained(variables):
    """The branches that gradients and the optimizer see."""
    return {branch: variables[branch] for branch in TRAINED}


def create(variables, tx):
    """The state before the first step."""
    return State(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        ema=jax.tree.map(jnp.copy, variables),
        optimizer=tx.init(trained(variables)),
    )


def average(ema, variables, step, decay):
    """The moving average after `step` updates, of parameters and statistics alike.

    The average starts as a copy of the first parameters; so that it forgets them,
    the decay grows as (1 + step) / (10 + step) until it reaches `decay`.
    """
    step = step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(variables, ema, 1 - decay)
