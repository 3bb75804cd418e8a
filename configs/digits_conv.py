"""A small wide residual network on scikit-learn's digits: which norms must be dual?

Paper: Rebuffi, Croce and Gowal, "Revisiting adapters with adversarial training"
  (ICLR 2023) against Xie et al., "Adversarial examples improve image recognition"
  (2020): clean and Linf-attacked images share all convolutions; the variants are what
  they do with the norms. Network, optimizer, schedule, radius, PGD-3 are ours.
Command: advadapters train --config=configs/digits_conv.py --workdir=runs/digits_conv
  or all of them: advadapters study --config=configs/digits_conv.py --workdir=runs/norms
    --variants=batch_shared,batch_dual_affine,batch_dual,layer_shared,layer_dual
Variants: cotrain (default, the same as batch_dual_affine), batch_shared (pooled
  statistics, one scale and offset), batch_dual_affine (pooled statistics, scale and
  offset of each domain), batch_dual (statistics of each domain too, as in AdvProp),
  layer_shared, layer_dual, group_shared, group_dual; and with batch norm the methods
  nominal, adversarial, four, advprop, pyramid, trades, mart, awp, eat, fgsm_rs, n_fgsm
  (see `defaults.METHODS`), each view with its own batch statistics.
Cost: a minute on 2 CPU cores. Expected: the table in docs/results.md.
"""

from advadapters import defaults
from advadapters.configs import variant

EPS = {"linf": 0.12, "l2": 0.7, "l1": 2.5}
# norm, adapters, statistics
NORMS = {
    "cotrain": ("batch", ("norms",), "pooled"),
    "batch_shared": ("batch", (), "pooled"),
    "batch_dual_affine": ("batch", ("norms",), "pooled"),
    "batch_dual": ("batch", ("norms",), "separate"),
    "layer_shared": ("layer", (), "pooled"),
    "layer_dual": ("layer", ("norms",), "pooled"),
    "group_shared": ("group", (), "pooled"),
    "group_dual": ("group", ("norms",), "pooled"),
}
VARIANTS = tuple(NORMS | defaults.METHODS)


def get_config(name=""):
    name = variant(name, VARIANTS)
    dual = ("norms",) if name in ("four", "advprop") else ()
    norm, adapters, statistics = NORMS.get(name, ("batch", dual, "separate"))
    config = defaults.digits(defaults.model("wide_resnet", "10-1", norm=norm))
    attacks = {norm: defaults.pgd(norm, eps, steps=3) for norm, eps in EPS.items()}
    config.update(defaults.method("cotrain" if name in NORMS else name, attacks))
    config.adapters = adapters
    config.statistics = statistics
    config.evaluation.suites = {
        f"pgd20_{norm}": defaults.evaluation_pgd(norm, EPS[norm], steps=20)
        for norm in (EPS if name in ("four", "eat") else ["linf"])
    }
    if name in ("fgsm_rs", "n_fgsm"):  # watched on images held out
        config.validate_every = 100
        config.data.validation = 0.1
    return config
