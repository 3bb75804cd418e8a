"""ViT-B/16 on ImageNet: co-training with class-token adapters, the paper's main result.

Paper: Rebuffi, Croce and Gowal, "Revisiting adapters with adversarial training"
  (ICLR 2023, arXiv 2210.04886): ViT-B/16 at 224, clean and attacked images at Linf 4/255,
  a class token each, all else shared. No code of it is public.
From He et al., "Masked autoencoders" (2022): the recipe, appendix A.2's for ViT-B trained
  from scratch with labels (ViT-L: 200 epochs, drop path 0.2); bicubic crops, the head
  (patch tokens' mean, then a norm) and what is not decayed, of its code; Table 9 for
  `finetune`, FINETUNE.md for `finetune_released` (rate 5e-4, layer decay 0.65, random
  erasing), in both a head of deviation 2e-5 and a fresh norm before it.
From the code of AdvProp's re-implementation and of Pyramid-AT (Herrmann et al. 2022), for
  ImageNet: both attack towards random classes in 5 steps; AdvProp Linf 4/255 in steps of
  1/255, with norms of its own; Pyramid-AT 3/255 in steps of 0.5/255, in train mode, from
  zero, clean and attacked images counting alike.
Ours, as the paper's text that we could read does not say it: that co-training follows MAE's
  recipe, its head and its average of parameters (decay 0.9999; of both tokens); PGD-2, its
  step size and start, in eval mode, through the robust mode; cross-entropy of mixed and
  smoothed labels for attack and loss; alpha 0.5 as the default, the other alphas.
Ours, where the recipes say another thing: the average's decay grows to its value; the
  cosine ends at 0 (MAE's code: 1e-6); mixup or CutMix is drawn once a step (there by each
  process: 64 times in a step of 4096); noise of random erasing is cut to [0, 1]; 0.8% of
  the training images are held out; bfloat16; the first weights; AdvProp and Pyramid-AT
  follow MAE's recipe, not their own (Pyramid-AT: the class token is read, AdamW at 1e-3
  with decay 0.1, RandAugment 2 of magnitude 15, mixup 0.5, dropout), AdvProp's own norms
  are all layer norms, and its halves count alike; the judge, PGD-40 on the margin,
  keeping the best iterate. cotrain_norms, and co-training of ViT-L. Of from_linf_...:
  AdamW at 1e-4, batches of 1024, an average of decay 0.995 (Croce et al. 2023: a short
  fine-tuning, as little as one epoch; radii and APGD-10 of Croce and Hein's code).
Command: advadapters train --config=configs/imagenet_vit_b16.py:cotrain --workdir=DIR
Data: TFDS imagenet2012, prepared once with --file_format=array_record; or
  --config.data.source=tar:DIR with ImageNet's two tars as they come (docs/data.md).
Variants: cotrain (default), nominal, adversarial, advprop (dual layer norms), pyramid,
  finetune, finetune_released (from config.start.weights, MAE's released encoder
  mae_pretrain_vit_base.pth; a .pth needs torch, see docs/weights.md);
  from_linf_l2, from_linf_l1, from_linf_nominal (seasoning: an epoch from the run of
  `adversarial` that config.start.workdir names);
  alpha_10, alpha_20, alpha_30, alpha_40, alpha_50, alpha_60, alpha_70, alpha_80, alpha_90
  (co-training with that percentage of the clean loss), cotrain_norms (dual layer norms in
  place of class tokens), vit_l16 (co-training of ViT-L/16; the state split over the
  devices).
Cost: about 93,000 steps of 4096 images; 10 forward passes' FLOPs per image (PGD-2: 4,
  two views trained: 6), counted on paper; memory and times: `advadapters dryrun` and
  docs/costs.md.
Expected (the papers' numbers, not ours; nothing here has been run at this size):
  nominal 82.64% top-1, clean mode of co-training 83.76% (paper's abstract, which does not
  name the alpha), adversarial 76.88%, AdvProp 83.39%, Pyramid-AT 83.14%, fine-tuned MAE
  83.10% (poster of Croce et al. 2023), of the released checkpoint 83.66% (FINETUNE.md).
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = 4 / 255
METHODS = ("cotrain", "nominal", "adversarial", "advprop", "pyramid")
ALPHAS = {f"alpha_{percent}": percent / 100 for percent in range(10, 100, 10)}
THREATS = {"from_linf_l2": 2.0, "from_linf_l1": 255.0, "from_linf_nominal": 0.0}  # radii
VARIANTS = (
    *METHODS, "finetune", "finetune_released", *THREATS, *ALPHAS, "cotrain_norms", "vit_l16"
)  # fmt: skip


def get_config(name=""):
    name = variant(name, VARIANTS)
    config = defaults.config()
    config.epochs = 300.0
    config.batch_size = 4096
    config.log_every = 100
    config.validate_every = 5000
    config.checkpoint_every = 1000
    config.model.size = "B"
    config.model.classes = 1000
    config.model.mean = (0.485, 0.456, 0.406)
    config.model.std = (0.229, 0.224, 0.225)
    config.model.drop_path = 0.1
    config.model.dtype = "bfloat16"
    config.data.source = "tfds:imagenet2012"
    config.data.crop = "random_resized"
    config.data.crop_ratio = 0.875
    config.data.interpolation = "bicubic"
    config.data.validation = 0.008  # about 10,000 images
    config.data.threads = 64
    config.data.randaugment.update(layers=2, fill=config.model.mean)
    config.data.mixup = 0.8
    config.data.cutmix = 1.0
    config.data.label_smoothing = 0.1
    config.optimizer.base_lr = 1e-4
    config.optimizer.weight_decay = 0.3
    config.optimizer.warmup_epochs = 20.0
    method = name if name in METHODS else "cotrain"
    method = "nominal" if name.startswith("finetune") else method
    attacks = {"linf": defaults.pgd("linf", EPS, steps=2)}
    if name in THREATS:
        threat = name.removeprefix("from_linf_")
        method = "nominal" if threat == "nominal" else "adversarial"
        attacks = {threat: apgd(threat, THREATS[name])}
    config.update(defaults.method(method, attacks, alpha=ALPHAS.get(name, 0.5)))
    if name == "advprop":  # as published for ImageNet
        config.attacks.linf.update(steps=5, step_size=1 / 255)
    if name == "pyramid":
        config.attacks.pyramid.update(eps=3 / 255, step_size=0.5 / 255)
    if name == "cotrain_norms":
        config.adapters = ("norms",)
    if name == "vit_l16":
        config.model.size = "L"
        config.model.drop_path = 0.2
        config.epochs = 200.0
        config.sharding = "fsdp"
    if name.startswith("finetune"):
        finetune(config, released=name == "finetune_released")
    config.evaluation.batch_size = 2048
    config.evaluation.suites = {
        "pgd40_linf": defaults.evaluation_pgd("linf", EPS, 40, loss="margin")
    }
    if name in THREATS:
        season(config, name.removeprefix("from_linf_"), THREATS[name])
    return config


def finetune(config, released):
    """MAE's fine-tuning, of the paper's Table 9 or of the released checkpoint."""
    config.start.weights = "mae_pretrain_vit_base.pth"
    config.start.fresh = ("head/.*", "norm/.*")
    config.model.head_std = 2e-5
    config.ema_decay = 0.0
    config.epochs = 100.0
    config.batch_size = 1024
    config.optimizer = defaults.adamw(
        base_lr=5e-4 if released else 1e-3,
        b2=0.999,
        weight_decay=0.05,
        warmup_epochs=5.0,
        layers=defaults.VIT_LAYERS,
        layer_decay=0.65 if released else 0.75,
    )
    if released:
        config.data.random_erasing.update(
            probability=0.25, mean=config.model.mean, std=config.model.std
        )


def apgd(norm, eps):
    """The attack of robust fine-tuning's code."""
    return dict(
        name="apgd", norm=norm, eps=eps, steps=10, loss="cross_entropy", eps_warmup=0.0
    )


def season(config, threat, eps):
    """A short fine-tuning of the Linf-robust network to another threat, or to none."""
    if threat != "nominal":
        config.evaluation.suites[f"pgd40_{threat}"] = defaults.evaluation_pgd(
            threat, eps, 40, loss="margin"
        )
    config.start.workdir = "runs/imagenet/linf"
    config.epochs = 1.0
    config.batch_size = 1024
    config.ema_decay = 0.995
    config.optimizer.base_lr = 1e-4 * 256 / config.batch_size  # 1e-4 itself
    config.optimizer.warmup_epochs = 0.1
