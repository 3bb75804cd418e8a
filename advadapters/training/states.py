"""The training state: everything that a resumed run needs, nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from advadapters import trees
from advadapters.shapes import AnyArray, Int, PyTree

TRAINED = ("shared", "adapters")
Tree = dict[str, Any]  # nested dicts of arrays


@flax.struct.dataclass
class State:
    """What training changes.

    Attributes:
      step: int32 [], the number of steps done.
      variables: see `branches`.
      ema: averages of those that move, which are all but "frozen".
      optimizer: its state.
    """

    step: Any
    variables: Any
    ema: Any
    optimizer: Any


def branches(
    plain: Mapping[str, Any],
    patterns: Sequence[str],
    domains: int,
    separate: bool = False,
    errors: Mapping[str, Any] | None = None,
    trained: Sequence[str] = (".*",),
) -> Tree:
    """Makes the variables of training from an ordinary network.

    Args:
      plain: {"params", "batch_stats"}.
      patterns: those of the adapters' paths.
      domains: their number K.
      separate: whether each domain has running statistics of its own.
      errors: running robust errors of the views that draw their attack.
      trained: patterns of the other parameters that are trained.

    Returns:
      {"shared":   the trained parameters that no adapter's pattern matches,
       "adapters": those that one matches, in K equal rows,
       "frozen":   the parameters that neither `patterns` nor `trained` match,
       "stats": {"shared", "adapters": running statistics, with K rows if `separate`,
                 "errors": the running robust errors}}

    Raises:
      PatternError: a pattern matches nothing, or makes some leaves of a LoRA
        domain-specific and not others.
    """
    rest, picked = trees.split(plain["params"], patterns)
    need_whole_loras(plain["params"], picked)
    moving = set(trees.select(trees.flatten(plain["params"]), trained))
    rest = trees.flatten(rest)
    shared = trees.unflatten({p: leaf for p, leaf in rest.items() if p in moving})
    frozen = trees.unflatten({p: leaf for p, leaf in rest.items() if p not in moving})
    stats = plain.get("batch_stats", {})
    common, by_domain = ({}, stats) if separate else (stats, {})
    return {
        "shared": shared,
        "adapters": trees.replicate(picked, domains),
        "frozen": frozen,
        "stats": {
            "shared": common,
            "adapters": trees.replicate(by_domain, domains),
            "errors": dict(errors or {}),
        },
    }


def need_whole_loras(params: Tree, picked: Tree) -> None:
    """Raises PatternError if adapters hold some leaves of a LoRA that others multiply.

    Its update is linear in b, in a, and in scale and bias together, but not in two of
    these: mixed one by one they would not mix the updates.
    """
    paths = trees.flatten(picked)
    for folder, names in trees.find_loras(trees.flatten(params)).items():
        specific = {name for name in names if f"{folder}/{name}" in paths}
        factors = {"norm" if name in ("scale", "bias") else name for name in specific}
        if len(factors) > 1 and specific != names:
            raise trees.PatternError(
                f"{folder}: {', '.join(sorted(specific))} are domain-specific and "
                f"{', '.join(sorted(names - specific))} are not; choose {folder}/.*"
            )


def trained(variables: Mapping[str, Any]) -> Tree:
    """The branches that gradients and the optimizer see."""
    return {branch: variables[branch] for branch in TRAINED}


def moving(variables: Mapping[str, Any]) -> Tree:
    """All branches that training changes: the trained ones and the statistics."""
    return trained(variables) | {"stats": variables["stats"]}


def averaged(state: State) -> Tree:
    """The variables with averaged parameters and statistics, which are evaluated."""
    return state.variables | state.ema


def parts(variables: Mapping[str, Any]) -> Tree:
    """What `averaged` takes of a State with such variables, as nested dicts of a State."""
    frozen = {"frozen": variables["frozen"]}
    return {"variables": frozen, "ema": moving(variables)}


def joined(parts: Mapping[str, Any]) -> Tree:
    """The variables that `averaged` makes, from the parts of a State that `parts` names."""
    return parts["variables"] | parts["ema"]


def create(variables: Tree, tx: Any) -> State:
    """The state before the first step; tx: an optax transformation."""
    return State(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        ema=jax.tree.map(jnp.copy, moving(variables)),
        optimizer=tx.init(trained(variables)),
    )


def average(ema: PyTree, variables: PyTree, step: Int[AnyArray, ""], decay: float) -> Any:
    """The moving average of parameters and statistics after `step` updates.

    The average starts as a copy of the first parameters. So that it forgets them,
    the decay grows as (1 + step) / (10 + step) until it reaches `decay`. What does not
    move is not rounded either. With a decay of 0 the average is the parameters themselves,
    bit for bit.
    """
    if decay == 0:
        return variables
    count = step.astype(jnp.float32)
    share = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda old, new: old + share * (new - old), ema, variables)
