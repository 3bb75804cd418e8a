"""The optimizer: AdamW or SGD with warm-up, cosine or stepwise decay, layer decay, clipping
and a guard against NaN."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from advadapters import schema, trees

Rule = Callable[[optax.GradientTransformation], optax.GradientTransformation]
Drops = Sequence[tuple[float, float]]  # (step, factor), steps increasing


def schedule(
    *, peak: float, steps: int, warmup_steps: int, drops: Drops = ()
) -> optax.Schedule:
    """A learning rate that is linear from 0 to `peak`, then half a cosine to 0 at `steps`.

    With drops ((step, factor), ...), whose steps increase, the rate stays at `peak` instead
    of the cosine, and from each such step on at `peak` times the factor.
    """
    if drops:
        return _stepwise(peak, warmup_steps, drops)
    return optax.schedules.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps, decay_steps=steps
    )


def _stepwise(peak: float, warmup_steps: int, drops: Drops) -> optax.Schedule:
    """step -> the rate of warm-up times `peak` times the factor of the last drop."""
    starts = jnp.array([0, *(step for step, _ in drops)])
    factors = jnp.array([1.0, *(factor for _, factor in drops)])

    def rate(step: Any) -> Any:
        warm = jnp.minimum(1.0, step / warmup_steps) if warmup_steps else 1.0
        factor = factors[jnp.searchsorted(starts, step, side="right") - 1]
        return peak * warm * factor

    return rate


NEVER = 2**31 - 1


Decay = Annotated[float, schema.Between(low=0.0, below=1.0), "of the moving average"]


def adam(b1: Decay, b2: Decay) -> Rule:
    """The rule of AdamW: weight decay is added to what Adam makes of the gradient."""
    return lambda decay: optax.chain(optax.scale_by_adam(b1=b1, b2=b2), decay)


def sgd(momentum: Decay) -> Rule:
    """The rule of SGD with momentum: weight decay is added to the gradient."""
    return lambda decay: optax.chain(decay, optax.trace(decay=momentum))


# Rules by name: functions of annotated settings (see `schema`) -> a function of the weight
# decay, an optax transformation, that puts it where it belongs.
OPTIMIZERS = {"adamw": adam, "sgd": sgd}


def make(
    rule: Rule,
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    decayed: Sequence[str],
    clip_norm: float,
    layers: Sequence[str] = (),
    layer_decay: float = 1.0,
) -> optax.GradientTransformation:
    """A gradient transformation over {"shared", "adapters"}.

    A gradient that is not finite is skipped, and then parameters and moments stay.
    `nonfinite` counts such updates in a row, and the loop stops when there are too many.

    Args:
      rule: what one of OPTIMIZERS makes of its settings.
      learning_rate: step -> rate.
      weight_decay: its factor.
      decayed: path patterns, within a branch, of the leaves that weight decay acts on.
      clip_norm: the largest global norm of the gradient, 0 for none.
      layers: see `layer_scales`.
      layer_decay: see `layer_scales`.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    decay = optax.add_decayed_weights(weight_decay, mask=mask(decayed))
    scale = _layer_scaling(layers, layer_decay)
    rate = optax.scale_by_learning_rate(learning_rate)
    # Past its limit optax lets bad updates through; ours is out of reach.
    return optax.apply_if_finite(optax.chain(clip, rule(decay), scale, rate), NEVER)


def _by_path(variables: Mapping[str, Any], function: Callable[[str], Any]) -> dict:
    """The same tree with function(path within the branch) for every leaf."""
    return {
        branch: trees.unflatten({path: function(path) for path in trees.flatten(tree)})
        for branch, tree in variables.items()
    }


def mask(patterns: Sequence[str]) -> Callable[[Any], Any]:
    """variables -> the same tree of bools: whether a pattern matches the path."""

    def matches(path: str) -> bool:
        return any(trees.matches(pattern, path) for pattern in patterns)

    return lambda variables: _by_path(variables, matches)


def layer_scales(
    paths: Iterable[str], layers: Sequence[str], decay: float
) -> dict[str, float]:
    """{path: factor of its learning rate}: layer-wise decay (Clark et al. 2020, MAE).

    layers: patterns in the order of the network. One with a group, like
    r"blocks_(\\d+)/.*", stands for a layer per number. Leaves that none matches are the
    last layer and have factor 1; each layer before has `decay` times the next one's.
    """
    paths, layer_of = list(paths), {}
    for path in paths:
        for order, pattern in enumerate(layers):
            match = re.fullmatch(pattern, path)
            if match:
                numbers = [int(g) for g in match.groups() if g and g.isdecimal()]
                layer_of[path] = (order, *numbers)
                break
    order_of = {layer: n for n, layer in enumerate(sorted(set(layer_of.values())))}
    return {
        path: decay ** (len(order_of) - order_of[layer_of[path]])
        if path in layer_of
        else 1.0
        for path in paths
    }


def _layer_scaling(layers: Sequence[str], decay: float) -> optax.GradientTransformation:
    """A transformation that multiplies every leaf's update by its layer's factor."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        paths = {path for tree in updates.values() for path in trees.flatten(tree)}
        factors = _by_path(updates, layer_scales(paths, layers, decay).get)
        return jax.tree.map(lambda leaf, factor: leaf * factor, updates, factors), state

    if decay == 1.0:
        return optax.identity()
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def nonfinite(optimizer: Any) -> Any:
    """How many updates in a row were skipped because they were not finite."""
    return optimizer.notfinite_count
