"""Once-for-all adversarial training as published: CIFAR-10, SVHN and STL-10.

Paper: Wang, Chen, Gui, Hu, Liu and Wang, "Once-for-All Adversarial Training: In-Situ
  Tradeoff between Robustness and Accuracy for Free" (NeurIPS 2020).
From its code: networks, lambdas, random encoding of size 128, dual batch norm, PGD-7 at
  8/255 with step 10/7/255, images without normalisation, SGD of rate 0.1, momentum 0.9,
  decay 5e-4 on everything, 200 epochs, cosine, batch 128, crops padded by 4 (not SVHN).
  The paper's epochs and rates per data set are not known here: these are the code's.
Ours: training on all images (the code holds 5,000 out: config.data.validation); averaged
  parameters are evaluated; the cosine goes by steps; OATS' step over all widths.
Command: advadapters train --config=configs/oat.py --workdir=runs/oat
    --config.data.source=folder:/data/cifar10    (or a TFDS name, the default)
Variants: cifar10 (default, ResNet-34), cifar10_oats (widths 0.5, 0.75, 1), svhn
  (WRN-16-8), stl10 (WRN-40-2), cifar10_fixed (PGD-AT with one lambda, 0.5: the baseline).
Cost: made for an accelerator. Expected: not measured here.
"""

from advadapters import defaults
from advadapters.config import variant

DATA = {
    "cifar10": ("tfds:cifar10", "resnet", "34", 32, 4),
    "svhn": ("tfds:svhn_cropped", "wide_resnet", "16-8", 32, 0),
    "stl10": ("tfds:stl10", "wide_resnet", "40-2", 96, 4),
}
VARIANTS = ("cifar10", "cifar10_oats", "svhn", "stl10", "cifar10_fixed")
EPS = 8 / 255


def get_config(name=""):
    name = variant(name, VARIANTS)
    data, _, kind = name.partition("_")
    source, model, size, side, pad = DATA[data]
    config = defaults.config()
    config.epochs = 200.0
    config.ema_decay = 0.995
    config.model = defaults.model(model, size, mean=(0.0,) * 3, std=(1.0,) * 3)
    if model == "wide_resnet":
        config.model.dropout = 0.3
    config.data.source = source
    config.data.image_size = side
    config.data.pad = pad
    config.data.flip = data != "svhn"
    config.optimizer = defaults.sgd(
        base_lr=0.1 * 256 / 128, decayed=(".*",), warmup_epochs=0.0
    )
    attack = defaults.pgd("linf", EPS, steps=7, step_size=10 / 255 / 7)
    if kind == "fixed":
        config.update(defaults.method("fixed", {"linf": attack}, alpha=0.5))
        config.statistics = "separate"
    else:
        method = "oats" if kind == "oats" else "oat"
        config.update(defaults.method(method, {"linf": attack}))
        config.model.film = defaults.film(defaults.LAMBDAS)
    config.evaluation.suites = {
        "pgd7_linf": attack | dict(random_start=True),
        "pgd20_linf": defaults.evaluation_pgd("linf", EPS, steps=20),
    }
    return config
