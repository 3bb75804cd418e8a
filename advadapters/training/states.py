"""The training state: everything that a resumed run needs, nothing else."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from advadapters import trees

TRAINED = ("shared", "adapters")


@flax.struct.dataclass
class State:
    """step: int32 [], steps done; variables: see `branches`; ema: averages of those that
    move, all but "frozen"."""

    step: Any
    variables: Any
    ema: Any
    optimizer: Any


def branches(plain, patterns, domains, separate=False, errors=None, trained=(".*",)):
    """An ordinary network {"params", "batch_stats"} -> the variables of training.

    {"shared":   the trained parameters that no pattern matches,
     "adapters": those that one does, K = domains equal rows,
     "frozen":   parameters that neither `patterns` nor `trained` match,
     "stats": {"shared", "adapters": running statistics, with K rows if `separate`,
               "errors": running robust errors of views that draw their attack}}

    Raises PatternError for a pattern that matches nothing, or that makes some leaves of
    a LoRA domain-specific and not others.
    """
    rest, chosen = trees.split(plain["params"], patterns)
    need_whole_loras(plain["params"], chosen)
    moving = set(trees.select(trees.flatten(plain["params"]), trained))
    rest = trees.flatten(rest)
    shared = trees.unflatten({p: leaf for p, leaf in rest.items() if p in moving})
    frozen = trees.unflatten({p: leaf for p, leaf in rest.items() if p not in moving})
    stats = plain.get("batch_stats", {})
    one, many = ({}, stats) if separate else (stats, {})
    return {
        "shared": shared,
        "adapters": trees.replicate(chosen, domains),
        "frozen": frozen,
        "stats": {
            "shared": one,
            "adapters": trees.replicate(many, domains),
            "errors": errors or {},
        },
    }


def need_whole_loras(params, chosen):
    """Raises PatternError if some leaves of a LoRA are chosen that others multiply.

    Its update is linear in b, in a, and in scale and bias together, but not in two of
    these: mixed one by one they would not mix the updates.
    """
    chosen = trees.flatten(chosen)
    for folder, names in trees.find_loras(trees.flatten(params)).items():
        own = {name for name in names if f"{folder}/{name}" in chosen}
        factors = {"norm" if name in ("scale", "bias") else name for name in own}
        if len(factors) > 1 and own != names:
            raise trees.PatternError(
                f"{folder}: {', '.join(sorted(own))} are domain-specific and "
                f"{', '.join(sorted(names - own))} are not; choose {folder}/.*"
            )


def trained(variables):
    """The branches that gradients and the optimizer see."""
    return {branch: variables[branch] for branch in TRAINED}


def moving(variables):
    """All branches that training changes: the trained ones and the statistics."""
    return trained(variables) | {"stats": variables["stats"]}


def averaged(state):
    """The variables with averaged parameters and statistics, which are evaluated."""
    return state.variables | state.ema


def parts(variables):
    """What `averaged` takes of a State with such variables, as nested dicts of a State."""
    frozen = {"frozen": variables["frozen"]}
    return {"variables": frozen, "ema": moving(variables)}


def joined(found):
    """The variables that `averaged` makes, of what `parts` names."""
    return found["variables"] | found["ema"]


def create(variables, tx):
    """The state before the first step."""
    return State(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        ema=jax.tree.map(jnp.copy, moving(variables)),
        optimizer=tx.init(trained(variables)),
    )


def average(ema, variables, step, decay):
    """The moving average after `step` updates, of trees of parameters and statistics.

    The average starts as a copy of the first parameters; so that it forgets them,
    the decay grows as (1 + step) / (10 + step) until it reaches `decay`. What does not
    move is not rounded either. With a decay of 0 the average is the parameters themselves,
    bit for bit.
    """
    if decay == 0:
        return variables
    step = step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, variables)
