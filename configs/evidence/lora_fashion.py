"""Claims about FullLoRA-AT, on Fashion-MNIST and two CPU cores.

Paper: Yuan, Zhang, Shan and Chen, "FullLoRA" (IEEE TIP 2025, arXiv 2401.01752): a frozen,
  nominally trained ViT is made robust by LoRAs with a layer norm of their own (LNLoRA).
  Network, data, radius, steps and rates are ours, and so are the margins and the rank of
  2: LNLoRAs add 10,368 parameters to the network's 155,082, 7%.
Command: advadapters study --config=configs/evidence/lora_fashion.py
    --workdir=runs/evidence/lora_fashion --minutes=20 --ledger=docs/ledger.jsonl
Data: 10,000 training images of Fashion-MNIST (Debian's package dataset-fashion-mnist), a
  fixed draw of the 54,000 that are not held out; 5,000 test images.
Variants: lnlora (default), lora (without the layer norm), full (everything), linear_probe
  (the head alone), nominal (the network that all start from).
Cost: see docs/evidence.md. Expected: docs/evidence.md.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS, RANK = 0.1, 2
VARIANTS = ("lnlora", "lora", "full", "linear_probe", "nominal")
# Chosen on held-out images, seed 0, robust under PGD-5: LNLoRA ended at 39.2, 46.6 and
# 42.5% with 4e-3, 1.6e-2 and 6.4e-2, full fine-tuning at 54.3 and 61.7% with 1e-3 and 4e-3.
RATES = {"full": 4e-3, "nominal": 4e-3}


def get_config(name=""):
    name = variant(name, VARIANTS)
    model = defaults.model("vit", "64x3x256x4", patch=7)
    config = defaults.fashion(model, train_images=10_000, test_images=5_000)
    config.epochs = 20.0 if name == "nominal" else 15.0
    config.optimizer.base_lr = RATES.get(name, 1.6e-2)
    attacks = {"linf": defaults.pgd("linf", EPS, steps=3)}
    if name == "nominal":
        config.update(defaults.method("nominal", attacks))
    else:
        config.update(defaults.method("adversarial", attacks))
        config.update(defaults.fine_tuning(name, RANK, "nominal"))  # of the same seed
    config.evaluation.suites = {
        "pgd20_linf": defaults.evaluation_pgd("linf", EPS, steps=20)
    }
    return config


CLEAN, ROBUST, AA = "clean", "pgd20_linf", "aa:autoattack_linf_0.1"


def against(first, second, *suites):
    """Rows that compare two variants in these suites."""
    return tuple(((first, "", suite), (second, "", suite)) for suite in suites)


CASCADE = dict(suite="autoattack-fast+standard", eps=0.1, examples=500)

EXPERIMENT = dict(
    paper='Yuan et al., "FullLoRA" (IEEE TIP 2025)',
    data="Fashion-MNIST, 10,000 training and 5,000 test images, Linf 0.1",
    at_scale="FullLoRA-AT of a pretrained ViT on CIFAR-10 takes at least 0.73 chip-hours "
    "of v5e ([costs](reproduce.md#what-it-costs)).",
    variants=("nominal", "full", "lnlora", "lora", "linear_probe"),
    seeds=2,
    evaluations={"aa": {"full": CASCADE, "lnlora": CASCADE}},
    claims=(
        dict(
            id="like-full",
            sentence="LNLoRA makes a frozen network as robust as full fine-tuning does, or "
            "at most 5 points (our margin) less",
            place="abstract: comparable robustness with about 5% of the parameters",
            test="more",
            margin=-0.05,
            rows=against("lnlora", "full", ROBUST, AA),
        ),
        dict(
            id="clean",
            sentence="It is as accurate on clean images as full fine-tuning, or at most 5 "
            "points less",
            place="abstract: comparable",
            test="more",
            margin=-0.05,
            rows=against("lnlora", "full", CLEAN),
        ),
        dict(
            id="layer-norm",
            sentence="The layer norm matters: LNLoRA ends more robust than LoRA",
            place="abstract: LNLoRA, a learnable layer norm before LoRA",
            test="more",
            rows=against("lnlora", "lora", ROBUST),
        ),
        dict(
            id="head",
            sentence="The head alone cannot do it: LNLoRA ends more robust",
            place="ours",
            test="more",
            rows=against("lnlora", "linear_probe", ROBUST),
        ),
    ),
)
