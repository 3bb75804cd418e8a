"""Once-for-all adversarial training as published: CIFAR-10, SVHN and STL-10.

Paper: Wang, Chen, Gui, Hu, Liu and Wang, "Once-for-All Adversarial Training: In-Situ
  Tradeoff between Robustness and Accuracy for Free" (NeurIPS 2020).
From its code: networks, lambdas, random encoding of size 128, dual batch norm, PGD-7 at
  8/255 with step 10/7/255, images without normalisation, SGD of rate 0.1, momentum 0.9,
  decay 5e-4 on everything, 200 epochs, cosine, batch 128 (the baseline: 256), crops padded
  by 4 and flips (neither for SVHN), 5,000 training images of CIFAR-10 and SVHN held out,
  no average of parameters; evaluation by the same PGD-7. The paper's epochs and rates per
  data set are not known here: these are the code's.
Ours: which images are held out (there the last ones), and that nothing is chosen by them
  (there: the best checkpoint of each lambda); which images of a batch have lambda 0; the
  cosine goes by steps, not epochs; the first weights; the baseline's two passes move the
  running statistics by their mean, not one after the other; PGD-20, keeping the best
  iterate, as a second evaluation; OATS' step over all widths.
Command: advadapters train --config=configs/oat.py --workdir=runs/oat
    --config.data.source=folder:/data/cifar10    (or a TFDS name, the default)
Variants: cifar10 (default, ResNet-34), cifar10_oats (widths 0.5, 0.75, 1), svhn
  (WRN-16-8), stl10 (WRN-40-2), cifar10_fixed (PGD-AT with one lambda, 0.5: the baseline),
  cifar10_averaged (ours: the parameters' average, of decay 0.995, is evaluated).
Cost: made for an accelerator. Expected: not measured here.
"""

from advadapters import defaults
from advadapters.configs import variant

# source, model, size, side, padding, share of the training images held out
DATA = {
    "cifar10": ("tfds:cifar10", "resnet", "34", 32, 4, 5_000 / 50_000),
    "svhn": ("tfds:svhn_cropped", "wide_resnet", "16-8", 32, 0, 5_000 / 73_257),
    "stl10": ("tfds:stl10", "wide_resnet", "40-2", 96, 4, 0.0),
}
VARIANTS = (
    "cifar10", "cifar10_oats", "svhn", "stl10", "cifar10_fixed", "cifar10_averaged"
)  # fmt: skip
EPS = 8 / 255


def get_config(name=""):
    name = variant(name, VARIANTS)
    data, _, kind = name.partition("_")
    source, model, size, side, pad, held_out = DATA[data]
    config = defaults.config()
    config.epochs = 200.0
    config.batch_size = 256 if kind == "fixed" else 128
    config.ema_decay = 0.995 if kind == "averaged" else 0.0
    config.model = defaults.model(model, size, mean=(0.0,) * 3, std=(1.0,) * 3)
    if model == "wide_resnet":
        config.model.dropout = 0.3
    config.data.source = source
    config.data.image_size = side
    config.data.pad = pad
    config.data.validation = held_out
    config.data.flip = data != "svhn"
    config.optimizer = defaults.sgd(
        base_lr=0.1 * 256 / config.batch_size, decayed=(".*",), warmup_epochs=0.0
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
        "pgd7_linf": attack,
        "pgd20_linf": defaults.evaluation_pgd("linf", EPS, steps=20),
    }
    return config
