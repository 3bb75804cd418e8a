"""A small ViT on scikit-learn's 1,797 digits (8x8), on two cores in minutes.

Paper: Rebuffi, Croce and Gowal, "Revisiting adapters with adversarial training"
  (ICLR 2023): clean and Linf-attacked images share every parameter but the class
  token. Network, optimizer, schedule, radii, PGD-3 and the average of parameters are ours,
  chosen to be quick and not trivial.
Command: advadapters train --config=configs/digits.py --workdir=runs/digits
Variants: cotrain (default), nominal, adversarial, four (clean, Linf, L2, L1 tokens),
  advprop, pyramid, trades, mart, awp, eat, fgsm_rs, n_fgsm: see `defaults.METHODS`.
Cost: 3 minutes on 2 CPU cores. Expected: the table in docs/results.md.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = {"linf": 0.12, "l2": 0.7, "l1": 2.5}


def get_config(name=""):
    name = variant(name, defaults.METHODS)
    config = defaults.digits(defaults.model("vit", "64x4x256x4", patch=2))
    config.epochs = 60.0
    attacks = {norm: defaults.pgd(norm, eps, steps=3) for norm, eps in EPS.items()}
    config.update(defaults.method(name, attacks))
    config.evaluation.suites = {
        f"pgd20_{norm}": defaults.evaluation_pgd(norm, EPS[norm], steps=20)
        for norm in (EPS if name in ("four", "eat") else ["linf"])
    }
    if name in ("fgsm_rs", "n_fgsm"):  # watched on images held out
        config.validate_every = 100
        config.data.validation = 0.1
    return config
