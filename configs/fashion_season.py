"""Seasoning model soups on Fashion-MNIST: four networks from one, or four class tokens.

Paper: Croce, Rebuffi, Shelhamer and Gowal, "Seasoning Model Soups for Robustness to
  Adversarial and Natural Distribution Shifts" (CVPR 2023): an Linf-robust network
  fine-tuned to other threats and to clean images; soups of these, chosen for each shift.
  Network, schedules, radii and PGD-3 for every norm (robust fine-tuning's code has APGD)
  are ours. `tokens` is ours: the four as class tokens of one
  network, trained together.
Command: advadapters season --config=configs/fashion_season.py
    --variants=linf,l2,l1,nominal --grid=0.2 --examples=500
    --workdir=runs/season
  advadapters train --config=configs/fashion_season.py:tokens --workdir=runs/tokens
  then, for either: advadapters evaluate --grid=0.2 --suite=corruptions --workdir=...
  and: advadapters select --workdir=...
Data: the four IDX files of Debian's package dataset-fashion-mnist (default), or
  --config.data.source=tfds:fashion_mnist (prepared with --file_format=array_record).
Variants: linf (default, the first network), l2, l1, nominal (a quarter of its epochs, from
  runs/season/linf), tokens (clean, linf, l2 and l1 tokens).
Cost: about 20 minutes on a CPU core each, half of it attacks on test images. Expected:
  the tables in docs/results.md.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = {"linf": 0.1, "l2": 1.5, "l1": 5.0}
VARIANTS = (*EPS, "nominal", "tokens")


def get_config(name=""):
    name = variant(name, VARIANTS)
    config = defaults.config()
    config.epochs = 1.6
    config.ema_decay = 0.99
    config.model.size = "32x3x128x4"
    config.model.patch = 7
    config.model.mean = (0.2860,)
    config.model.std = (0.3530,)
    config.data.source = "idx:/usr/share/datasets/fashion-mnist"
    config.data.image_size = 28
    config.data.channels = 1
    config.optimizer.base_lr = 4e-3
    config.optimizer.warmup_epochs = 0.2
    config.optimizer.clip_norm = 1.0
    config.evaluation.batch_size = 500
    attacks = {norm: defaults.pgd(norm, eps, steps=3) for norm, eps in EPS.items()}
    if name == "tokens":
        config.update(defaults.method("four", attacks))
        config.evaluation.soup_weights = (1.0, 0.0)  # the modes; `evaluate --grid` has all
    elif name == "nominal":
        config.update(defaults.method("nominal", {}))
    else:
        config.update(defaults.method("adversarial", {name: attacks[name]}))
    if name in ("l2", "l1", "nominal"):
        config.epochs = 0.4
        config.optimizer.base_lr = 2e-3
        config.optimizer.warmup_epochs = 0.05
        config.start.workdir = "runs/season/linf"
    config.evaluation.suites = {
        f"pgd10_{norm}": defaults.evaluation_pgd(norm, eps, steps=10)
        for norm, eps in EPS.items()
    }
    return config
