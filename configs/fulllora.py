"""FullLoRA-AT at its own size: a frozen ViT-B made robust by LNLoRAs, and its baselines.

Paper: Yuan, Zhang, Shan and Chen, "FullLoRA" (IEEE TIP 2025, arXiv 2401.01752).
  The paper's: LoRA with a learnt layer norm before it (LNLoRA) in all key components of
    a frozen, nominally trained ViT, about 5% of its parameters; CIFAR-10, CIFAR-100 and
    Imagenette.
  Of the published code of Mo et al., "When adversarial training meets vision
    transformers" (NeurIPS 2022): CIFAR at 32 with patch 4, Imagenette at 224 with patch
    16; PGD-10, eps 8/255, step 2/255, random start; mixup 0.8 and CutMix 1.0 on 0.3 of
    the batches; SGD at 0.1, momentum 0.9, decay 1e-4, batch 64, 40 epochs, a tenth of the
    rate in the last 5 and a hundredth in the last 2, gradients clipped at 1; evaluation
    by PGD-20, PGD-100, CW-20 (one start, step 2/255) and AutoAttack at 8/255. That
    FullLoRA follows them is a guess, and so is their rate of full fine-tuning for LoRAs.
  Ours: rank 24 on q, k, v, proj, fc1 and fc2 (the paper's rank is not known; this one
    gives 4.9% of ViT-B), scale 1, no LNLoRA on the patch embedding or the head; the head
    is trained, and reads the class token; decay of all that is trained; no average of
    parameters, no warm-up, nothing dropped; crops and flips, images normalised to 0.5 and
    0.5; evaluation keeps the best iterate; which baselines, and the nominal training
    before, by the same recipe. Of the variants _pretrained: the file, timm's ViT-B/16 of
    ImageNet; that kernels of patches and positions are resampled as timm does (Mo et al.:
    kernels interpolated, positions bilinear); that the radius of _pretrained_warmup grows
    over the first half (arXiv 2509.23325: a schedule helps where the start is not robust).
Command: advadapters train --config=configs/fulllora.py:cifar10_nominal
    --workdir=runs/cifar10_nominal, or a network that is there already, then
  advadapters train --config=configs/fulllora.py:cifar10 --workdir=DIR
    (--config.start.workdir=... for another start, --config.data.source=folder:DIR)
  advadapters evaluate --workdir=DIR --suite=autoattack --norm=linf --eps=8/255
Data: TFDS cifar10, cifar100 and imagenette/full-size (its first version), prepared with
  --file_format=array_record, or image folders.
Variants: the data set, and how it is trained, LNLoRA by default: cifar10 (default),
  cifar10_lora, cifar10_attention and cifar10_mlp (LNLoRA on these parts alone),
  cifar10_bitfit, cifar10_linear_probe, cifar10_full, cifar10_nominal (the start);
  cifar100, cifar100_lora, cifar100_attention, cifar100_mlp, cifar100_bitfit,
  cifar100_linear_probe, cifar100_full, cifar100_nominal; imagenette, imagenette_lora,
  imagenette_attention, imagenette_mlp, imagenette_bitfit, imagenette_linear_probe,
  imagenette_full, imagenette_nominal. From a pretrained network, the file that
  config.start.weights names: cifar10_pretrained, cifar10_pretrained_warmup,
  cifar10_pretrained_full; cifar100_pretrained, cifar100_pretrained_warmup,
  cifar100_pretrained_full; imagenette_pretrained, imagenette_pretrained_warmup,
  imagenette_pretrained_full.
Cost: 22 forward passes' FLOPs per image (20 in PGD-10, 2 trained), counted on paper: 5e17
  FLOP for CIFAR, 3e17 for Imagenette, an hour or two of an accelerator that does 100
  TFLOP/s. Expected: not run here; the paper's tables are not known to us.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS, STEP = 8 / 255, 2 / 255
# source, classes, image size, patch
DATA = {
    "cifar10": ("tfds:cifar10", 10, 32, 4),
    "cifar100": ("tfds:cifar100", 100, 32, 4),
    "imagenette": ("tfds:imagenette/full-size", 10, 224, 16),
}
# The suffix of a variant and its row of defaults.FINE_TUNING.
METHODS = {
    "": "lnlora",
    "_lora": "lora",
    "_attention": "lnlora_attention",
    "_mlp": "lnlora_mlp",
    "_bitfit": "bitfit",
    "_linear_probe": "linear_probe",
    "_full": "full",
    "_nominal": "",
    "_pretrained": "lnlora",
    "_pretrained_warmup": "lnlora",
    "_pretrained_full": "full",
}
CASES = {data + suffix: (data, suffix) for data in DATA for suffix in METHODS}
VARIANTS = tuple(CASES)


def get_config(name=""):
    data, suffix = CASES[variant(name, VARIANTS)]
    config = defaults.config()
    config.epochs = 40.0
    config.batch_size = 64
    config.ema_decay = 0.0
    config.model.size = "B"
    config.model.pool = "class"
    source, config.model.classes, config.data.image_size, config.model.patch = DATA[data]
    config.data.source = source
    if data == "imagenette":
        config.data.crop = "random_resized"
        config.data.crop_ratio = 0.875
        config.data.threads = 16
    else:
        config.data.pad = 4
    config.data.mixup = 0.8
    config.data.cutmix = 1.0
    config.data.mix_probability = 0.3
    config.optimizer = defaults.sgd(
        base_lr=0.1 * 256 / 64,  # 0.1 itself at a batch of 64
        weight_decay=1e-4,
        decayed=(".*",),
        warmup_epochs=0.0,
        drops=((35, 0.1), (38, 0.01)),
        clip_norm=1.0,
    )
    attacks = {"linf": defaults.pgd("linf", EPS, steps=10, step_size=STEP)}
    if METHODS[suffix]:
        config.update(defaults.method("adversarial", attacks))
        config.update(
            defaults.fine_tuning(METHODS[suffix], rank=24, workdir=f"runs/{data}_nominal")
        )
    else:
        config.update(defaults.method("nominal", attacks))
    if suffix.startswith("_pretrained"):
        config.start.workdir = ""
        config.start.weights = "vit_base_patch16_224.safetensors"
        config.start.fresh = (*config.start.fresh, "head/.*")
    if suffix == "_pretrained_warmup":
        config.attacks.linf.eps_warmup = config.epochs / 2
    config.evaluation.batch_size = 256
    suites = {
        "pgd20": defaults.evaluation_pgd("linf", EPS, steps=20),
        "pgd100": defaults.evaluation_pgd("linf", EPS, steps=100),
        "cw20": defaults.evaluation_pgd("linf", EPS, steps=20, loss="margin"),
    }
    config.evaluation.suites = {k: v | {"step_size": STEP} for k, v in suites.items()}
    return config
