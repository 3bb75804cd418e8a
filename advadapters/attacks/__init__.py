"""Attacks: functions (logits_fn, images, labels, key, **settings) -> images.

The result lies in the ball and in [0, 1], is a pure function of its arguments,
costs one trace, and carries no gradient. To add one: a function in this folder
and a row in ATTACKS.
"""

from advadapters.attacks.pgd import pgd

ATTACKS = {"pgd": pgd}
