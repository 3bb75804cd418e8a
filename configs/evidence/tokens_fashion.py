"""Claims about one network with four class tokens against four networks, on Fashion-MNIST.

Paper: none; the claims are ours. Four networks are seasoned as in Croce et al., "Seasoning
  Model Soups" (CVPR 2023); one network with a class token for each threat is co-trained as
  in Rebuffi, Croce and Gowal, "Revisiting adapters with adversarial training" (ICLR 2023).
  Both are given the same images, attacks and epochs of the first network. Network, data,
  radii, steps and rates are ours, those of season_fashion.py, and so are the margins.
Command: advadapters study --config=configs/evidence/tokens_fashion.py
    --workdir=runs/evidence/tokens_fashion --minutes=20 --ledger=docs/ledger.jsonl
Data: 30,000 training images of Fashion-MNIST (Debian's package dataset-fashion-mnist), a
  fixed draw of the 54,000 that are not held out; 5,000 test images.
Variants: tokens (default: one network, clean, linf, l2 and l1 tokens), linf, and l2, l1,
  nominal (fine-tuned from linf).
Cost: see docs/evidence.md. Expected: docs/evidence.md.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = {"linf": 0.1, "l2": 1.5, "l1": 5.0}
SEASONED = (*EPS, "nominal")
VARIANTS = ("tokens", *SEASONED)


def get_config(name=""):
    name = variant(name, VARIANTS)
    first = name in ("tokens", "linf")
    model = defaults.model("vit", "32x3x128x4", patch=7)
    config = defaults.fashion(model, train_images=30_000, test_images=5_000)
    config.epochs = 8.0 if first else 2.0
    config.optimizer.base_lr = 4e-3 if first else 2e-3
    config.optimizer.warmup_epochs = 1.0 if first else 0.2
    attacks = {norm: defaults.pgd(norm, eps, steps=3) for norm, eps in EPS.items()}
    if name == "tokens":
        config.update(defaults.method("four", attacks))
    elif name == "nominal":
        config.update(defaults.method("nominal", {}))
    else:
        config.update(defaults.method("adversarial", {name: attacks[name]}))
    if not first:
        config.start.workdir = "linf"  # of the same seed
    config.evaluation.soup_weights = (1.0,)
    config.evaluation.suites = {
        f"pgd20_{norm}": defaults.evaluation_pgd(norm, eps, steps=20)
        for norm, eps in EPS.items()
    }
    return config


EQUAL = "linf=1/3,l2=1/3,l1=1/3"


def networks(clean):
    """The four networks and the equal soup of the robust ones, clean: the fourth's name."""
    return tuple(f"{name}=1" for name in (*EPS, clean)) + (EQUAL,)


def pair(network, suite, clean=""):
    """One of the tokens' networks and the same of the seasoned ones."""
    seasoned = clean or network
    return (
        ("tokens", network, f"all:{suite}"),
        ("seasoned", seasoned, f"all:{suite}"),
    )


EXPERIMENT = dict(
    paper="Our own question: one network with four class tokens against four networks that "
    'were seasoned as in Croce et al., "Seasoning Model Soups" (CVPR 2023)',
    data="Fashion-MNIST, 30,000 training and 5,000 test images, Linf 0.1, L2 1.5, L1 5",
    variants=(*SEASONED, "tokens"),
    seeds=2,
    soups={"seasoned": dict(of=SEASONED, weights=(1.0,))},
    evaluations={
        "all": {
            "tokens": dict(mixture=networks("clean")),
            "seasoned": dict(mixture=networks("nominal")),
        }
    },
    claims=(
        dict(
            id="each-threat",
            sentence="Each token's network is as robust to its threat as the seasoned "
            "network that was trained for it alone, or at most 5 points less",
            place="ours",
            test="more",
            margin=-0.05,
            rows=tuple(pair(f"{norm}=1", f"pgd20_{norm}") for norm in EPS),
        ),
        dict(
            id="clean",
            sentence="The clean token's network is as accurate as the network that was "
            "fine-tuned to clean images, or better",
            place="ours",
            test="more",
            rows=(pair("clean=1", "clean", "nominal=1"),),
        ),
        dict(
            id="union",
            sentence="The equal soup of the three robust tokens resists the union of the "
            "three attacks at least as well as the equal soup of the three networks, or at "
            "most 5 points less",
            place="ours",
            test="more",
            margin=-0.05,
            rows=(pair(EQUAL, "union"),),
        ),
    ),
)
