"""Adversarial co-training of a small ViT on scikit-learn's 1,797 digits (8x8).

Method: Rebuffi, Croce and Gowal, "Revisiting adapters with adversarial training"
(ICLR 2023): clean and Linf-attacked images share every parameter but the class
token. Size, schedule and eps are ours, chosen to run in minutes on two cores.

  advadapters train --config=configs/digits.py --workdir=runs/digits

Variants: cotrain (default), nominal, adversarial, four (clean, Linf, L2, L1 tokens).
"""

from ml_collections import ConfigDict

from advadapters.config import variant

EPS = {"linf": 0.1, "l2": 0.6, "l1": 2.0}


def attack(norm, steps):
    return dict(name="pgd", norm=norm, eps=EPS[norm], steps=steps)


def view(domain, weight, attack=""):
    return dict(mixture={domain: 1.0}, weight=weight, attack=attack)


VIEWS = {
    "cotrain": {"clean": view("clean", 0.5), "linf": view("linf", 0.5, "linf")},
    "nominal": {"clean": view("clean", 1.0)},
    "adversarial": {"linf": view("linf", 1.0, "linf")},
    "four": {
        "clean": view("clean", 0.25),
        "linf": view("linf", 0.25, "linf"),
        "l2": view("l2", 0.25, "l2"),
        "l1": view("l1", 0.25, "l1"),
    },
}


def get_config(name=""):
    name = variant(name, list(VIEWS))
    views = VIEWS[name]
    norms = [norm for norm in EPS if norm in views] or ["linf"]
    return ConfigDict(
        dict(
            seed=0,
            epochs=60.0,
            batch_size=128,
            accumulate=1,
            domains=tuple(views),
            adapters=("class_token",) if len(views) > 1 else (),
            views=views,
            attacks={norm: attack(norm, 3) for norm in EPS if norm in views},
            ema_decay=0.99,
            keep_checkpoints=2,
            log_every=50,
            validate_every=0,
            checkpoint_every=200,
            model=dict(
                name="vit",
                size="64x4x256x4",
                classes=10,
                patch=2,
                mean=(0.5,),
                std=(0.5,),
                pool="tokens",
                positions="learned",
                drop_path=0.0,
                remat=False,
                scan=False,
                dtype="float32",
            ),
            data=dict(
                source="digits",
                data_dir="",
                image_size=8,
                channels=1,
                crop="central",
                crop_ratio=1.0,
                validation=0.0,
                skip_corrupt=False,
                threads=1,
                flip=False,
                pad=1,
                mixup=0.0,
                cutmix=0.0,
                label_smoothing=0.1,
            ),
            optimizer=dict(
                base_lr=1e-3,
                b1=0.9,
                b2=0.95,
                weight_decay=0.05,
                decayed=(".*kernel",),
                warmup_epochs=5.0,
                clip_norm=1.0,
                max_nonfinite=10,
            ),
            evaluation=dict(
                batch_size=120,
                soup_weights=tuple(round(0.1 * i, 1) for i in range(11, -2, -1)),
                soups_at_once=13,
                suites={
                    f"pgd20-{norm}": attack(norm, 20) | dict(keep="best")
                    for norm in norms
                },
            ),
        )
    )
