"""A ViT on CIFAR-10 (32x32, patch 4): co-training with class-token adapters.

Paper: as configs/digits.py. Linf 8/255 is the radius of RobustBench; L2 0.5 and L1 12 are
  the defaults of Croce and Hein's robust-finetuning code. All else is ours: network,
  optimizer, schedule, augmentation, average of parameters, PGD-5 in training and PGD-20
  to judge. Where methods differ from their papers: `defaults` and BUILD.md.
Command: advadapters train --config=configs/cifar10_vit.py --workdir=runs/cifar10
    --config.data.source=folder:DIR (DIR/train/<class>/*.jpg, DIR/test/<class>/*.jpg)
    or tfds:cifar10 (prepared with --file_format=array_record), the default.
Variants: cotrain (default), nominal, adversarial, four, advprop, pyramid, trades, mart,
  awp, eat, fgsm_rs, n_fgsm: see `defaults.METHODS`.
Cost: an accelerator's hours for 100 epochs (not run here). Expected: not measured yet.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}


def get_config(name=""):
    name = variant(name, defaults.METHODS)
    config = defaults.config()
    config.epochs = 100.0
    config.batch_size = 256
    config.ema_decay = 0.999
    config.validate_every = 2000
    config.checkpoint_every = 500
    config.model.size = "192x6x768x3"
    config.model.patch = 4
    config.model.drop_path = 0.1
    config.data.source = "tfds:cifar10"
    config.data.image_size = 32
    config.data.pad = 4
    config.data.validation = 0.02
    config.data.label_smoothing = 0.1
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.clip_norm = 1.0
    attacks = {norm: defaults.pgd(norm, eps, steps=5) for norm, eps in EPS.items()}
    config.update(defaults.method(name, attacks))
    config.evaluation.suites = {
        f"pgd20_{norm}": defaults.evaluation_pgd(norm, EPS[norm], steps=20)
        for norm in (EPS if name in ("four", "eat") else ["linf"])
    }
    return config
