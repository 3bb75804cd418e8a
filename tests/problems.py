"""Runs of attacks, called like attacks."""

from advadapters.attacks.contract import problem_of


def on_problem(run):
    """attack(logits_fn, images, labels, key, *, norm, eps, ...) that runs on a Problem."""

    def attack(logits_fn, images, labels, key, *, norm, eps, active=None, **settings):
        threat = dict(norm=norm, eps=eps, active=active)
        return run(problem_of(logits_fn, images, labels, key, **threat), **settings)

    return attack
