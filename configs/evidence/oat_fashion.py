"""Claims about once-for-all adversarial training, on Fashion-MNIST and two CPU cores.

Paper: Wang, Chen, Gui, Hu, Liu and Wang, "Once-for-All Adversarial Training" (NeurIPS
  2020). Lambdas, encoding, dual batch norm and loss are the paper's code's; network, data,
  radius, steps and rates are ours, without an average of parameters, and so is the margin.
  The base rate was chosen on held-out images with `fixed_20`, among 1e-3, 4e-3, 1.6e-2 and
  6.4e-2 (robust under PGD-5: 44.3, 50.7, 57.1, 57.9; the last two are a tie).
Command: advadapters study --config=configs/evidence/oat_fashion.py
    --workdir=runs/evidence/oat_fashion --minutes=20 --ledger=docs/ledger.jsonl
Data: 10,000 training images of Fashion-MNIST (Debian's package dataset-fashion-mnist) at
  14x14 pixels, a fixed draw of the 54,000 that are not held out; 4,000 test images.
Variants: oat (default), fixed_0, fixed_20, fixed_100 (a network of its own for one lambda,
  in percent).
Cost: see docs/evidence.md. Expected: docs/evidence.md.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = 0.1
FIXED = {"fixed_0": 0.0, "fixed_20": 0.2, "fixed_100": 1.0}
VARIANTS = ("oat", *FIXED)


def get_config(name=""):
    name = variant(name, VARIANTS)
    model = defaults.model("wide_resnet", "10-1")
    config = defaults.fashion(model, train_images=10_000, test_images=4_000)
    config.data.image_size = 14
    config.epochs = 10.0
    config.optimizer.base_lr = 1.6e-2
    config.ema_decay = 0.0
    config.checkpoint_every = 200
    attacks = {"linf": defaults.pgd("linf", EPS, steps=3)}
    lam = FIXED.get(name)
    if lam is None:
        config.update(defaults.method("oat", attacks))
        config.model.film = defaults.film(defaults.LAMBDAS)
    elif lam in (0.0, 1.0):
        config.update(defaults.method("adversarial" if lam else "nominal", attacks))
    else:
        config.update(defaults.method("fixed", attacks, alpha=1 - lam))
    config.statistics = "separate"
    config.evaluation.suites = {
        "pgd20_linf": defaults.evaluation_pgd("linf", EPS, steps=20)
    }
    return config


CLEAN, ROBUST = "clean", "pgd20_linf"


def as_good(lam):
    """The claim that OAT at this lambda is as good as a network of its own."""
    alone = f"fixed_{100 * lam:g}"
    return dict(
        id=f"lambda-{lam:g}",
        sentence=f"At lambda {lam:g} one network for all lambdas is as good as one of its "
        "own, clean and robust, or at most a point worse",
        place="abstract: similar or better than dedicatedly trained models",
        test="more",
        margin=-0.01,
        rows=tuple(
            (("oat", f"lambda={lam:g}", suite), (alone, "", suite))
            for suite in (CLEAN, ROBUST)
        ),
    )


EXPERIMENT = dict(
    paper='Wang et al., "Once-for-All Adversarial Training" (NeurIPS 2020)',
    data="Fashion-MNIST at 14x14 pixels, 10,000 training and 4,000 test images, Linf 0.1",
    at_scale="OAT on CIFAR-10 takes at least 0.51 chip-hours of v5e, and OATS 0.92 "
    "([costs](reproduce.md#what-it-costs)).",
    variants=VARIANTS,
    seeds=2,
    claims=(
        dict(
            id="front",
            sentence="Lambda spans the front: from 0 to 1 clean accuracy falls and robust "
            "accuracy rises",
            place="abstract: in-situ trade-off",
            test="front",
            margin=0.01,
            variant="oat",
            networks=tuple(f"lambda={lam:g}" for lam in defaults.LAMBDAS),
            suites=(CLEAN, ROBUST),
        ),
        *map(as_good, FIXED.values()),
    ),
)
