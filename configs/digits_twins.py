"""TWINS: a network that is robust on Fashion-MNIST, fine-tuned robustly on digits.

Paper: Liu, Xu, Ji, Zhang and Chan, "TWINS: A Fine-Tuning Framework for Improved
  Transferability of Adversarial Robustness and Generalization" (CVPR 2023). Wings,
  losses and what is attacked are the paper's code's, the TRADES baseline attacking
  cross-entropy too; network, data, schedule, rates, radius and PGD-5, and that the
  parameters' average is evaluated, are ours. Both data sets have 8x8 pixels here.
Command: advadapters train --config=configs/digits_twins.py:pretrain
    --workdir=runs/robust_fashion
  advadapters train --config=configs/digits_twins.py --workdir=runs/twins
Variants: twins_at (default), twins_trades, at, trades (the baselines: every statistic
  moves), trades_kl (ours: its attack climbs KL, as in TRADES' paper), pretrain
  (adversarial training on Fashion-MNIST, an IDX folder).
Cost: pretrain 10 minutes on 2 CPU cores, the others 2. Expected: the table in
  docs/results.md.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = 0.12
METHODS = {
    "twins_at": "twins_at",
    "twins_trades": "twins_trades",
    "at": "adversarial",
    "trades": "trades",
    "trades_kl": "trades",
    "pretrain": "adversarial",
}
VARIANTS = tuple(METHODS)


def get_config(name=""):
    name = variant(name, VARIANTS)
    config = defaults.digits(defaults.model("wide_resnet", "10-1"))
    config.optimizer = defaults.sgd(base_lr=0.1, weight_decay=1e-4, clip_norm=1.0)
    attacks = {"linf": defaults.pgd("linf", EPS, steps=5)}
    config.update(defaults.method(METHODS[name], attacks))
    config.statistics = "separate"
    if name == "trades":
        config.views.linf.attack_against = "labels"
    config.evaluation.soup_weights = (0.0,)  # the adaptive wing
    config.evaluation.suites = {
        "pgd20_linf": defaults.evaluation_pgd("linf", EPS, steps=20)
    }
    if name == "pretrain":
        config.epochs = 3.0
        config.data.source = "idx:/usr/share/datasets/fashion-mnist"
        config.evaluation.batch_size = 500
    else:
        config.start.workdir = "runs/robust_fashion"
        config.start.fresh = ("head/.*",)
    return config
