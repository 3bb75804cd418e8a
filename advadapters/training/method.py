"""What a training method is: a loss, and the networks that come out of it.

`views.Views`, `oat.OAT` and `twins.TWINS` have

    domains() -> names of the domains, in the order of the adapters' rows
    loss(networks, axis) -> loss(variables, batch, key) -> (float32 [], (stats, metrics)),
        networks being {width: Network} and axis the name of the mapped axis over devices
    running_errors() -> {view: [attacks]}, the first running errors of attacks to draw
    checks() -> [Check], what is looked at on held-out images
    describe() -> lines for the log
"""

from collections.abc import Callable
from typing import NamedTuple

from advadapters.networks import Case


class Check(NamedTuple):
    """Accuracy on held-out images, under the worst of the attacks (none: clean).

    weight: in the score by which the best checkpoint is found. alarm: an attack of more
    steps, or None: see `commands.runs.validation`.
    """

    name: str
    weight: float
    case: Case
    attacks: tuple[Callable, ...] = ()
    alarm: Callable | None = None
