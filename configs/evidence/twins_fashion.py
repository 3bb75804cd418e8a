"""Claims about TWINS, on two halves of Fashion-MNIST and two CPU cores.

Paper: Liu, Xu, Ji, Zhang and Chan, "TWINS: A Fine-Tuning Framework for Improved
  Transferability of Adversarial Robustness and Generalization" (CVPR 2023). Wings and
  losses are the paper's code's; network, data, radius, steps and rates are ours, and so are
  the margins. The rate of fine-tuning was chosen on held-out images with `at`, see RATE.
Command: advadapters study --config=configs/evidence/twins_fashion.py
    --workdir=runs/evidence/twins_fashion --minutes=20 --ledger=docs/ledger.jsonl
Data: Fashion-MNIST (Debian's package dataset-fashion-mnist) at 14x14 pixels. A network is
  made robust on 15,000 images of classes 0 to 4 and fine-tuned on 2,000 of classes 5 to 9,
  for 40 epochs; the best epoch is chosen on 3,000 held-out images; 5,000 test images.
Variants: twins_at (default), at (adversarial fine-tuning: every statistic moves), pretrain
  (the robust network that both start from).
Cost: see docs/evidence.md. Expected: docs/evidence.md.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = 0.1
METHODS = {"twins_at": "twins_at", "at": "adversarial", "pretrain": "adversarial"}
VARIANTS = tuple(METHODS)
# Of 0.02, 0.1 and 0.3, which ended at 72.2, 79.3 and 81.2% under PGD-5 (seed 0).
RATE = 0.3


def get_config(name=""):
    name = variant(name, VARIANTS)
    first = name == "pretrain"
    model = defaults.model("wide_resnet", "10-1", classes=5)
    config = defaults.fashion(model, train_images=15_000 if first else 2_000)
    config.data.image_size = 14
    config.data.classes = (0, 1, 2, 3, 4) if first else (5, 6, 7, 8, 9)
    config.data.pad = 1
    config.epochs = 8.0 if first else 40.0
    config.ema_decay = 0.0
    config.checkpoint_every = 200
    drops = () if first else ((20, 0.1), (33, 0.01))  # as the paper's 30 and 50 of 60
    config.optimizer = defaults.sgd(
        base_lr=0.1 if first else RATE,
        weight_decay=1e-4,
        warmup_epochs=1.0 if first else 0.0,
        clip_norm=1.0,
        drops=drops,
    )
    attacks = {"linf": defaults.pgd("linf", EPS, steps=3)}
    config.update(defaults.method(METHODS[name], attacks))
    config.statistics = "separate"
    config.evaluation.soup_weights = (0.0,)  # the adaptive wing
    config.evaluation.suites = {
        "pgd20_linf": defaults.evaluation_pgd("linf", EPS, steps=20)
    }
    if not first:
        config.validate_every = 64  # four epochs
        config.start.workdir = "pretrain"  # of the same seed
        config.start.fresh = ("head/.*",)
    return config


CLEAN, ROBUST = "clean", "pgd20_linf"
BEST = "best:pgd20_linf"

EXPERIMENT = dict(
    paper='Liu et al., "TWINS" (CVPR 2023)',
    data="Fashion-MNIST at 14x14 pixels: robust on classes 0 to 4, fine-tuned on 2,000 "
    "images of classes 5 to 9; 5,000 test images, Linf 0.1",
    at_scale="TWINS-AT on CIFAR-10 takes at least 0.79 chip-hours of v5e "
    "([costs](reproduce.md#what-it-costs)).",
    variants=("pretrain", "at", "twins_at"),
    seeds=3,
    evaluations={"best": {"at": dict(step="best"), "twins_at": dict(step="best")}},
    claims=(
        dict(
            id="robust",
            sentence="TWINS-AT ends more robust than adversarial fine-tuning",
            place="abstract: better transferability of robustness",
            test="more",
            rows=((("twins_at", "", ROBUST), ("at", "", ROBUST)),),
        ),
        dict(
            id="clean",
            sentence="TWINS-AT ends better on clean images than adversarial fine-tuning",
            place="abstract: and generalization",
            test="more",
            rows=((("twins_at", "", CLEAN), ("at", "", CLEAN)),),
        ),
        dict(
            id="best",
            sentence="At their best epochs too TWINS-AT is the more robust one",
            place="abstract: better transferability of robustness",
            test="more",
            rows=((("twins_at", "", BEST), ("at", "", BEST)),),
        ),
        dict(
            id="at-overfits",
            sentence="Adversarial fine-tuning overfits: it ends a point or more below its "
            "best epoch",
            place="abstract: robust overfitting",
            test="more",
            margin=0.01,
            rows=((("at", "", BEST), ("at", "", ROBUST)),),
        ),
        dict(
            id="twins-does-not",
            sentence="TWINS-AT does not: it ends less than a point below its best epoch",
            place="abstract: less robust overfitting",
            test="more",
            margin=-0.01,
            rows=((("twins_at", "", ROBUST), ("twins_at", "", BEST)),),
        ),
    ),
)
