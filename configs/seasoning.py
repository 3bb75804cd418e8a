"""Seasoning model soups: WRN-28-10 on CIFAR-10 and ResNet-50 on ImageNet.

Paper: Croce, Rebuffi, Shelhamer and Gowal, "Seasoning Model Soups for Robustness to
  Adversarial and Natural Distribution Shifts" (CVPR 2023). An Linf-robust network is
  fine-tuned to L2, to L1 and to clean images, for as little as one epoch. CIFAR-10 with a
  WRN-28-10, and ImageNet, are the paper's. Its ViT-B/16 is
  configs/imagenet_vit_b16.py:adversarial with the variants from_linf_... of that file.
From the code of Croce and Hein's robust fine-tuning: the radii (CIFAR-10 8/255, 0.5 and 12,
  ImageNet 4/255, 2 and 255), APGD-10 as the attack of fine-tuning, SGD of momentum 0.9, and
  for CIFAR-10 decay 5e-4, 3 epochs and the rate 0.05, which falls to a tenth after each
  third.
From Gowal and others' code for robust training: the average of decay 0.995, and that the
  margin judges under PGD-40.
Ours, as no code and little text of the paper could be read: ResNet-50 as the second network
  on ImageNet; how the Linf-robust networks are trained (epochs, rates, batches, cosine,
  PGD-10 on CIFAR-10 and PGD-3 on ImageNet); one epoch of fine-tuning on ImageNet, and its
  rate; crops and flips; that soups mix running statistics (`evaluate --statistics`
  estimates them anew).
Command: advadapters season --config=configs/seasoning.py
    --variants=wrn28_10,wrn28_10_l2,wrn28_10_l1,wrn28_10_nominal
    --workdir=runs/seasoning
  or, as a workflow that a cluster can share out:
  snakemake -s launch/reproduce/seasoning.smk --configfile launch/reproduce/full.yaml
Data: TFDS cifar10 and imagenet2012, prepared with --file_format=array_record.
Variants: wrn28_10 (default, the Linf-robust network), wrn28_10_l2, wrn28_10_l1,
  wrn28_10_nominal (fine-tuned from runs/seasoning/wrn28_10); resnet50, resnet50_l2,
  resnet50_l1, resnet50_nominal (the same on ImageNet).
Cost: made for accelerators; docs/reproduce.md has the dry run. Expected: not measured here.
"""

from advadapters import defaults
from advadapters.configs import variant

THREATS = ("l2", "l1", "nominal")
EPS = {
    "wrn28_10": {"linf": 8 / 255, "l2": 0.5, "l1": 12.0},
    "resnet50": {"linf": 4 / 255, "l2": 2.0, "l1": 255.0},
}
VARIANTS = tuple(
    name for network in EPS for name in (network, *(f"{network}_{t}" for t in THREATS))
)


def get_config(name=""):
    name = variant(name, VARIANTS)
    network = next(network for network in EPS if name.startswith(network))
    threat = name.removeprefix(network).lstrip("_")
    config = defaults.config()
    if network == "wrn28_10":
        cifar10(config)
    else:
        imagenet(config)
    radii = EPS[network]
    if threat == "nominal":
        config.update(defaults.method("nominal", {}))
    elif threat:
        attack = dict(
            name="apgd", norm=threat, eps=radii[threat], steps=10, loss="cross_entropy",
            eps_warmup=0.0,
        )  # fmt: skip
        config.update(defaults.method("adversarial", {threat: attack}))
    else:
        steps = 10 if network == "wrn28_10" else 3
        attack = defaults.pgd("linf", radii["linf"], steps=steps)
        config.update(defaults.method("adversarial", {"linf": attack}))
    config.statistics = "separate"
    if threat:
        fine_tune(config, network)
    config.evaluation.suites = {
        f"pgd40_{norm}": defaults.evaluation_pgd(norm, eps, steps=40, loss="margin")
        for norm, eps in radii.items()
    }
    return config


def cifar10(config):
    """WRN-28-10 at 32 pixels, from scratch."""
    config.epochs = 100.0
    config.batch_size = 512
    config.ema_decay = 0.995
    config.model = defaults.model("wide_resnet", "28-10")
    config.data.source = "tfds:cifar10"
    config.data.image_size = 32
    config.data.pad = 4
    config.data.validation = 0.02
    config.optimizer = defaults.sgd(base_lr=0.1, warmup_epochs=5.0)
    config.evaluation.batch_size = 500


def imagenet(config):
    """ResNet-50 at 224 pixels, from scratch."""
    config.epochs = 90.0
    config.batch_size = 1024
    config.ema_decay = 0.9999
    config.model = defaults.model(
        "resnet",
        "50",
        classes=1000,
        stem="imagenet",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        dtype="bfloat16",
    )
    config.data.source = "tfds:imagenet2012"
    config.data.crop = "random_resized"
    config.data.crop_ratio = 0.875
    config.data.interpolation = "bicubic"
    config.data.validation = 0.008
    config.data.threads = 64
    config.optimizer = defaults.sgd(base_lr=0.1, weight_decay=1e-4, warmup_epochs=5.0)
    config.evaluation.batch_size = 1024


def fine_tune(config, network):
    """The short training that makes the Linf-robust network robust to something else."""
    config.start.workdir = f"runs/seasoning/{network}"
    config.optimizer.warmup_epochs = 0.0
    if network == "wrn28_10":
        config.epochs = 3.0
        config.optimizer.base_lr = 0.05 * 256 / config.batch_size  # 0.05 itself
        config.optimizer.drops = ((1, 0.1), (2, 0.01))
    else:
        config.epochs = 1.0
        config.ema_decay = 0.995
        config.optimizer.base_lr = 0.01 * 256 / config.batch_size  # 0.01 itself
