"""Once-for-all adversarial training on digits: one network, every lambda, every width.

Paper: Wang, Chen, Gui, Hu, Liu and Wang, "Once-for-All Adversarial Training: In-Situ
  Tradeoff between Robustness and Accuracy for Free" (NeurIPS 2020): OAT, and OATS over
  widths. Lambdas, encoding, dual batch norm and loss are the paper's code's; network,
  schedule, radius and optimizer are ours, and so are OATS' step over all widths and that
  the parameters' average is evaluated.
Command: advadapters train --config=configs/digits_oat.py --workdir=runs/oat
  then, at any time: advadapters evaluate --workdir=runs/oat --lambda=0,0.2,1
Variants: oat (default), oats (widths 0.5, 0.75, 1), oat_single (one set of norms),
  oat_none (lambda itself instead of a random code: any lambda at test time), fixed_0,
  fixed_10, fixed_20, fixed_30, fixed_40, fixed_100 (a network of its own for one lambda,
  in percent: the baseline), vit (FiLM on the layer norms of a ViT: ours), vit_tokens (no
  FiLM: lambda mixes two class tokens: ours).
Cost: 2 minutes on 2 CPU cores, oats 4. Expected: the table in docs/results.md.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = 0.12
FIXED = {f"fixed_{100 * lam:g}": lam for lam in defaults.LAMBDAS}
VARIANTS = (
    "oat", "oats", "oat_single", "oat_none", *FIXED, "vit", "vit_tokens"
)  # fmt: skip


def get_config(name=""):
    name = variant(name, VARIANTS)
    if name.startswith("vit"):
        config = defaults.digits(defaults.model("vit", "32x3x128x4", patch=2))
    else:
        config = defaults.digits(defaults.model("wide_resnet", "10-1"))
    attacks = {"linf": defaults.pgd("linf", EPS, steps=7)}
    config.evaluation.suites = {
        "pgd20_linf": defaults.evaluation_pgd("linf", EPS, steps=20)
    }
    if name in FIXED:
        fix(config, FIXED[name], attacks)
        return config
    config.update(defaults.method("oats" if name == "oats" else "oat", attacks))
    if name != "vit_tokens":
        config.model.film = defaults.film(
            defaults.LAMBDAS,
            encoding="none" if name == "oat_none" else "random",
            center=float(name == "vit"),
        )
    if name in ("oat_single", "vit"):
        config.oat.dual = False
        config.adapters = ()
    if name == "vit_tokens":
        config.oat.mixed = True
        config.adapters = ("class_token",)
        config.trained = (".*",)
    if name.startswith("vit"):
        config.statistics = "pooled"
    return config


def fix(config, lam, attacks):
    """One network for clean and attacked images, with the weights of one lambda."""
    if lam in (0.0, 1.0):
        config.update(defaults.method("adversarial" if lam else "nominal", attacks))
    else:
        config.update(defaults.method("fixed", attacks, alpha=1 - lam))
    config.statistics = "separate"  # of each pass; there is one running set
