"""Claims about seasoning model soups, on Fashion-MNIST and two CPU cores.

Paper: Croce, Rebuffi, Shelhamer and Gowal, "Seasoning Model Soups for Robustness to
  Adversarial and Natural Distribution Shifts" (CVPR 2023). One robust network is fine-tuned
  to other threats and to clean images, and their weights are mixed. Network, data, radii,
  steps and rates are ours, those of configs/fashion_season.py, trained for longer.
Command: advadapters study --config=configs/evidence/season_fashion.py
    --workdir=runs/evidence/season_fashion --minutes=20 --ledger=docs/ledger.jsonl
Data: 30,000 training images of Fashion-MNIST (Debian's package dataset-fashion-mnist), a
  fixed draw of the 54,000 that are not held out; 5,000 test images. Under corruptions soups
  are chosen on 1,000 of 3,000 of them, and judged on the others.
Variants: linf (default, the first network), l2, l1, nominal (fine-tuned from it).
Cost: see docs/evidence.md. Expected: docs/evidence.md.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = {"linf": 0.1, "l2": 1.5, "l1": 5.0}
VARIANTS = (*EPS, "nominal")


def get_config(name=""):
    name = variant(name, VARIANTS)
    model = defaults.model("vit", "32x3x128x4", patch=7)
    config = defaults.fashion(model, train_images=30_000, test_images=5_000)
    config.epochs = 8.0 if name == "linf" else 2.0
    config.optimizer.base_lr = 4e-3 if name == "linf" else 2e-3
    config.optimizer.warmup_epochs = 1.0 if name == "linf" else 0.2
    if name == "nominal":
        config.update(defaults.method("nominal", {}))
    else:
        attacks = {name: defaults.pgd(name, EPS[name], steps=3)}
        config.update(defaults.method("adversarial", attacks))
    if name != "linf":
        config.start.workdir = "linf"  # of the same seed
    config.evaluation.soup_weights = (1.0,)
    config.evaluation.suites = {
        f"pgd20_{norm}": defaults.evaluation_pgd(norm, EPS[norm], steps=20)
        for norm in ("linf", "l2")
    }
    return config


SHIFTS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur",
    "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast",
    "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
LINE = ("linf=1", "linf=0.8,l2=0.2", "linf=0.6,l2=0.4", "linf=0.4,l2=0.6",
        "linf=0.2,l2=0.8", "l2=1")  # fmt: skip
TOWARDS = ("linf=1", "linf=0.8,nominal=0.2", "linf=0.6,nominal=0.4",
           "linf=0.4,nominal=0.6", "linf=0.2,nominal=0.8", "nominal=1")  # fmt: skip


CORRUPTED = dict(suite="corruptions", grid=0.2, examples=3000)


def shifted(evaluation, severity):
    """The claim that soups pay on some corruption of this severity."""
    suites = [f"{evaluation}:{shift}-{severity}" for shift in SHIFTS]
    return dict(
        id=f"shifts-{severity}",
        sentence="On some corruption a soup beats every ingredient, both chosen on 1,000 "
        f"images of it (severity {severity})",
        place="abstract: a tool to adapt to shifts from a few examples",
        test="any",
        rows=tuple((("soup", "best", s), ("soup", "best mode", s)) for s in suites),
    )


EXPERIMENT = dict(
    paper='Croce et al., "Seasoning Model Soups" (CVPR 2023)',
    data="Fashion-MNIST, 30,000 training and 5,000 test images, Linf 0.1, L2 1.5, L1 5",
    at_scale="the four ViT-B/16 on ImageNet take at least 144 chip-hours of v5e, of which "
    "142 are the Linf-robust network that the others start from "
    "([costs](reproduce.md#what-it-costs)).",
    variants=VARIANTS,
    seeds=2,
    soups={"soup": dict(of=VARIANTS, weights=(1.0,))},
    evaluations={
        "lines": {"soup": dict(mixture=tuple(dict.fromkeys(LINE + TOWARDS)))},
        "shifts": {"soup": CORRUPTED | dict(severity=3)},
        "hard": {"soup": CORRUPTED | dict(severity=5)},
    },
    chosen_on=1000,
    claims=(
        dict(
            id="threats",
            sentence="Soups of an Linf- and an L2-robust network trace a front between the "
            "two threats",
            place="abstract: soups of models robust to different threats",
            test="front",
            margin=0.01,
            variant="soup",
            networks=LINE,
            suites=("lines:pgd20_linf", "lines:pgd20_l2"),
        ),
        dict(
            id="accuracy",
            sentence="Soups of a robust and a nominal network fine-tuned from it trace a "
            "front between robust and clean accuracy",
            place="abstract: smoothly trade off robustness",
            test="front",
            margin=0.01,
            variant="soup",
            networks=TOWARDS,
            suites=("lines:pgd20_linf", "lines:clean"),
        ),
        shifted("shifts", 3),
        shifted("hard", 5),
    ),
)
