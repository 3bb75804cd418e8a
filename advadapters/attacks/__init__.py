"""Attacks: functions (logits_fn, images, labels, key, *, norm, eps, ...) -> images.

    adversarial = pgd(logits_fn, images, labels, key, norm="linf", eps=8 / 255, steps=10)

The result lies in the ball and in [0, 1]. Only those of `pyramid` and of `n_fgsm` lie in a
larger ball, whose size their docstrings give. An attack is a pure function of its
arguments, costs one trace and carries no gradient. A new attack is such a function and a
row in ATTACKS; most are `ascend` with parts of their own:

    points = ascend(objective, images, move=move, project=project, steps=10).points

`autoattack` runs cascades of attacks on whole data sets.
"""

from advadapters.attacks.apgd import apgd
from advadapters.attacks.ascent import ascend, steepest, within
from advadapters.attacks.contract import checked
from advadapters.attacks.fab import fab
from advadapters.attacks.malt import malt
from advadapters.attacks.n_fgsm import n_fgsm
from advadapters.attacks.pgd import default_step_size as pgd_step_size
from advadapters.attacks.pgd import pgd
from advadapters.attacks.pma import pma
from advadapters.attacks.pyramid import default_step_size as pyramid_step_size
from advadapters.attacks.pyramid import pyramid
from advadapters.attacks.report import Report, merge
from advadapters.attacks.square import square
from advadapters.attacks.suites import autoattack, sweep

ATTACKS = {
    "pgd": pgd,
    "apgd": apgd,
    "malt": malt,
    "pma": pma,
    "fab": fab,
    "square": square,
    "pyramid": pyramid,
    "n_fgsm": n_fgsm,
}
# Of those that have a step_size: settings -> the step size, which 0 leaves to the attack.
STEP_SIZES = {"pgd": pgd_step_size, "pyramid": pyramid_step_size}

__all__ = [
    "ATTACKS", "STEP_SIZES", "Report", "ascend", "autoattack", "checked", "merge",
    "steepest", "sweep", "within",
]  # fmt: skip
