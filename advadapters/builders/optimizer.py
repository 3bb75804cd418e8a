"""config.optimizer -> a schedule and a gradient transformation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import optax

from advadapters import schema
from advadapters.errors import UsageError
from advadapters.sections import Section
from advadapters.training import optim

Drops = Sequence[tuple[int, float | int]]  # (step, factor of the rate from there on)


def read_drops(c: Section, epochs: float, epoch: float) -> Drops:
    """Reads config.optimizer.drops as `optim.schedule` takes them.

    Args:
      c: config.optimizer.
      epochs: of the training.
      epoch: the steps of one epoch, which need not be a whole number.
    """
    where, drops = f"{c.name}.drops", c.take("drops", tuple, of=tuple)
    numbers = [x for drop in drops for x in drop]
    if not all(len(drop) == 2 for drop in drops) or not all(
        type(x) in (int, float) and math.isfinite(x) for x in numbers
    ):
        raise UsageError(
            f"{where} must hold pairs (epoch, factor) like ((35, 0.1), (38, 0.01)), got "
            f"{drops!r}"
        )
    starts = [start for start, _ in drops]
    if any(b <= a for a, b in zip([0, *starts], starts, strict=False)):
        raise UsageError(f"{where}: epochs must be above 0 and increasing, got {drops!r}")
    if starts and starts[-1] >= epochs:
        raise UsageError(
            f"{where}: epochs must be below config.epochs={epochs:g}, got {drops!r}: give "
            "earlier ones, more epochs, or () for a cosine"
        )
    if not all(factor > 0 for _, factor in drops):
        raise UsageError(f"{where}: factors must be above 0, got {drops!r}")
    return tuple((round(start * epoch), factor) for start, factor in drops)


def read_optimizer(
    c: Section, batch_size: int, epoch: float, steps: int, drops: Drops
) -> tuple[Callable, optax.GradientTransformation, dict[str, tuple[str, ...]]]:
    """Reads what `read_drops` left of config.optimizer.

    Args:
      c: the section.
      batch_size: images of a step, by which the rate is scaled.
      epoch: the steps of one epoch.
      steps: of the training.
      drops: of the rate, () for a cosine.

    Returns:
      The schedule (step -> rate); the gradient transformation; and {key of the config: the
      patterns of parameters there}, which nobody has compared with the parameters yet.
    """
    schedule = optim.schedule(
        # The linear scaling rule: rates are given for a batch of 256.
        peak=c.take("base_lr", float, above=0, high=1e6) * batch_size / 256,
        steps=steps,
        warmup_steps=min(round(c.take("warmup_epochs", float, low=0.0) * epoch), steps - 1),
        drops=drops,
    )
    patterns = {key: c.take(key, tuple, of=str) for key in ("decayed", "layers")}
    settings: dict[str, Any] = dict(
        learning_rate=schedule,
        weight_decay=c.take("weight_decay", float, low=0.0),
        decayed=patterns["decayed"],
        clip_norm=c.take("clip_norm", float, low=0.0),
        layers=patterns["layers"],
        layer_decay=c.take("layer_decay", float, above=0, high=1.0),
    )
    rule = optim.OPTIMIZERS[c.choice("name", optim.OPTIMIZERS)]
    known = schema.settings_of(rule).items()
    rule_settings = {key: schema.read(c, key, setting) for key, setting in known}
    tx = optim.make(rule(**rule_settings), **settings)
    return schedule, tx, {f"{c.name}.{key}": value for key, value in patterns.items()}
