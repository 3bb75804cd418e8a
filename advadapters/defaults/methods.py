"""Training methods, each as the keys of the config that it sets."""

from collections.abc import Callable, Mapping
from typing import Any

from advadapters.defaults.attacks import pgd
from advadapters.defaults.sections import Values

Attacks = Mapping[str, Values]  # {norm: settings of PGD}


def view(
    domain: str,
    weight: float,
    attack: str = "",
    losses: dict[str, float] | None = None,
    **more: Any,
) -> Values:
    """A view of the batch, an entry of config.views, with the adapters of one domain.

    Args:
      domain: the name of the domain.
      weight: the factor of the view's loss.
      attack: a name in config.attacks, or several with commas, of which each batch draws
        one by their running robust errors; "" for the images as they are.
      losses: {name: factor}; cross-entropy if it is None.
      **more: other values of the keys below.
    """
    settings = dict(
        mixture={domain: 1.0},  # of the domains' adapters, {name: weight}
        weight=weight,  # of the view's loss
        attack=attack,  # a name in config.attacks, or several with commas; "" is none
        attack_mode="eval",  # or "train"
        attack_against="labels",  # or "predictions" on the clean images
        attack_tricks=(),  # of "ard", "prm" (Mo et al. 2022; PGD and ViTs only) ...
        attack_warmup=0.0,  # ... over so many first epochs; 10 in the paper's code
        losses=losses or {"cross_entropy": 1.0},  # {name: factor}
        reference="",  # the view that paired losses compare with
        alarm="",  # an attack of more steps, to see catastrophic overfitting
    )
    return settings | more


def method(name: str, attacks: Attacks, alpha: float = 0.5, beta: float = 6.0) -> Values:
    """The keys of the config that a training method sets.

    Args:
      name: a method in METHODS or SYSTEMS.
      attacks: {norm: settings of PGD}; methods with one attack take the first.
      alpha: the weight of the clean view in co-training.
      beta: the factor of the KL divergence in TRADES and MART.
    """
    norm = next(iter(attacks), "")
    keys = dict(
        loss="views",  # or "oat", "twins", which have a section of that name
        domains=(),  # names of the kinds of images, in the order of the adapters' rows
        statistics="pooled",
        weight_perturbation=0.0,
        adapters=(),  # names or patterns of what each domain has of its own
        attacks=attacks,
    )
    return keys | (METHODS | SYSTEMS)[name](norm, attacks, alpha, beta)


def _plain_views(**views: Values) -> Values:
    """The keys for views that share everything, as they are all of one domain."""
    return dict(domains=("all",), views=views)


def nominal(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """Nominal training, on clean images only."""
    return dict(domains=("clean",), views={"clean": view("clean", 1.0)}, attacks={})


def adversarial(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """Adversarial training, on attacked images only (Madry et al. 2018)."""
    return dict(
        domains=(norm,),
        views={norm: view(norm, 1.0, norm)},
        attacks={norm: attacks[norm]},
    )


def cotrain(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """Co-training of clean and attacked images, each with its own class token (Rebuffi et
    al. 2023).

    The loss is alpha of the clean loss and 1 - alpha of the attacked one; the default alpha
    is ours.
    """
    return dict(
        domains=("clean", norm),
        adapters=("class_token",),
        views={
            "clean": view("clean", alpha),
            norm: view(norm, 1 - alpha, norm),
        },
        attacks={norm: attacks[norm]},
    )


def four(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """Co-training of clean images and those of every norm, in equal parts, each with its
    own class token.
    """
    part = 1 / (1 + len(attacks))
    return dict(
        domains=("clean", *attacks),
        adapters=("class_token",),
        views={"clean": view("clean", part)}
        | {norm: view(norm, part, norm) for norm in attacks},
    )


def advprop(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """AdvProp (Xie et al. 2020): clean images, and images attacked towards a random class,
    each with its own normalization layers.

    Where there is batch norm, set statistics="separate" too. The published settings, for
    ImageNet, are Linf 4/255 and five steps of 1/255.
    """
    return cotrain(norm, attacks, 0.5, beta) | dict(
        adapters=("norms",),
        attacks={norm: attacks[norm] | dict(target="random")},
    )


def pyramid(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """Clean images and the pyramid attack towards a random class, in train mode, sharing
    all parameters (Herrmann et al. 2022).

    Its radius, half of the first norm's, is ours; the published settings, for ImageNet, are
    3/255 and steps of 0.5/255.
    """
    settings = dict(
        name="pyramid", norm="linf", eps=attacks[norm]["eps"] / 2, steps=5,
        step_size=0.0, target="random", loss="cross_entropy", eps_warmup=0.0,
    )  # fmt: skip
    return _plain_views(
        clean=view("all", 1.0),
        pyramid=view("all", 1.0, "pyramid", attack_mode="train"),
    ) | dict(attacks={"pyramid": settings})


def trades(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """TRADES (Zhang et al. 2019): the clean loss, and the KL divergence of the attacked
    images from the clean predictions, which the attack climbs too.

    The start, uniform in the ball, is ours; with batch norm, statistics="separate" is what
    the original does.
    """
    attacked = view(
        "all", 1.0, norm, {"kl": beta}, reference="clean", attack_against="predictions"
    )
    return _plain_views(clean=view("all", 1.0), **{norm: attacked}) | dict(
        attacks={norm: attacks[norm]}
    )


def mart(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """MART (Wang et al. 2020): boosted cross-entropy of the attacked images, and their KL
    divergence weighted by the mistakes on clean ones.

    What is said of the start and of statistics at `trades` is true here too; the default
    beta is ours.
    """
    terms = {"boosted_cross_entropy": 1.0, "weighted_kl": beta}
    attacked = view("all", 1.0, norm, terms, reference="clean")
    return _plain_views(clean=view("all", 0.0), **{norm: attacked}) | dict(
        attacks={norm: attacks[norm]}
    )


def awp(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """Adversarial training with weight perturbations (AT-AWP, Wu et al. 2020) of their
    published size; TRADES-AWP is `trades` with half of it.
    """
    return adversarial(norm, attacks, alpha, beta) | dict(weight_perturbation=0.01)


def eat(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """E-AT (Croce and Hein 2022): each batch is attacked in one norm, drawn by the running
    robust errors of all.

    Its attack is PGD here; the paper's is APGD, which is stronger, above all in L1.
    """
    return _plain_views(attacked=view("all", 1.0, ",".join(attacks)))


def _single_step(norm: str, attacks: Attacks, attack: Values) -> Values:
    """The keys for one view under a single-step attack, where PGD-10 watches for
    catastrophic overfitting.
    """
    alarm = pgd(norm, attacks[norm]["eps"], 10)
    return dict(
        domains=(norm,),
        views={norm: view(norm, 1.0, "single", alarm="alarm")},
        attacks={"single": attack, "alarm": alarm},
    )


def fgsm_rs(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """FGSM-RS (Wong et al. 2020): one step of 1.25 eps from a random start."""
    eps = attacks[norm]["eps"]
    return _single_step(norm, attacks, pgd(norm, eps, 1, step_size=1.25 * eps))


def n_fgsm(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """N-FGSM (de Jorge et al. 2022): one step from noise of twice eps, not clipped."""
    eps = attacks[norm]["eps"]
    attack = dict(name="n_fgsm", norm=norm, eps=eps, noise=2.0, eps_warmup=0.0)
    return _single_step(norm, attacks, attack)


def fixed(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """The baseline of OAT, which its code calls PGDAT: alpha of the clean loss and
    1 - alpha of the attacked one, with all parameters shared.

    With statistics="separate", each of the two passes takes its own batch statistics, as in
    that code.
    """
    return _plain_views(
        clean=view("all", alpha), **{norm: view("all", 1 - alpha, norm)}
    ) | dict(attacks={norm: attacks[norm]})


# The lambdas that OAT is trained on, from nominal (0) to adversarial training (1).
LAMBDAS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)


def oat(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """Once-for-all adversarial training (OAT, Wang et al. 2020): one network for every
    lambda, with dual batch norm.

    The model has to be conditioned on lambda: config.model.film = film(LAMBDAS). All its
    parameters but the encoding are trained.
    """
    settings = dict(
        lambdas=LAMBDAS,
        zeros=0.0,  # share of lambda 0; 0: an equal part
        attack=norm,
        dual=True,  # norms of their own for lambda 0
        widths=(1.0,),  # growing factors: OATS
        mixed=False,  # no FiLM: lambda mixes the adapters of two domains
    )
    return dict(
        loss="oat",
        oat=settings,
        domains=(),
        views={},
        adapters=("norms",),
        statistics="separate",
        trained=("(?!lambda_encoding/).*",),
        attacks={norm: attacks[norm]},
    )


def oats(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """OATS: OAT over three widths; that each step trains all of them is ours."""
    keys = oat(norm, attacks, alpha, beta)
    return keys | dict(oat=keys["oat"] | dict(widths=(0.5, 0.75, 1.0)))


def twins_at(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """TWINS-AT (Liu et al. 2023): config.start is fine-tuned as a network of two wings."""
    settings = dict(
        weight=1.0,  # of the frozen wing
        attack=norm,
        beta=0.0,  # of TWINS-TRADES
        keep_norms=False,  # freeze scale and offset too: for networks without batch norm
        gradient_norms=False,  # log each wing's
    )
    return dict(
        loss="twins",
        twins=settings,
        domains=(),
        views={},
        adapters=("norms",),
        statistics="separate",
        attacks={norm: attacks[norm]},
    )


def twins_trades(norm: str, attacks: Attacks, alpha: float, beta: float) -> Values:
    """TWINS-TRADES: `twins_at` with the loss of TRADES."""
    keys = twins_at(norm, attacks, alpha, beta)
    return keys | dict(twins=keys["twins"] | dict(beta=beta))


# (first norm, attacks, alpha, beta) -> keys of the config; `method` explains them.
Method = Callable[[str, Attacks, float, float], Values]
METHODS: dict[str, Method] = {
    function.__name__: function
    for function in (
        cotrain, nominal, adversarial, four, advprop, pyramid, trades, mart, awp, eat,
        fgsm_rs, n_fgsm,
    )
}  # fmt: skip
# These ask more of a config: a model conditioned on lambda, a network to start from.
SYSTEMS: dict[str, Method] = {
    function.__name__: function for function in (fixed, oat, oats, twins_at, twins_trades)
}
