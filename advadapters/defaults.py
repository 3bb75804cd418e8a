"""Where configs start from: every key with a value, and the methods as views.

A config file calls `config()`, changes what its experiment changes, and adds the
result of `method(...)`. Values are plain, so that all can be overridden.
"""

from ml_collections import ConfigDict

METHODS = ("cotrain", "nominal", "adversarial", "four")


def config():
    """A ConfigDict with every key but the data source, the model size and the method."""
    return ConfigDict(
        dict(
            seed=0,
            epochs=1.0,
            batch_size=128,
            accumulate=1,  # parts that a batch is worked off in
            ema_decay=0.9999,
            keep_checkpoints=2,
            log_every=50,  # steps
            validate_every=0,  # steps; 0 is never
            checkpoint_every=1000,  # steps
            model=dict(
                name="vit",
                size="",  # a letter of the size table, or WIDTHxDEPTHxMLPxHEADS
                classes=10,
                patch=16,
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
                pool="tokens",  # or "class"
                positions="learned",  # or "sincos"
                drop_path=0.0,
                remat=False,
                scan=False,
                dtype="float32",  # of matrix products; or "bfloat16"
            ),
            data=dict(
                source="",
                data_dir="",  # of TFDS; "" is its own default
                image_size=224,
                channels=3,
                crop="central",  # or "random_resized"
                crop_ratio=1.0,  # evaluation: crop size / size of the shorter side
                validation=0.0,  # fraction of the training images held out
                skip_corrupt=False,
                threads=2,
                flip=True,
                pad=0,  # pixels of zero padding before a random crop
                mixup=0.0,  # alpha of the Beta distribution; 0 is off
                cutmix=0.0,
                label_smoothing=0.0,
            ),
            optimizer=dict(
                base_lr=1e-3,  # for a batch of 256, scaled linearly
                b1=0.9,
                b2=0.95,
                weight_decay=0.05,
                decayed=(".*kernel",),
                warmup_epochs=5.0,
                clip_norm=0.0,  # global norm; 0 is off
                max_nonfinite=10,  # updates in a row before the run stops
            ),
            evaluation=dict(
                batch_size=100,
                dtype="float32",  # of matrix products in evaluation and its attacks
                # Soups w * (first domain) + (1 - w) * (each other domain).
                soup_weights=tuple(round(0.1 * i, 1) for i in range(11, -2, -1)),
                soups_at_once=13,
            ),
        )
    )


def pgd(norm, eps, steps, **more):
    """Settings of one PGD attack, every key: see `advadapters.attacks.pgd.pgd`."""
    settings = dict(
        name="pgd",
        norm=norm,
        eps=eps,
        steps=steps,
        step_size=0.0,  # 0: min(2.5 / steps, 1) * eps
        random_start=True,
        restarts=1,
        loss="cross_entropy",
        target="",
        keep="last",
        optimizer="steepest",  # or "adam"
    )
    return settings | more


def evaluation_pgd(norm, eps, steps, loss="cross_entropy"):
    """PGD for evaluation, keeping the best iterate.

    Cross-entropy finds more on the digits than the margin (a nominal network keeps 18%
    instead of 23%); on networks with large logits it saturates, and the margin, or
    AutoAttack, is the better judge.
    """
    return pgd(norm, eps, steps, loss=loss, keep="best")


def view(domain, weight, attack=""):
    """One view: a single domain's adapters, attacked in evaluation mode or not at all."""
    return dict(mixture={domain: 1.0}, weight=weight, attack=attack, attack_mode="eval")


def method(name, attacks, alpha=0.5):
    """The keys domains, adapters, views and attacks of a training method.

    attacks: {norm: settings}. "nominal": clean images only; "adversarial": only those
    attacked in the first norm; "cotrain": alpha of the clean loss and 1 - alpha of the
    attacked, each with its own class token; "four": clean and every norm, equal parts.
    """
    first = next(iter(attacks))
    views = {
        "nominal": {"clean": view("clean", 1.0)},
        "adversarial": {first: view(first, 1.0, first)},
        "cotrain": {
            "clean": view("clean", alpha),
            first: view(first, 1 - alpha, first),
        },
        "four": {
            domain: view(
                domain, 1 / (1 + len(attacks)), "" if domain == "clean" else domain
            )
            for domain in ("clean", *attacks)
        },
    }[name]
    return dict(
        domains=tuple(views),
        adapters=("class_token",) if len(views) > 1 else (),
        views=views,
        attacks={norm: attacks[norm] for norm in views if norm in attacks},
    )
