"""TWINS as published: a robust ImageNet ResNet-50, fine-tuned on CIFAR-10 and others.

Paper: Liu, Xu, Ji, Zhang and Chan, "TWINS: A Fine-Tuning Framework for Improved
  Transferability of Adversarial Robustness and Generalization" (CVPR 2023).
From its code: the start (a ResNet-50 that is robust at Linf 4/255 on ImageNet), images
  resized to 224 inside the network so that 32x32 pixels are attacked, PGD-10 of step
  2/255 at 8/255 with a random start, in evaluation without, SGD of momentum 0.9, batch
  128, 60 epochs, rate x0.1 at 30 and 50, no average of parameters; crops padded by 4 and
  flips; CIFAR-10: rate 0.003, decay 1e-5 on everything, weight 1 of the frozen wing;
  Caltech-256: decay 1e-3, weight 0.4, random crops of 8 to 100% of the area; the same rates
  for the baselines, and TRADES' attack climbs cross-entropy.
Ours: CIFAR-100 as CIFAR-10; which images of a batch see the frozen wing (there one half);
  the first weights of the head; the baselines' clean and attacked pass move the running
  statistics by their mean, not one after the other; Caltech-256's crops are of the whole
  image (there it is resized to 256 before); the PGD-10 that judges
  keeps the last iterate as there, PGD-20 with a random start keeps the best.
Command: advadapters train --config=configs/twins.py --workdir=runs/twins
    --config.start.weights=resnet50_linf_eps4.npz    (docs/finetuning.md says how)
Variants: cifar10 (default, TWINS-AT), cifar10_trades (TWINS-TRADES, beta 6), cifar10_at
  and cifar10_trades_alone (the baselines), cifar100, caltech256 (257 classes, 224x224);
  ours: cifar10_averaged (the parameters' average, of decay 0.995, is evaluated),
  cifar10_trades_kl (the TRADES baseline, its attack climbing KL as in TRADES' paper).
Cost: made for an accelerator. Expected: not measured here.
"""

from advadapters import defaults
from advadapters.configs import variant

# data, classes, method, side, weight decay, weight of the frozen wing
CASES = {
    "cifar10": ("tfds:cifar10", 10, "twins_at", 32, 1e-5, 1.0),
    "cifar10_trades": ("tfds:cifar10", 10, "twins_trades", 32, 1e-5, 1.0),
    "cifar10_at": ("tfds:cifar10", 10, "adversarial", 32, 1e-5, 1.0),
    "cifar10_trades_alone": ("tfds:cifar10", 10, "trades", 32, 1e-5, 1.0),
    "cifar10_averaged": ("tfds:cifar10", 10, "twins_at", 32, 1e-5, 1.0),
    "cifar10_trades_kl": ("tfds:cifar10", 10, "trades", 32, 1e-5, 1.0),
    "cifar100": ("tfds:cifar100", 100, "twins_at", 32, 1e-5, 1.0),
    "caltech256": ("folder:data/caltech256", 257, "twins_at", 224, 1e-3, 0.4),
}
VARIANTS = tuple(CASES)
EPS = 8 / 255


def get_config(name=""):
    name = variant(name, VARIANTS)
    source, classes, method, side, decay, weight = CASES[name]
    config = defaults.config()
    config.epochs = 60.0
    config.ema_decay = 0.995 if name == "cifar10_averaged" else 0.0
    config.model = defaults.model(
        "resnet",
        "50",
        classes=classes,
        stem="imagenet",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        resize=224 if side < 224 else 0,
    )
    config.data.source = source
    config.data.image_size = side
    config.data.pad = 4 if side == 32 else 0
    config.data.crop = "random_resized" if side == 224 else "central"
    config.data.crop_ratio = 0.875 if side == 224 else 1.0
    config.data.interpolation = "bilinear"
    config.optimizer = defaults.sgd(
        base_lr=0.003 * 256 / 128,
        weight_decay=decay,
        decayed=(".*",),
        warmup_epochs=0.0,
        drops=((30, 0.1), (50, 0.01)),
    )
    attack = defaults.pgd("linf", EPS, steps=10, step_size=2 / 255)
    config.update(defaults.method(method, {"linf": attack}))
    config.statistics = "separate"
    if name == "cifar10_trades_alone":
        config.views.linf.attack_against = "labels"
    if method.startswith("twins"):
        config.twins.weight = weight
        config.evaluation.soup_weights = (0.0,)  # the adaptive wing
    config.start.weights = "resnet50_linf_eps4.npz"
    config.start.fresh = ("head/.*",)
    config.evaluation.suites = {
        "pgd10_linf": attack | dict(random_start=False),
        "pgd20_linf": defaults.evaluation_pgd("linf", EPS, steps=20),
    }
    return config
