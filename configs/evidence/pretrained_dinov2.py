"""Small checks of a start from real pretrained weights: DINOv2 ViT-S/14, on a CPU.

Paper: Yuan, Zhang, Shan and Chen, "FullLoRA" (IEEE TIP 2025), and Rebuffi, Croce and
  Gowal, "Revisiting adapters with adversarial training" (ICLR 2023). Both begin elsewhere;
  that these methods run from real pretrained weights, and gain by it, is what is looked at
  here. All settings are ours, and none was searched for.
Command: advadapters study --config=configs/evidence/pretrained_dinov2.py
    --workdir=runs/evidence/pretrained_dinov2 --ledger=docs/ledger.jsonl
Data: CIFAR-10, each image encoded again as a JPEG, as one file of arrays: docs/data.md says
  how to make it. A fixed draw of 200 training images and one of 100 test images, which are
  enlarged from 32 to 42 pixels inside the network, so that a patch of 14 leaves 3x3 tokens.
Weights: data/dinov2.safetensors, which docs/weights.md says how to make.
Variants: cotrain (default: all is trained, a class token for each domain),
  cotrain_scratch (the same from random parameters), lnlora (FullLoRA-AT: frozen, with
  LNLoRAs), linear_probe (frozen, the head alone).
Cost: 15 minutes of a CPU core for both seeds, estimated from four steps that were run. The
  study itself has not been run. Expected: nothing yet; docs/evidence.md would have it.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS, RANK = 2 / 255, 4
VARIANTS = ("cotrain", "cotrain_scratch", "lnlora", "linear_probe")
# For a batch of 256; the batch is 20.
RATES = {"cotrain": 1e-3, "cotrain_scratch": 5e-3, "lnlora": 1e-2, "linear_probe": 3e-2}


def get_config(name=""):
    name = variant(name, VARIANTS)
    config = defaults.config()
    config.epochs = 3.0
    config.batch_size = 20
    config.ema_decay = 0.9
    config.log_every = 10
    config.checkpoint_every = 1000
    config.model = defaults.model(
        "vit", "384x12x1536x6", patch=14, resize=42, pool="class", scan=True
    )
    config.model.mean = (0.485, 0.456, 0.406)
    config.model.std = (0.229, 0.224, 0.225)
    config.data.update(
        source="npz:data/cifar10_jpeg.npz",
        image_size=32,
        pad=2,
        train_images=200,
        test_images=100,
    )
    config.optimizer.update(base_lr=RATES[name], warmup_epochs=0.5, clip_norm=1.0)
    attacks = {"linf": defaults.pgd("linf", EPS, steps=1)}
    if name.startswith("cotrain"):
        config.update(defaults.method("cotrain", attacks))
        config.adapters = ("class_token",)
        config.evaluation.soup_weights = (1.0, 0.5, 0.0)
    else:
        config.update(defaults.method("adversarial", attacks))
        config.update(defaults.fine_tuning(name, RANK, ""))
    if name != "cotrain_scratch":
        config.start.weights = "data/dinov2.safetensors"
        config.start.fresh = ("head/.*",) + ((".*_lora/.*",) if name == "lnlora" else ())
    config.evaluation.batch_size = 50
    config.evaluation.suites = {"pgd5_linf": defaults.evaluation_pgd("linf", EPS, steps=5)}
    return config


CLEAN, ROBUST = "clean", "pgd5_linf"
COTRAIN, SCRATCH = "cotrain", "cotrain_scratch"

EXPERIMENT = dict(
    paper="ours: a start from the weights of DINOv2 ViT-S/14 (Oquab et al. 2023)",
    data="CIFAR-10 (JPEG), 200 training and 100 test images, Linf 2/255",
    variants=VARIANTS,
    seeds=2,
    claims=(
        dict(
            id="start",
            sentence="Co-training from the weights of DINOv2 ends more accurate, clean and "
            "under attack, than from random parameters",
            place="ours",
            test="more",
            rows=(
                ((COTRAIN, "clean=1", CLEAN), (SCRATCH, "clean=1", CLEAN)),
                ((COTRAIN, "linf=1", ROBUST), (SCRATCH, "linf=1", ROBUST)),
            ),
        ),
        dict(
            id="lnlora",
            sentence="LNLoRA makes the frozen network more robust than its head alone can",
            place="FullLoRA, abstract: LNLoRA makes a pretrained ViT robust",
            test="more",
            rows=((("lnlora", "", ROBUST), ("linear_probe", "", ROBUST)),),
        ),
    ),
)
