"""A small ViT on 3,000 images of Fashion-MNIST (28x28): accurate, robust, and between.

Paper: Rebuffi, Croce and Gowal, "Revisiting adapters with adversarial training"
  (ICLR 2023): clean and Linf-attacked images share every parameter but the class
  token, and mixtures of the two tokens trace the front. Network, optimizer, schedule,
  radii, PGD-2 and the average of parameters are ours, chosen to be quick on images
  50,000 to 52,000 of the training set, which are in no run.
Command: advadapters train --config=configs/fashion_mnist.py --workdir=runs/fashion
Data: inside the package. All 60,000 images, from the IDX files of Debian's package
  dataset-fashion-mnist: --config.data.source=idx:/usr/share/datasets/fashion-mnist, or
  from TFDS, --config.data.source=tfds:fashion_mnist.
Variants: cotrain (default), nominal, adversarial, four (clean, Linf, L2, L1 tokens),
  advprop, pyramid, trades, mart, awp, eat, fgsm_rs, n_fgsm: see `defaults.METHODS`.
Cost: two minutes on 2 CPU cores. Expected: the table in README.md (measured there).
"""

from advadapters import defaults
from advadapters.configs import variant

# The radii that the field uses on MNIST-like images are larger; at Linf 0.1 small
# networks already lose every image without adversarial training.
EPS = {"linf": 0.1, "l2": 1.5, "l1": 5.0}


def get_config(name=""):
    name = variant(name, defaults.METHODS)
    config = defaults.config()
    config.epochs = 25.0
    config.ema_decay = 0.99
    config.model.size = "64x3x256x4"
    config.model.patch = 7
    config.model.mean = (0.2860,)
    config.model.std = (0.3530,)
    config.data.source = "fashion"
    config.data.image_size = 28
    config.data.channels = 1
    config.optimizer.base_lr = 1.2e-2
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.clip_norm = 1.0
    attacks = {norm: defaults.pgd(norm, eps, steps=2) for norm, eps in EPS.items()}
    config.update(defaults.method(name, attacks, alpha=0.6))
    config.evaluation.soup_weights = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
    config.evaluation.suites = {
        f"pgd10_{norm}": defaults.evaluation_pgd(norm, EPS[norm], steps=10)
        for norm in (EPS if name in ("four", "eat") else ["linf"])
    }
    if name in ("fgsm_rs", "n_fgsm"):  # watched on images held out
        config.validate_every = 100
        config.data.validation = 0.1
    return config
