"""FullLoRA-AT on digits: a frozen, nominally trained ViT made robust by few parameters.

Paper: Yuan, Zhang, Shan and Chen, "FullLoRA" (IEEE TIP 2025, arXiv 2401.01752): LoRA
  with a layer norm of its own (LNLoRA) beside every linear map of a frozen ViT. The
  paper's rank, optimizer and tables are not known here: rank, rates, schedule and
  radius are ours, and so is training the head.
Command: advadapters train --config=configs/digits_lora.py:nominal --workdir=runs/nominal
  advadapters train --config=configs/digits_lora.py --workdir=runs/lora
    (--config.start.workdir=... for another start)
Variants: lnlora (default), lora (the same without the layer norm), lora_qv (queries and
  values, as LoRA was first used), lnlora_attention, lnlora_mlp, bottleneck, scale_shift,
  bitfit (all biases), linear_probe (the head alone), full (everything, no adapter),
  cotrain (co-training of a clean and an adversarial LNLoRA on the one frozen backbone,
  the head shared and trained; evaluates the soups between and beyond them), nominal
  (the network to start from).
Cost: a minute on 2 CPU cores. Expected: the table in docs/results.md.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = 0.12
VARIANTS = (*defaults.FINE_TUNING, "cotrain", "nominal")
# Rates by validation on a fifth of the training images: full of 1e-3 and 4e-3, all others
# of 4e-3, 1.6e-2 and 6.4e-2, LoRA and LNLoRA of 2.56e-1 too. lora_qv, bottleneck,
# scale_shift and cotrain were not tried; theirs are those of their kin.
RATES = {
    "full": 4e-3, "nominal": 4e-3, "linear_probe": 1.6e-2, "bottleneck": 1.6e-2,
    "scale_shift": 1.6e-2,
}  # fmt: skip


def get_config(name=""):
    name = variant(name, VARIANTS)
    config = defaults.digits(defaults.model("vit", "32x3x128x4", patch=2))
    config.epochs = 60.0 if name == "nominal" else 30.0
    config.optimizer.base_lr = RATES.get(name, 6.4e-2)
    attacks = {"linf": defaults.pgd("linf", EPS, steps=10)}
    if name == "nominal":
        config.update(defaults.method("nominal", attacks))
    elif name == "cotrain":
        config.update(defaults.method("cotrain", attacks))
        config.update(defaults.fine_tuning("lnlora", 2, "runs/nominal"))
        config.adapters = (".*_lora/.*",)
    else:
        config.update(defaults.method("adversarial", attacks))
        config.update(defaults.fine_tuning(name, 2, "runs/nominal"))
    config.evaluation.suites = {
        "pgd20_linf": defaults.evaluation_pgd("linf", EPS, steps=20),
        "pgd100_linf": defaults.evaluation_pgd("linf", EPS, steps=100),
        "cw20_linf": defaults.evaluation_pgd("linf", EPS, steps=20, loss="margin"),
    }
    return config
