"""Attacks: functions (logits_fn, images, labels, key, *, norm, eps, ...) -> images.

The result lies in the ball (that of pyramid and n_fgsm in a larger one, which they
tell) and in [0, 1], is a pure function of its arguments, costs one trace, and carries
no gradient. To add one: a function in this folder and a row in ATTACKS. `autoattack`
runs cascades of them on whole data sets.
"""

from advadapters.attacks.apgd import apgd
from advadapters.attacks.contract import checked
from advadapters.attacks.fab import fab
from advadapters.attacks.malt import malt
from advadapters.attacks.n_fgsm import n_fgsm
from advadapters.attacks.pgd import own_step_size as pgd_step_size
from advadapters.attacks.pgd import pgd
from advadapters.attacks.pma import pma
from advadapters.attacks.pyramid import own_step_size as pyramid_step_size
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
    "ATTACKS", "STEP_SIZES", "Report", "autoattack", "checked", "merge", "sweep"
]  # fmt: skip
