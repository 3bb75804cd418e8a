"""Claims about co-training with class tokens, on Fashion-MNIST and two CPU cores.

Paper: Rebuffi, Croce and Gowal, "Revisiting adapters with adversarial training" (ICLR
  2023). The claims are the paper's, about ImageNet and ViT-B/16; the margins are ours, and
  so is all else: as in configs/fashion_mnist.py, with 10,000 images instead of 3,000.
Command: advadapters study --config=configs/evidence/cotrain_fashion.py
    --workdir=runs/evidence/cotrain_fashion --minutes=20 --ledger=docs/ledger.jsonl
  as often as it takes: it ends with 0 when all seeds are done.
Data: 10,000 training images of Fashion-MNIST (Debian's package dataset-fashion-mnist), a
  fixed draw of the 54,000 that are not held out; all 10,000 test images. Settings are
  chosen on held-out images: --config.data.judged_on=validation.
Variants: cotrain (default), nominal, adversarial, norms (each domain's own norms instead of
  class tokens), nothing (the same losses, everything shared).
Cost: see docs/evidence.md. Expected: docs/evidence.md.
"""

from advadapters import defaults, papers
from advadapters.configs import variant

EPS = 0.1
VARIANTS = ("cotrain", "nominal", "adversarial", "norms", "nothing")
# Of the clean token in the networks that are evaluated.
WEIGHTS = {"cotrain": (1.0, 0.75, 0.5, 0.25, 0.0), "norms": (1.0, 0.0)}


def get_config(name=""):
    name = variant(name, VARIANTS)
    model = defaults.model("vit", "64x3x256x4", patch=7)
    config = defaults.fashion(model, train_images=10_000)
    config.epochs = 20.0
    config.optimizer.base_lr = 1.2e-2
    attacks = {"linf": defaults.pgd("linf", EPS, steps=2)}
    alone = name in ("nominal", "adversarial")
    config.update(defaults.method(name if alone else "cotrain", attacks, alpha=0.6))
    if not alone:
        adapters = {"cotrain": "class_token", "norms": "norms", "nothing": "nothing"}
        config.adapters = (adapters[name],)
    config.evaluation.soup_weights = WEIGHTS.get(name, (1.0,))
    config.evaluation.suites = {
        "pgd20_linf": defaults.evaluation_pgd("linf", EPS, steps=20)
    }
    return config


ROBUST, AA = "pgd20_linf", "aa:autoattack_linf_0.1"
APGD = "apgd:autoattack_linf_0.1"
CASCADE = dict(suite="autoattack-fast+standard", eps=0.1, examples=500)
HUNDRED = dict(suite="autoattack:apgd-ce", eps=0.1, examples=2000)  # steps of APGD
SOUPS = tuple(f"clean={w:g},linf={1 - w:g}" for w in WEIGHTS["cotrain"])

EXPERIMENT = dict(
    paper='Rebuffi, Croce and Gowal, "Revisiting adapters with adversarial training" '
    "(ICLR 2023)",
    data="Fashion-MNIST, 10,000 training and 10,000 test images, Linf 0.1",
    at_scale="co-training a ViT-B/16 on ImageNet for 300 epochs takes at least 207 "
    "chip-hours of v5e, by `advadapters dryrun --config=configs/imagenet_vit_b16.py "
    "--topology=v5e:16x16 --images=1281167` (see [Costs](costs.md)).",
    variants=("nominal", "adversarial", "cotrain", "norms", "nothing"),
    seeds=2,
    soups={"independent": dict(of=("nominal", "adversarial"), weights=(0.5,))},
    evaluations={
        "aa": {
            "adversarial": CASCADE,
            "cotrain": CASCADE | dict(mixture=("clean=1", "linf=1")),
        },
        "apgd": {
            "adversarial": HUNDRED,
            "cotrain": HUNDRED | dict(mixture=("linf=1",)),
        },
    },
    claims=papers.cotraining(ROBUST, AA, SOUPS)
    + papers.strength((("adversarial", ""), ("cotrain", "linf=1")), ROBUST, APGD, AA),
)
