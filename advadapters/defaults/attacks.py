"""Settings of attacks: in training, and in the suites of evaluation."""

from typing import Any

from advadapters.defaults.sections import Values


def pgd(norm: str, eps: float, steps: int, **more: Any) -> Values:
    """The settings of a PGD attack of training, an entry of config.attacks.

    Args:
      norm: the name of the ball, "linf", "l2" or "l1".
      eps: the radius, for pixels in [0, 1].
      steps: how many steps the attack takes.
      **more: other values of the keys below; `attacks.pgd.pgd` explains them.
    """
    settings = dict(
        name="pgd",  # of the attack
        norm=norm,  # linf, l2 or l1
        eps=eps,  # radius, for pixels in [0, 1]
        steps=steps,
        step_size=0.0,
        random_start=True,
        restarts=1,
        loss="cross_entropy",
        target="",
        keep="last",
        optimizer="steepest",
        eps_warmup=0.0,  # epochs over which radius and steps grow from 0; 0: they do not
    )
    return settings | more


def evaluation_pgd(
    norm: str, eps: float, steps: int, loss: str = "cross_entropy"
) -> Values:
    """The settings of a PGD suite of evaluation, which keeps the best iterate.

    Cross-entropy finds more on the digits than the margin (a nominal network keeps 18%
    instead of 23%); on networks with large logits it saturates, and the margin, or
    AutoAttack, is the better judge.
    """
    settings = pgd(norm, eps, steps, loss=loss, keep="best")
    return {name: value for name, value in settings.items() if name != "eps_warmup"}
