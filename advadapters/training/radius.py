"""Radii that grow over the first epochs of training, linearly from 0.

Large radii "impede the escape from suboptimal random initialization" (Liu et al., NeurIPS
2020, arXiv:2006.08403), and a fixed one spoils robust fine-tuning of networks that are not
robust (Ngnawe et al. 2025, arXiv:2509.23325). Growing from 0 in a line is what Qin et al.
(2019, arXiv:1907.02610) do over 15 epochs, say Pang et al. (ICLR 2021, arXiv:2010.00467),
whose code has it too; on CIFAR-10 at 8/255 they call its effect insignificant. Steps grow
with the radius, as in Liu et al.'s code; in Pang et al.'s they stay. Schedules along a
cosine or in cycles (Liu et al.) are not here.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from advadapters.attacks import STEP_SIZES
from advadapters.shapes import Images
from advadapters.training import tricks

Attack = Callable[..., Images]  # of (logits_fn, images, labels, key), all settings given


class Growing(NamedTuple):
    """An attack of training whose radius grows.

    Attributes:
      attack: the attack at its full radius, a `functools.partial` with its settings.
      epochs: over which it grows.
      epoch: the number of steps in one.
    """

    attack: functools.partial
    epochs: float
    epoch: float


TrainingAttack = Attack | Growing


def full(attack: TrainingAttack) -> Any:
    """The attack at its full radius, as held-out images see it, whatever the step."""
    return attack.attack if isinstance(attack, Growing) else attack


def at(attack: TrainingAttack, batch: Mapping[str, Any]) -> Attack:
    """The attack at the step that a batch is of: "step" int [B], the same in all rows.

    At step s of a warm-up of W steps, radius and step size are min(s / W, 1) times the full
    ones (traced float32 []), so that their ratio stays. A step size of 0 asks for that part
    of what it asks for at the full radius; what is no length, like the noise of n_fgsm in
    units of the radius, stays. What does not grow is returned as it is.
    """
    if not isinstance(attack, Growing):
        return attack
    attack, epochs, epoch = attack
    lengths = {"eps": attack.keywords["eps"]}
    if step_size := STEP_SIZES.get(attack.func.__name__):
        lengths["step_size"] = step_size(**attack.keywords)
    share = tricks.keep(batch["step"][0], epochs * epoch)
    scaled = {name: share * length for name, length in lengths.items()}
    return functools.partial(attack, **scaled)


def describe(attacks: Sequence[TrainingAttack]) -> str:
    """ ", radius grows from 0 to 0.1 over the first 5 epochs", for attacks that grow."""
    phrases = []
    for growing in attacks:
        if isinstance(growing, Growing):
            settings = growing.attack.keywords
            norm = "" if len(attacks) == 1 else settings["norm"] + " "
            phrases.append(
                f", {norm}radius grows from 0 to {settings['eps']:g} over the first "
                f"{growing.epochs:g} epochs"
            )
    return "".join(phrases)
