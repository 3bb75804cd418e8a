"""Seasoning model soups on digits: an Linf-robust network, fine-tuned to other threats.

Paper: Croce, Rebuffi, Shelhamer and Gowal, "Seasoning Model Soups for Robustness to
  Adversarial and Natural Distribution Shifts" (CVPR 2023): soups of networks that were
  fine-tuned from one robust network to other threat models and to clean images. Network,
  schedules and radii are ours (layer norm, so that no statistics are mixed), and so is
  PGD-3 for every norm (robust fine-tuning's code has APGD).
Command: advadapters season --config=configs/digits_season.py
    --variants=linf,l2,l1,nominal --workdir=runs/season
Variants: linf (default, the first network), l2, l1, nominal (from runs/season/linf).
Cost: over half an hour on 2 busy CPU cores, most of it attacks on 35 soups. Expected: not
  measured yet.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = {"linf": 0.12, "l2": 0.7, "l1": 2.5}
VARIANTS = (*EPS, "nominal")


def get_config(name=""):
    name = variant(name, VARIANTS)
    config = defaults.digits(defaults.model("wide_resnet", "10-1", norm="layer"))
    attacks = {norm: defaults.pgd(norm, eps, steps=3) for norm, eps in EPS.items()}
    if name == "nominal":
        config.update(defaults.method("nominal", {}))
    else:
        config.update(defaults.method("adversarial", {name: attacks[name]}))
    if name != "linf":
        config.epochs = 6.0
        config.optimizer.base_lr = 2e-3
        config.optimizer.warmup_epochs = 1.0
        config.start.workdir = "runs/season/linf"
    config.evaluation.suites = {
        f"pgd20_{norm}": defaults.evaluation_pgd(norm, eps, steps=20)
        for norm, eps in EPS.items()
    }
    return config
