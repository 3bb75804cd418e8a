"""A small ViT on Fashion-MNIST (28x28): co-training with class-token adapters.

Paper: as configs/digits.py; all settings are ours, the radii too.
Command: advadapters train --config=configs/fashion_mnist.py --workdir=runs/fashion
Data: the four IDX files of Debian's package dataset-fashion-mnist (default), or
  --config.data.source=tfds:fashion_mnist (prepared with --file_format=array_record).
Variants: cotrain (default), nominal, adversarial, four, advprop, pyramid, trades, mart,
  awp, eat, fgsm_rs, n_fgsm: see `defaults.METHODS`.
Cost: hours on 2 CPU cores (not run here). Expected: not measured yet.
"""

from advadapters import defaults
from advadapters.config import variant

# The radii that the field uses on MNIST-like images are larger; at Linf 0.1 small
# networks already lose every image without adversarial training.
EPS = {"linf": 0.1, "l2": 1.5, "l1": 5.0}


def get_config(name=""):
    name = variant(name, defaults.METHODS)
    config = defaults.config()
    config.epochs = 20.0
    config.ema_decay = 0.999
    config.model.size = "64x4x256x4"
    config.model.patch = 4
    config.model.mean = (0.2860,)
    config.model.std = (0.3530,)
    config.data.source = "idx:/usr/share/datasets/fashion-mnist"
    config.data.image_size = 28
    config.data.channels = 1
    config.data.validation = 0.05
    config.validate_every = 2000
    config.optimizer.base_lr = 2e-3
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.clip_norm = 1.0
    attacks = {norm: defaults.pgd(norm, eps, steps=5) for norm, eps in EPS.items()}
    config.update(defaults.method(name, attacks))
    config.evaluation.suites = {
        f"pgd40_{norm}": defaults.evaluation_pgd(norm, EPS[norm], steps=40)
        for norm in (EPS if name in ("four", "eat") else ["linf"])
    }
    if name in ("fgsm_rs", "n_fgsm"):  # watched on images held out
        config.validate_every = 500
        config.data.validation = 0.02
    return config
