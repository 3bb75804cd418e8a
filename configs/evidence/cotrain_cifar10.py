"""Claims about co-training with class tokens, on CIFAR-10 (JPEG), for an accelerator.

Paper: Rebuffi, Croce and Gowal, "Revisiting adapters with adversarial training" (ICLR
  2023). The claims are the paper's, about ImageNet and ViT-B/16, and so are Linf 4/255,
  PGD-2, mixup, CutMix, RandAugment and label smoothing; network, schedule, rates and the
  margins are ours.
Command: advadapters study --config=configs/evidence/cotrain_cifar10.py
    --workdir=runs/evidence/cotrain_cifar10 --minutes=20 --ledger=docs/ledger.jsonl
Data: CIFAR-10, each image encoded again as a JPEG, as one file of arrays: docs/data.md
  says how to make it. 45,000 training images, all 10,000 test images; 5,000 are held out.
Variants: cotrain (default), nominal, adversarial, norms (each domain's own norms instead of
  class tokens), nothing (the same losses, everything shared).
Cost: 10 minutes of an H100 for a seed, guessed from its FLOPs. Expected: docs/evidence.md.
"""

from advadapters import defaults, papers
from advadapters.configs import variant

EPS = 4 / 255
VARIANTS = ("cotrain", "nominal", "adversarial", "norms", "nothing")
# Of the clean token in the networks that are evaluated.
WEIGHTS = {"cotrain": (1.0, 0.75, 0.5, 0.25, 0.0), "norms": (1.0, 0.0)}


def get_config(name=""):
    name = variant(name, VARIANTS)
    config = defaults.config()
    config.epochs = 50.0
    config.batch_size = 256
    config.ema_decay = 0.999
    config.checkpoint_every = 500
    config.model.size = "192x6x768x3"
    config.model.patch = 4
    config.model.drop_path = 0.1
    config.data.source = "npz:data/cifar10_jpeg.npz"
    config.data.image_size = 32
    config.data.pad = 4
    config.data.validation = 0.1
    config.data.randaugment.layers = 2
    config.data.mixup = 0.8
    config.data.cutmix = 1.0
    config.data.label_smoothing = 0.1
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.clip_norm = 1.0
    attacks = {"linf": defaults.pgd("linf", EPS, steps=2)}
    alone = name in ("nominal", "adversarial")
    config.update(defaults.method(name if alone else "cotrain", attacks))
    if not alone:
        adapters = {"cotrain": "class_token", "norms": "norms", "nothing": "nothing"}
        config.adapters = (adapters[name],)
    config.evaluation.batch_size = 500
    config.evaluation.soup_weights = WEIGHTS.get(name, (1.0,))
    config.evaluation.suites = {
        "pgd40_linf": defaults.evaluation_pgd("linf", EPS, steps=40)
    }
    return config


ROBUST, AA = "pgd40_linf", f"aa:autoattack_linf_{EPS:g}"
SOUPS = tuple(f"clean={w:g},linf={1 - w:g}" for w in WEIGHTS["cotrain"])
CASCADE = dict(suite="autoattack", eps=4 / 255, examples=500)

EXPERIMENT = dict(
    paper='Rebuffi, Croce and Gowal, "Revisiting adapters with adversarial training" '
    "(ICLR 2023)",
    data="CIFAR-10 (JPEG), 45,000 training and 10,000 test images, Linf 4/255",
    variants=("nominal", "adversarial", "cotrain", "norms", "nothing"),
    seeds=2,
    soups={"independent": dict(of=("nominal", "adversarial"), weights=(0.5,))},
    evaluations={
        "aa": {
            "adversarial": CASCADE,
            "cotrain": CASCADE | dict(mixture=("clean=1", "linf=1")),
        }
    },
    claims=papers.cotraining(ROBUST, AA, SOUPS),
)
