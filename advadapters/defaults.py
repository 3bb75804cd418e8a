"""Where configs start from: every key with a value, and the methods as views.

A config file calls `config()`, changes what its experiment changes, and adds the
result of `method(...)`. Values are plain, so that all can be overridden.
"""

import contextlib
from typing import Any

from ml_collections import ConfigDict

from advadapters.errors import UsageError, pick
from advadapters.plugins import load

# The keys of config.start for a network that starts afresh.
NO_START = dict(
    workdir="",  # another run, whose checkpoint is started from; "" is none
    mixture={},  # of its domains, {name: weight}
    fresh=(),  # patterns of parameters that are initialised all the same
    dropped=(),  # patterns of those there that are left behind
    changed=(),  # keys of config.model that are others on purpose
    weights="",  # or an .npz of a torch ResNet
)

# Keys of config.model that change no result of evaluation, but for the rounding of sums.
TRAINING_ONLY = ("attention", "drop_path", "dropout", "dtype", "head_std", "remat")


def config(plugins=()):
    """A ConfigDict with all but data source, model size, method and evaluation suites.

    plugins: modules to import first, which add attacks, models and others.
    """
    load(plugins)
    return ConfigDict(
        dict(
            seed=0,  # of all that is drawn
            plugins=tuple(plugins),  # modules to import first, which add attacks, ...
            epochs=1.0,  # passes over the training images
            batch_size=128,  # images of a step, over all devices
            accumulate=1,  # parts that a batch is worked off in
            sharding="replicated",  # of the training state; or "fsdp": split over devices
            ema_decay=0.9999,  # of the averaged parameters, which are evaluated
            keep_checkpoints=2,  # the newest so many, and the best
            log_every=50,  # steps
            validate_every=0,  # steps; 0 is never
            checkpoint_every=1000,  # steps
            # Batch statistics of all views together, or "separate" for each view, and
            # running ones for each domain.
            statistics="pooled",
            weight_perturbation=0.0,  # size of adversarial weight perturbations (AWP)
            trained=(".*",),  # patterns; what neither these nor adapters match is frozen
            start=dict(
                # Checkpoint: "latest" is looked up when training begins, or a number.
                step="latest",
            )
            | NO_START,
            model=model("vit", ""),
            data=data(),
            optimizer=adamw(),
            evaluation=dict(
                # Images that are read at once; how many fit a call is found out.
                batch_size=100,
                dtype="float32",  # of matrix products in evaluation and its attacks
                # Of float32 products there; "default" is rounded on TPUs and recent GPUs.
                precision="highest",
                # Soups w * (first domain) + (1 - w) * (each other domain).
                soup_weights=tuple(round(0.1 * i, 1) for i in range(11, -2, -1)),
                soups_at_once=13,  # in one call, at most
            ),
        )
    )


def complete(given):
    """A config, nested dicts, with what it leaves out as it is by default.

    So a run keeps what it was trained with, though it was left to defaults, and runs from
    before a key was there are read. What is no section is left to the builders to refuse.
    """
    from advadapters import schema
    from advadapters.attacks import ATTACKS
    from advadapters.training.optim import OPTIMIZERS

    whole = {"plugins": ()} | given
    if isinstance(whole["plugins"], tuple):
        load(whole["plugins"])
    usual, chosen = config().to_dict(), whole.get("model")
    if isinstance(chosen, dict) and {"name", "size"} <= chosen.keys():
        with contextlib.suppress(UsageError):  # the builders know what to say of the name
            usual["model"] = model(chosen["name"], chosen["size"])

    def filled(table, one, **more):
        known = isinstance(one, dict) and one.get("name") in table
        return schema.defaults_of(table[one["name"]]) | more | one if known else one

    for key in ("model", "data", "evaluation", "start"):
        if isinstance(whole.get(key), dict):
            whole[key] = usual[key] | whole[key]
    whole["optimizer"] = filled(OPTIMIZERS, whole.get("optimizer"))
    if isinstance(whole.get("attacks"), dict):
        named = whole["attacks"].items()
        whole["attacks"] = {
            name: filled(ATTACKS, one, eps_warmup=0.0) for name, one in named
        }
    suites = (whole.get("evaluation") or {}).get("suites")
    if isinstance(suites, dict):
        made = {name: filled(ATTACKS, one) for name, one in suites.items()}
        whole["evaluation"] = whole["evaluation"] | {"suites": made}
    return whole


def data():
    """The keys of config.data."""
    return dict(
        source="",  # digits, fashion, folder:DIR, tar:DIR, npz:FILE, idx:DIR or tfds:NAME
        data_dir="",  # of TFDS; "" is its own default
        # The split of TFDS, or the folder or tar, to evaluate on; "" is the usual.
        test_split="",
        classes=(),  # numbers of those that are kept, and numbered anew; () is all
        image_size=224,  # side in pixels
        channels=3,  # 1 for gray
        crop="central",  # or "random_resized"
        crop_ratio=1.0,  # evaluation: crop size / size of the shorter side
        interpolation="area",  # bicubic where it enlarges; or "bicubic", "bilinear"
        validation=0.0,  # fraction of the training images held out
        train_images=0,  # so many of the others, a fixed draw; 0 is all
        judged_on="test",  # what tables are of; or "validation", to choose settings by
        test_images=0,  # so many of these, a fixed draw; 0 is all
        skip_corrupt=False,  # leave out training images that cannot be decoded
        threads=2,  # that decode and crop, in each process
        workers=0,  # processes beside this one that do so; 0: this one does
        flip=True,  # half of the training images, left to right
        pad=0,  # pixels of zero padding before a random crop
        randaugment=dict(
            layers=0,  # operations per image; 0 is off
            magnitude=9.0,  # their mean strength, of 10
            std=0.5,  # its deviation
            fill=(0.5,),  # colour of what comes in from outside, one or one per channel
        ),
        random_erasing=dict(
            probability=0.0,  # of a box of normal noise; 0 is off
            mean=(0.5,),  # of the noise
            std=(0.25,),  # its deviation
        ),
        mixup=0.0,  # alpha of the Beta distribution; 0 is off
        cutmix=0.0,  # alpha of the Beta distribution; 0 is off
        mix_probability=1.0,  # share of batches that mixup and cutmix touch
        label_smoothing=0.0,  # share of the label that goes to all classes alike
    )


def digits(model):
    """`config` for a short run on scikit-learn's digits, 337 steps; model: see `model`."""
    made: Any = config()
    made.epochs = 30.0
    made.ema_decay = 0.99
    made.checkpoint_every = 200
    made.model = model
    made.model.mean = made.model.std = (0.5,)
    made.data.update(source="digits", image_size=8, channels=1, flip=False)
    made.optimizer.update(base_lr=4e-3, clip_norm=1.0)
    made.evaluation.batch_size = 120
    return made


def model(name, size, **more):
    """The keys of config.model for a row of `advadapters.models.MODELS`.

    size: a name in the model's table, or its numbers (see its `read_size`). Settings of its
    own are those that its fields are annotated as, with their defaults.
    """
    from advadapters import schema
    from advadapters.models import MODELS

    module = pick(MODELS, name, "config.model.name")
    own = {k: v for k, v in schema.defaults_of(module).items() if k != "dtype"}
    common = dict(
        name=name,  # in advadapters.models.MODELS
        size=size,  # a name in the model's table, or its numbers
        classes=10,  # of the data
        mean=(0.5, 0.5, 0.5),  # of each channel, taken off inside the model
        std=(0.5, 0.5, 0.5),  # of each channel, divided by inside the model
    )
    special = dict(
        added={},  # {name: added(...)}: LoRA and others
        film={},  # or film(...): the network is conditioned on lambda
        dtype="float32",  # of matrix products; or "bfloat16"
    )
    own |= {k: v for k, v in special.items() if k in module.__dataclass_fields__}
    if getattr(module, "scales", False):
        own |= dict(width=1.0)  # factor of all channels, at most 1
    return common | own | more


def added(kind, targets, rank, scale=1.0):
    """An entry of config.model.added: see `advadapters.models.added`.

    Its modules' parameters are at LAYER_NAME/..., NAME being the entry's key.
    """
    return dict(kind=kind, targets=targets, rank=rank, scale=scale)


# Ways to fine-tune a ViT: what is added to which layers, or patterns of what is trained.
ATTENTION = (".*/q", ".*/k", ".*/v", ".*/proj")
MLP = (".*/fc1", ".*/fc2")
ADDED = {
    "lnlora": ("lnlora", ATTENTION + MLP),  # Yuan et al. 2024, all linear maps
    "lora": ("lora", ATTENTION + MLP),
    "lora_qv": ("lora", (".*/q", ".*/v")),  # as LoRA was first used (Hu et al. 2021)
    "lnlora_attention": ("lnlora", ATTENTION),
    "lnlora_mlp": ("lnlora", MLP),
    "bottleneck": ("bottleneck", (".*/proj", ".*/fc2")),
    "scale_shift": ("scale_shift", (".*/qkv", ".*/proj", ".*/fc1", ".*/fc2")),
}
TRAINED = {"bitfit": (".*bias",), "linear_probe": ("head/.*",), "full": (".*",)}
FINE_TUNING = (*ADDED, *TRAINED)


def fine_tuning(name, rank, workdir):
    """The keys of the config that a way of fine-tuning (in FINE_TUNING) sets.

    What is added is named "lora" and trained together with the head. workdir: of the run
    to start from.
    """
    if name in TRAINED:
        return dict(start=dict(workdir=workdir), trained=TRAINED[name])
    kind, targets = ADDED[name]
    return dict(
        model=dict(added={"lora": added(kind, targets, rank)}),
        start=dict(workdir=workdir, fresh=(".*_lora/.*",)),
        trained=(".*_lora/.*", "head/.*"),
    )


def film(lambdas, encoding="random", size=128, center=0.0):
    """The keys of config.model.film: see `advadapters.models.film.Film`."""
    return dict(lambdas=lambdas, encoding=encoding, size=size, center=center)


def adamw(**more):
    """The keys of config.optimizer for AdamW."""
    settings = dict(
        name="adamw",  # or "sgd"
        b1=0.9,  # of the gradient's average
        b2=0.95,  # of the squared gradient's average
        weight_decay=0.05,  # per step, times the rate
    )
    return schedule_keys() | settings | more


def sgd(**more):
    """The keys of config.optimizer for SGD with momentum."""
    settings = dict(
        name="sgd",  # or "adamw"
        momentum=0.9,  # of the gradient's average
        weight_decay=5e-4,  # is added to the gradient
    )
    return schedule_keys() | settings | more


def schedule_keys():
    """The keys that all optimizers have."""
    return dict(
        base_lr=1e-3,  # for a batch of 256, scaled linearly
        decayed=(".*kernel",),  # patterns of what weight decay acts on
        warmup_epochs=5.0,  # over which the rate grows from 0
        # ((epoch, factor of the base rate), ...): constant rates from these epochs on,
        # before them the base rate; () is a cosine to 0.
        drops=(),
        clip_norm=0.0,  # global norm; 0 is off
        max_nonfinite=10,  # updates in a row before the run stops
        layers=(),  # patterns of layers in the network's order, for layer_decay
        layer_decay=1.0,  # factor of the rate from one layer to the one before; 1 is off
    )


# For `layers`: embedding, then each block; final norm and head are what is left.
VIT_LAYERS = ("class_token|pos_embed|patch_embed/.*", "blocks_([0-9]+)/.*")


def pgd(norm, eps, steps, **more):
    """Settings of one PGD attack of training, every key: see `attacks.pgd.pgd`."""
    settings = dict(
        name="pgd",  # of the attack
        norm=norm,  # linf, l2 or l1
        eps=eps,  # radius, for pixels in [0, 1]
        steps=steps,
        step_size=0.0,
        random_start=True,
        restarts=1,
        loss="cross_entropy",
        target="",
        keep="last",
        optimizer="steepest",
        eps_warmup=0.0,  # epochs over which radius and steps grow from 0; 0: they do not
    )
    return settings | more


def evaluation_pgd(norm, eps, steps, loss="cross_entropy"):
    """PGD for evaluation, keeping the best iterate.

    Cross-entropy finds more on the digits than the margin (a nominal network keeps 18%
    instead of 23%); on networks with large logits it saturates, and the margin, or
    AutoAttack, is the better judge.
    """
    settings = pgd(norm, eps, steps, loss=loss, keep="best")
    return {name: value for name, value in settings.items() if name != "eps_warmup"}


def view(domain, weight, attack="", losses=None, **more):
    """One view: a single domain's adapters, attacked in evaluation mode or not at all.

    attack: a name in config.attacks, or several with commas, drawn per batch by their
    running robust errors. losses: {name: factor}, by default cross-entropy.
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


def method(name, attacks, alpha=0.5, beta=6.0):
    """The keys of the config that a training method (of METHODS or SYSTEMS) sets.

    attacks: {norm: settings of PGD}; methods with one attack take the first. alpha:
    weight of the clean view in co-training. beta: factor of TRADES' and MART's KL.
    """
    first = next(iter(attacks), "")
    own = dict(
        loss="views",  # or "oat", "twins", which have a section of that name
        domains=(),  # names of the kinds of images, in the order of the adapters' rows
        statistics="pooled",
        weight_perturbation=0.0,
        adapters=(),  # names or patterns of what each domain has of its own
        attacks=attacks,
    )
    return own | (METHODS | SYSTEMS)[name](first, attacks, alpha, beta)


def plain_views(**views):
    """Views that share everything: one domain, named after nothing in particular."""
    return dict(domains=("all",), views=views)


def nominal(first, attacks, alpha, beta):
    """Clean images only."""
    return dict(domains=("clean",), views={"clean": view("clean", 1.0)}, attacks={})


def adversarial(first, attacks, alpha, beta):
    """Attacked images only (Madry et al. 2018)."""
    return dict(
        domains=(first,),
        views={first: view(first, 1.0, first)},
        attacks={first: attacks[first]},
    )


def cotrain(first, attacks, alpha, beta):
    """alpha of the clean loss and 1 - alpha of the attacked one, each with its own class
    token (Rebuffi et al. 2023); the default alpha is ours.
    """
    return dict(
        domains=("clean", first),
        adapters=("class_token",),
        views={
            "clean": view("clean", alpha),
            first: view(first, 1 - alpha, first),
        },
        attacks={first: attacks[first]},
    )


def four(first, attacks, alpha, beta):
    """Clean and every norm, equal parts, a class token each."""
    part = 1 / (1 + len(attacks))
    return dict(
        domains=("clean", *attacks),
        adapters=("class_token",),
        views={"clean": view("clean", part)}
        | {norm: view(norm, part, norm) for norm in attacks},
    )


def advprop(first, attacks, alpha, beta):
    """Clean and attacked towards a random class, each with its own norms (Xie et al.
    2020); where there is batch norm, set statistics="separate" too. Published, for
    ImageNet, are Linf 4/255 and five steps of 1/255.
    """
    return cotrain(first, attacks, 0.5, beta) | dict(
        adapters=("norms",),
        attacks={first: attacks[first] | dict(target="random")},
    )


def pyramid(first, attacks, alpha, beta):
    """Clean and the pyramid attack towards a random class, in train mode, nothing of their
    own (Herrmann et al. 2022). Its eps, half the first norm's, is ours; published, for
    ImageNet, are 3/255 and steps of 0.5/255.
    """
    settings = dict(
        name="pyramid", norm="linf", eps=attacks[first]["eps"] / 2, steps=5,
        step_size=0.0, target="random", loss="cross_entropy", eps_warmup=0.0,
    )  # fmt: skip
    return plain_views(
        clean=view("all", 1.0),
        pyramid=view("all", 1.0, "pyramid", attack_mode="train"),
    ) | dict(attacks={"pyramid": settings})


def trades(first, attacks, alpha, beta):
    """Clean, and KL to the clean predictions, which the attack climbs too (Zhang et al.
    2019). The start, uniform in the ball, is ours; with batch norm, statistics="separate"
    is what the original does.
    """
    attacked = view(
        "all", 1.0, first, {"kl": beta}, reference="clean", attack_against="predictions"
    )
    return plain_views(clean=view("all", 1.0), **{first: attacked}) | dict(
        attacks={first: attacks[first]}
    )


def mart(first, attacks, alpha, beta):
    """Boosted cross-entropy, and KL weighted by the clean mistakes (Wang et al. 2020).

    Start and statistics as for `trades`; the default beta is ours.
    """
    terms = {"boosted_cross_entropy": 1.0, "weighted_kl": beta}
    attacked = view("all", 1.0, first, terms, reference="clean")
    return plain_views(clean=view("all", 0.0), **{first: attacked}) | dict(
        attacks={first: attacks[first]}
    )


def awp(first, attacks, alpha, beta):
    """Adversarial, with weight perturbations (AT-AWP, Wu et al. 2020) of their published
    size; TRADES-AWP is `trades` with half of it.
    """
    return adversarial(first, attacks, alpha, beta) | dict(weight_perturbation=0.01)


def eat(first, attacks, alpha, beta):
    """One norm a batch, drawn by its running robust error (E-AT, Croce and Hein 2022).

    With PGD, where theirs is APGD, which is the stronger above all in L1.
    """
    return plain_views(attacked=view("all", 1.0, ",".join(attacks)))


def single_step(first, attacks, attack):
    """A view under a single-step attack; PGD-10 watches for catastrophic overfitting."""
    many = pgd(first, attacks[first]["eps"], 10)
    return dict(
        domains=(first,),
        views={first: view(first, 1.0, "single", alarm="alarm")},
        attacks={"single": attack, "alarm": many},
    )


def fgsm_rs(first, attacks, alpha, beta):
    """One step of 1.25 eps from a random start (Wong et al. 2020)."""
    eps = attacks[first]["eps"]
    return single_step(first, attacks, pgd(first, eps, 1, step_size=1.25 * eps))


def n_fgsm(first, attacks, alpha, beta):
    """One step from noise of twice eps, not clipped (de Jorge et al. 2022)."""
    eps = attacks[first]["eps"]
    attack = dict(name="n_fgsm", norm=first, eps=eps, noise=2.0, eps_warmup=0.0)
    return single_step(first, attacks, attack)


def fixed(first, attacks, alpha, beta):
    """alpha of the clean loss and 1 - alpha of the attacked one, all shared: the baseline
    of OAT, its code's PGDAT; statistics="separate" takes each pass's own, as there.
    """
    return plain_views(
        clean=view("all", alpha), **{first: view("all", 1 - alpha, first)}
    ) | dict(attacks={first: attacks[first]})


LAMBDAS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)


def oat(first, attacks, alpha, beta) -> dict[str, Any]:
    """One network for every lambda (OAT, Wang et al. 2020), with dual batch norm.

    The model has to be conditioned: config.model.film = film(LAMBDAS). All but its
    encoding is trained.
    """
    settings = dict(
        lambdas=LAMBDAS,
        zeros=0.0,  # share of lambda 0; 0: an equal part
        attack=first,
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
        attacks={first: attacks[first]},
    )


def oats(first, attacks, alpha, beta):
    """OAT over three widths (OATS); the step over all of them is ours."""
    whole = oat(first, attacks, alpha, beta)
    return whole | dict(oat=whole["oat"] | dict(widths=(0.5, 0.75, 1.0)))


def twins_at(first, attacks, alpha, beta) -> dict[str, Any]:
    """TWINS-AT (Liu et al. 2023), fine-tuning config.start with two wings."""
    settings = dict(
        weight=1.0,  # of the frozen wing
        attack=first,
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
        attacks={first: attacks[first]},
    )


def twins_trades(first, attacks, alpha, beta):
    """TWINS-TRADES, see `twins_at`."""
    whole = twins_at(first, attacks, alpha, beta)
    return whole | dict(twins=whole["twins"] | dict(beta=beta))


METHODS = {
    function.__name__: function
    for function in (
        cotrain, nominal, adversarial, four, advprop, pyramid, trades, mart, awp, eat,
        fgsm_rs, n_fgsm,
    )
}  # fmt: skip
# These ask more of a config: a model conditioned on lambda, a network to start from.
SYSTEMS = {
    function.__name__: function for function in (fixed, oat, oats, twins_at, twins_trades)
}
