"""Config -> objects: the only reader of configs; everything below takes arguments."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from advadapters import adapters, losses, methods, soups, trees
from advadapters.attacks import ATTACKS
from advadapters.attacks.pgd import OPTIMIZERS, TARGETS
from advadapters.balls import BALLS
from advadapters.config import Section
from advadapters.data import pipeline, sources
from advadapters.data.augment import make_augment
from advadapters.errors import UsageError, pick
from advadapters.models import MODELS, READ_SIZE, added, film, layers, resnet, vit
from advadapters.networks import Network, make_network, mixture_case
from advadapters.training import oat, optim, state, step, views
from advadapters.training.loop import Every

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
MODES = ("eval", "train")
AGAINST = ("labels", "predictions")
STATISTICS = ("pooled", "separate")


class Data(NamedTuple):
    """Splits and how their images are prepared."""

    train: Any
    validation: Any
    test: Any
    image_size: int
    channels: int
    crop: str
    crop_ratio: float
    threads: int
    augment: Callable


class Evaluation(NamedTuple):
    """What the final table shows; cases: [networks.Case], suites: {name: Attack}."""

    batch_size: int
    cases: list
    at_once: int
    suites: dict


class Start(NamedTuple):
    """Where the first parameters come from: a mixture of another run's checkpoint, or an
    .npz of torch's weights.

    fresh: patterns of parameters that are initialised all the same (another head).
    inputs: {"mean", "std"} of the model, which the weights must have been trained with.
    """

    workdir: str
    step: str
    mixture: dict
    fresh: tuple[str, ...]
    weights: str
    inputs: dict


class Run(NamedTuple):
    """Everything that a config says."""

    seed: int
    steps: int
    batch_size: int
    accumulate: int
    domains: tuple[str, ...]
    patterns: tuple[str, ...]
    trained: tuple[str, ...]
    separate: bool  # batch statistics of each view and domain, not pooled
    start: Start | None
    ema_decay: float
    keep: int
    max_nonfinite: int
    every: Every
    network: Network
    networks: dict  # {width: Network}, the one above at 1
    film: Any  # how the network is conditioned on lambda, or None
    data: Data
    method: Any  # see training.method
    schedule: Callable
    tx: Any
    evaluation: Evaluation


def build(config, mesh):
    """A Run from a config (a nested dict of plain values) for a mesh.

    Opens the data, allocates nothing on the devices, writes nothing. Raises
    UsageError for anything that cannot work.
    """
    with Section("config", config) as c:
        batch_size = c.take("batch_size", int, low=1)
        accumulate = c.take("accumulate", int, low=1)
        need_divisible("config.batch_size", batch_size, accumulate, mesh)
        model = c.section("model")
        classes = model.take("classes", int, low=2)
        with c.section("data") as section:
            data = read_data(section, classes)
        evaluated = c.section("evaluation")
        with model:
            exact = evaluated.choice("dtype", DTYPES)
            widths = read_model(model, data, classes, exact)
        epochs = c.take("epochs", float, above=0)
        epoch = len(data.train) / batch_size
        steps = max(1, round(epochs * epoch))
        with c.section("optimizer") as section:
            max_nonfinite = section.take("max_nonfinite", int, low=1)
            drops = read_drops(section, epochs, epoch)
            schedule, tx, chosen = read_optimizer(section, batch_size, epoch, steps, drops)
        network = widths.make()
        inputs = {key: config["model"][key] for key in ("mean", "std")}
        parameters = read_parameters(c, network, chosen, inputs)
        rows = batch_size // (mesh.size * accumulate)
        method = read_method(c, widths, network, parameters | {"rows": rows}, epoch)
        domains = method.domains()
        with evaluated:
            evaluation = read_evaluation(evaluated, method, mesh)
        run = Run(
            seed=c.take("seed", int, low=0, high=2**32 - 1),
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            domains=domains,
            **parameters,
            ema_decay=c.take("ema_decay", float, low=0.0, high=1.0),
            keep=c.take("keep_checkpoints", int, low=1),
            max_nonfinite=max_nonfinite,
            every=Every(
                log=c.take("log_every", int, low=1),
                validate=c.take("validate_every", int, low=0),
                checkpoint=c.take("checkpoint_every", int, low=1),
            ),
            network=network,
            networks=make_networks(widths, method),
            film=widths.film,
            data=data,
            method=method,
            schedule=schedule,
            tx=tx,
            evaluation=evaluation,
        )
    check_run(run, scanned=config["model"].get("scan", False))
    return run


def read_parameters(c, network, chosen, inputs):
    """The keys about which parameters are what, as fields of Run.

    chosen: further {key: patterns} to check against the network. inputs: see Start.
    """
    patterns = adapters.patterns(c.take("adapters", tuple, of=str))
    trained = c.take("trained", tuple, of=str)
    start = read_start(c.section("start"), inputs)
    fresh = start.fresh if start else ()
    where = {
        "config.adapters": patterns,
        "config.trained": trained,
        "config.start.fresh": fresh,
    }
    check_patterns(network, chosen | where)
    if not patterns and not trained:
        raise UsageError(
            "config.trained=() and config.adapters=() freeze every parameter: name "
            "patterns of those to train, like '.*_lora/.*' and 'head/.*'"
        )
    separate = read_statistics(c, network)
    return dict(patterns=patterns, trained=trained, start=start, separate=separate)


def check_run(run, scanned):
    """Raises UsageError for parts that do not go together."""
    perturbed = isinstance(run.method, views.Views) and run.method.perturbation
    if perturbed and scanned:
        raise UsageError(
            "config.weight_perturbation goes by layer, and with config.model.scan=True all "
            "blocks are one: set scan=False"
        )
    if run.every.validate and not len(run.data.validation):
        raise UsageError(
            "config.validate_every needs held-out images: set config.data.validation "
            "to the fraction of the training images to hold out, or validate_every=0"
        )
    watched = [check.name for check in run.method.checks() if check.alarm]
    if watched and not run.every.validate:
        raise UsageError(
            f"config.views.{watched[0]}.alarm looks at held-out images: set "
            "config.validate_every and config.data.validation, or alarm=''"
        )


def read_method(c, widths, network, parameters, epoch):
    """config.loss and what belongs to it -> a training method."""
    kind = c.choice("loss", ("views", *methods.READ))
    domains = c.take("domains", tuple, of=str)
    attacks = read_attacks(c.sections("attacks"), "config.attacks")
    perturbation = c.take("weight_perturbation", float, low=0.0, high=1.0)
    seen = c.sections("views")
    if kind == "views":
        if widths.film:
            raise UsageError(
                "config.model.film conditions on lambda: set config.loss='oat'"
            )
        read = functools.partial(read_tricks, network=network, epoch=epoch)
        seen = read_views(seen, domains, attacks, read)
        return views.Views(domains, seen, not parameters["separate"], perturbation)
    if domains:
        raise UsageError(f"config.loss={kind!r} names its domains itself: set domains=()")
    method = methods.read(kind, c.take(kind, dict), attacks, widths.film, views=seen)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    methods.check(method, shapes, parameters | {"perturbation": perturbation})
    return method


def make_networks(widths, method):
    """{width: Network} for all widths of the method."""
    return {width: widths.make(width) for width in getattr(method, "widths", (1.0,))}


def need_divisible(name, size, accumulate, mesh):
    """Raises UsageError if a batch does not split over devices (and parts)."""
    if size % (mesh.size * accumulate):
        raise UsageError(
            f"{name}={size} is not divisible by {mesh.size} devices"
            + (f" x {accumulate} accumulated parts" if accumulate > 1 else "")
            + f"; the nearest that is: {nearest(size, mesh.size * accumulate)}"
        )


def nearest(size, factor):
    """The multiple of `factor` nearest to `size`, at least one."""
    return max(1, round(size / factor)) * factor


def read_data(c, classes):
    """config.data -> Data."""
    channels = c.take("channels", int, low=1)
    source = sources.load(
        c.take("source", str),
        channels=channels,
        skip_corrupt=c.take("skip_corrupt", bool),
        data_dir=c.take("data_dir", str),
    )
    sources.check(source, classes, channels)
    fraction = c.take("validation", float, low=0.0, high=0.5)
    train, validation = sources.hold_out(source.train, fraction)
    return Data(
        train=train,
        validation=validation,
        test=source.test,
        image_size=c.take("image_size", int, low=1),
        channels=channels,
        crop=c.choice("crop", pipeline.TRAIN_CROPS),
        crop_ratio=c.take("crop_ratio", float, above=0, high=1),
        threads=c.take("threads", int, low=1),
        augment=make_augment(
            classes,
            flip_horizontal=c.take("flip", bool),
            pad=c.take("pad", int, low=0),
            mixup_alpha=c.take("mixup", float, low=0.0),
            cutmix_alpha=c.take("cutmix", float, low=0.0),
            mix_probability=c.take("mix_probability", float, low=0.0, high=1.0),
            label_smoothing=c.take("label_smoothing", float, low=0.0, high=1.0),
        ),
    )


# How the settings that models have are read from a config; which of them a model has
# is the word of its fields.
MODEL_SETTINGS = {
    "patch": lambda c: c.take("patch", int, low=1),
    "pool": lambda c: c.choice("pool", vit.POOLS),
    "positions": lambda c: c.choice("positions", vit.POSITIONS),
    "drop_path": lambda c: c.take("drop_path", float, low=0.0, high=0.9),
    "dropout": lambda c: c.take("dropout", float, low=0.0, high=0.9),
    "stem": lambda c: c.choice("stem", resnet.STEMS),
    "norm": lambda c: c.choice("norm", layers.NORMS),
    "added": lambda c: read_added(c.sections("added")),
    "prompts": lambda c: c.take("prompts", int, low=0),
    "film": lambda c: read_film(c.section("film")),
    "resize": lambda c: c.take("resize", int, low=0),
    "activation": lambda c: c.choice("activation", layers.ACTIVATIONS),
    "remat": lambda c: c.take("remat", bool),
    "scan": lambda c: c.take("scan", bool),
    "dtype": lambda c: DTYPES[c.choice("dtype", DTYPES)],
}


def read_model(c, data, classes, exact):
    """config.model -> Network; exact: the name of evaluation's type."""
    name = c.choice("name", MODELS)
    module = MODELS[name]
    fields = module.__dataclass_fields__
    settings = {name: read(c) for name, read in MODEL_SETTINGS.items() if name in fields}
    patch, resize = settings.get("patch", 1), settings["resize"]
    if (resize or data.image_size) % patch:
        side = f"data.image_size={data.image_size}"
        side = f"model.resize={resize}" if resize else side
        raise UsageError(f"config.model.patch={patch} does not divide config.{side}")
    size = READ_SIZE[name](c.take("size", str))
    if hasattr(size, "scaled"):
        size = size.scaled(c.take("width", float, above=0, high=1.0))
    model = module(
        size=size,
        classes=classes,
        mean=read_channels(c, "mean", data.channels),
        std=read_channels(c, "std", data.channels),
        **settings,
    )
    shape = (data.image_size, data.image_size, data.channels)
    widths = Widths(model, shape, DTYPES[exact])
    check_targets(model, widths.make())
    return widths


class Widths(NamedTuple):
    """A model of which narrower ones can be made; see `networks.make_network`."""

    model: Any
    shape: tuple[int, ...]
    exact: Any

    @property
    def film(self):
        """How the model is conditioned on lambda, or None."""
        return self.model.film

    def make(self, width=1.0):
        """The network of a width; raises UsageError if it cannot be made narrower."""
        if width == 1:
            return make_network(self.model, self.shape, self.exact)
        if not hasattr(self.model.size, "scaled"):
            raise UsageError("config.oat.widths below 1 need a convolutional network")
        model = self.model.clone(size=self.model.size.scaled(width))
        return make_network(model, self.shape, self.exact, narrow=True)


def read_film(c):
    """config.model.film -> Film, or None if it is empty."""
    if not c.left:
        return None
    with c:
        lambdas = methods.read_lambdas(c, "lambdas")
        size = c.take("size", int, low=1)
        encoding = c.choice("encoding", film.ENCODINGS)
        if encoding != "none" and size < len(lambdas):
            raise UsageError(
                f"{c.name}.size={size} is less than the {len(lambdas)} lambdas, which "
                "need a row each"
            )
        return film.Film(lambdas, encoding, size, c.take("center", float))


def read_added(sections):
    """config.model.added -> (Added, ...)."""
    found = []
    for name, c in sections.items():
        with c:
            found.append(
                added.Added(
                    name=name,
                    kind=c.choice("kind", added.KINDS),
                    targets=c.take("targets", tuple, of=str),
                    rank=c.take("rank", int, low=1),
                    scale=c.take("scale", float),
                )
            )
    return tuple(found)


def check_targets(model, network):
    """Raises UsageError for a target of an added module that is no layer with a kernel."""
    params = jax.eval_shape(network.init, jax.random.key(0))["params"]
    kernels = [path for path in trees.flatten(params) if path.endswith("/kernel")]
    names = [path.removesuffix("/kernel") for path in kernels]
    whole = [name for name in names if name.endswith("/qkv")]
    names += [name.removesuffix("qkv") + part for name in whole for part in "qkv"]
    for one in model.added:
        try:
            trees.select(names, one.targets)
        except trees.PatternError as error:
            raise UsageError(
                f"config.model.added.{one.name}.targets are dense or convolutional "
                f"layers; {str(error).replace('no parameter', 'none')}"
            ) from None


def read_channels(c, key, channels):
    """A tuple of one float per channel."""
    values = c.take(key, tuple, of=float)
    if len(values) != channels:
        raise UsageError(
            f"{c.name}.{key} must be {channels} floats, one per channel, got {values}"
        )
    if key == "std" and min(values) <= 0:
        raise UsageError(f"{c.name}.std must be above 0, got {values}")
    return values


def read_drops(c, epochs, epoch):
    """config.optimizer.drops -> ((step, factor), ...); epoch: steps of one, a float."""
    where, drops = f"{c.name}.drops", c.take("drops", tuple, of=tuple)
    numbers = [x for drop in drops for x in drop]
    if not all(len(drop) == 2 for drop in drops) or not all(
        type(x) in (int, float) and math.isfinite(x) for x in numbers
    ):
        raise UsageError(
            f"{where} must hold pairs (epoch, factor) like ((35, 0.1), (38, 0.01)), got "
            f"{drops!r}"
        )
    starts = [start for start, _ in drops]
    if any(b <= a for a, b in zip([0, *starts], starts, strict=False)):
        raise UsageError(f"{where}: epochs must be above 0 and increasing, got {drops!r}")
    if starts and starts[-1] >= epochs:
        raise UsageError(
            f"{where}: epochs must be below config.epochs={epochs:g}, got {drops!r}: give "
            "earlier ones, more epochs, or () for a cosine"
        )
    if not all(factor > 0 for _, factor in drops):
        raise UsageError(f"{where}: factors must be above 0, got {drops!r}")
    return tuple((round(start * epoch), factor) for start, factor in drops)


def read_optimizer(c, batch_size, epoch, steps, drops):
    """config.optimizer -> (schedule, gradient transformation, {key: patterns}).

    drops: as `optim.schedule` takes them.
    """
    schedule = optim.schedule(
        # The linear scaling rule: rates are given for a batch of 256.
        peak=c.take("base_lr", float, above=0, high=1e6) * batch_size / 256,
        steps=steps,
        warmup_steps=min(round(c.take("warmup_epochs", float, low=0.0) * epoch), steps - 1),
        drops=drops,
    )
    decayed, layers_ = (c.take(key, tuple, of=str) for key in ("decayed", "layers"))
    settings = dict(
        learning_rate=schedule,
        weight_decay=c.take("weight_decay", float, low=0.0),
        decayed=decayed,
        clip_norm=c.take("clip_norm", float, low=0.0),
        layers=layers_,
        layer_decay=c.take("layer_decay", float, above=0, high=1.0),
    )
    if c.choice("name", optim.OPTIMIZERS) == "sgd":
        rule = optim.sgd(momentum=c.take("momentum", float, low=0.0, below=1.0))
    else:
        rule = optim.adam(*(c.take(b, float, low=0.0, below=1.0) for b in ("b1", "b2")))
    tx = optim.make(rule, **settings)
    where = "config.optimizer."
    return schedule, tx, {where + "decayed": decayed, where + "layers": layers_}


def read_attacks(sections, where):
    """{name: settings} -> {name: Attack}."""
    found = {}
    for name, c in sections.items():
        with c:
            found[name] = read_attack(c)
    return found


# How the settings that attacks have are read from a config; which of them an attack
# has is its signature's word.
SETTINGS = {
    "steps": lambda c: c.take("steps", int, low=1),
    "step_size": lambda c: c.take("step_size", float, low=0.0),
    "random_start": lambda c: c.take("random_start", bool),
    "restarts": lambda c: c.take("restarts", int, low=1),
    "loss": lambda c: c.choice("loss", losses.LOSSES),
    "target": lambda c: c.choice("target", TARGETS),
    "keep": lambda c: c.choice("keep", ("last", "best")),
    "optimizer": lambda c: c.choice("optimizer", OPTIMIZERS),
    "noise": lambda c: c.take("noise", float, low=0.0),
    "queries": lambda c: c.take("queries", int, low=1),
}


def read_attack(c):
    """One attack with its settings."""
    function = pick(ATTACKS, c.take("name", str), f"{c.name}.name")
    norm = c.choice("norm", BALLS)
    eps = c.take("eps", float, above=0, high=1 if norm == "linf" else None)
    names = inspect.signature(function).parameters
    only = names["norm"].default
    if only not in (inspect.Parameter.empty, norm):
        raise UsageError(
            f"{c.name}: {function.__name__} has norm {only} only, got {norm!r}"
        )
    settings = {name: read(c) for name, read in SETTINGS.items() if name in names}
    return functools.partial(function, norm=norm, eps=eps, **settings)


def read_views(sections, domains, attacks, read):
    """{name: settings} -> [View]; every domain must be in some view.

    read: (section, attacks of a view) -> the fields of View about its tricks.
    """
    if not domains or len(set(domains)) != len(domains):
        raise UsageError(f"config.domains must be different names, got {domains}")
    if not sections:
        raise UsageError("config.views is empty: training needs at least one view")
    seen = []
    for name, c in sections.items():
        with c:
            view = read_view(name, c, domains, attacks, list(sections))
            seen.append(view._replace(**read(c, view.attacks)))
    if not any(view.weight for view in seen):
        raise UsageError("config.views: every weight is 0, so nothing is trained")
    unused = [
        d for k, d in enumerate(domains) if not any(v.mixture[k] and v.weight for v in seen)
    ]
    if unused:
        raise UsageError(
            f"config.domains has {len(domains)} domains, but no view trains {unused}: "
            "drop them from config.domains or add a view with such a mixture"
        )
    return seen


def read_view(name, c, domains, attacks, names):
    """One view; names: those of all views."""
    mixture = c.take("mixture", dict)
    unknown = [domain for domain in mixture if domain not in domains]
    if unknown or not mixture:
        raise UsageError(
            f"{c.name}.mixture names {unknown or 'nothing'}; config.domains has: "
            + ", ".join(domains)
        )
    weights = [Section(c.name + ".mixture", mixture).take(d, float) for d in mixture]
    if abs(sum(weights) - 1) > 1e-6:
        raise UsageError(f"{c.name}.mixture must sum to 1, got {mixture}")
    drawn = [part for part in c.take("attack", str).split(",") if part]
    alarm = c.take("alarm", str)
    terms = read_losses(c)
    against = c.choice("attack_against", AGAINST)
    if len(set(drawn)) != len(drawn):
        raise UsageError(f"{c.name}.attack names one twice: {','.join(drawn)}")
    if not drawn and (alarm or against != "labels"):
        raise UsageError(
            f"{c.name} has no attack, but attack_against={against!r} and alarm={alarm!r}: "
            "name an attack, or leave them at 'labels' and ''"
        )
    return views.View(
        name=name,
        mixture=tuple(float(mixture.get(domain, 0.0)) for domain in domains),
        weight=c.take("weight", float, low=0.0),
        attacks=tuple(pick(attacks, part, f"{c.name}.attack") for part in drawn),
        train_mode=c.choice("attack_mode", MODES) == "train",
        against=against,
        losses=terms,
        reference=read_reference(c, terms, name, names),
        alarm=pick(attacks, alarm, f"{c.name}.alarm") if alarm else None,
    )


def read_tricks(c, attacks, network, epoch):
    """attack_tricks and attack_warmup of a view, as fields of View.

    epoch: steps in one.
    """
    chosen = c.take("attack_tricks", tuple, of=str)
    warmup = c.take("attack_warmup", float, low=0.0)
    can = {"ard": network.gated, "prm": network.patch > 0}
    for trick in chosen:
        if not pick(can, trick, f"{c.name}.attack_tricks"):
            raise UsageError(
                f"{c.name}.attack_tricks has {trick!r}, which is for vision transformers, "
                "and prm for patches of whole pixels (see config.model.resize): change "
                "config.model, or set attack_tricks=()"
            )
    if bool(chosen) != bool(warmup):
        raise UsageError(
            f"{c.name} has attack_tricks={chosen!r} and attack_warmup={warmup:g} epochs: "
            "tricks are on during the warm-up, so set both, or () and 0.0"
        )
    able = ["vary" in inspect.signature(one.func).parameters for one in attacks]
    if chosen and not (able and all(able)):
        raise UsageError(
            f"{c.name}.attack_tricks={chosen!r} change the steps of pgd, and "
            f"{c.name}.attack is {'another' if able else 'none'}: name one that is pgd, or "
            "set attack_tricks=()"
        )
    return dict(tricks=chosen, warmup=warmup * epoch)


def read_losses(c):
    """((loss, factor), ...) of a view."""
    section = c.section("losses")
    known = losses.TRAINING | losses.PAIRED
    for name in section.left:
        pick(known, name, f"{section.name} key")
    names = list(section.left)
    with section:
        terms = tuple((name, section.take(name, float, above=0)) for name in names)
    if not terms:
        raise UsageError(f"{section.name} is empty; there are: {', '.join(known)}")
    return terms


def read_reference(c, terms, name, names):
    """The number of the view that paired losses compare with, or None."""
    reference = c.take("reference", str)
    paired = [term for term, _ in terms if term in losses.PAIRED]
    others = [other for other in names if other != name]
    if reference and reference not in others or bool(paired) != bool(reference):
        raise UsageError(
            f"{c.name}.losses has {', '.join(paired) or 'no paired loss'} and "
            f"reference={reference!r}: a paired loss compares with another view, name it "
            f"in {c.name}.reference; there are: {', '.join(others) or 'no other views'}"
        )
    return names.index(reference) if reference else None


def read_statistics(c, network):
    """config.statistics -> whether they are separate."""
    separate = c.choice("statistics", STATISTICS) == "separate"
    made = jax.eval_shape(network.init, jax.random.key(0))
    if separate and not made["batch_stats"]:
        raise UsageError(
            "config.statistics='separate' is about batch norm, and this model has none: "
            "set config.statistics='pooled', or a model with norm='batch'"
        )
    return separate


def read_start(c, inputs):
    """config.start -> Start, or None to start afresh; inputs: see Start."""
    with c:
        workdir, step = c.take("workdir", str), c.take("step", str)
        weights_file = c.take("weights", str)
        mixture = c.take("mixture", dict)
        weights = Section(c.name + ".mixture", mixture)
        mixture = {domain: weights.take(domain, float) for domain in mixture}
        fresh = c.take("fresh", tuple, of=str)
    if weights_file and (workdir or mixture):
        raise UsageError(
            f"config.start.weights={weights_file!r} takes the place of a run: leave "
            "config.start.workdir at '' and config.start.mixture at {}"
        )
    start = Start(workdir, step, mixture, fresh, weights_file, inputs)
    return start if workdir or weights_file else None


def read_evaluation(c, method, mesh):
    """config.evaluation -> Evaluation."""
    batch_size = c.take("batch_size", int, low=1)
    need_divisible("config.evaluation.batch_size", batch_size, 1, mesh)
    weights = c.take("soup_weights", tuple, of=float)
    if not weights:
        raise UsageError(f"{c.name}.soup_weights is empty: give weights like (1.0, 0.0)")
    if isinstance(method, oat.OAT):
        cases = [method.case(lam, w) for w in method.widths for lam in method.lambdas]
    else:
        names = method.domains()
        mixtures = dict.fromkeys(soups.lines(len(names), weights))
        cases = [mixture_case(names, mixture) for mixture in mixtures]
    return Evaluation(
        batch_size=batch_size,
        cases=cases,
        at_once=c.take("soups_at_once", int, low=1),
        suites=read_attacks(c.sections("suites"), f"{c.name}.suites"),
    )


def check_patterns(network, chosen):
    """Raises UsageError if one of the {key: patterns} matches no parameter."""
    params = jax.eval_shape(network.init, jax.random.key(0))["params"]
    for where, patterns in chosen.items():
        try:
            trees.select(trees.flatten(params), patterns)
            if where == "config.adapters":
                state.need_whole_loras(params, trees.split(params, patterns)[1])
        except trees.PatternError as error:
            raise UsageError(f"{where}: {error}") from None


def initial_state(run, plain=None):
    """The state before the first step (call it under jit to place it).

    plain: {"params", "batch_stats"} to start from; drawn from the seed if None.
    """
    if plain is None:
        plain = run.network.init(jax.random.fold_in(jax.random.key(run.seed), 0))
    variables = state.branches(
        plain,
        run.patterns,
        len(run.domains),
        run.separate,
        run.method.running_errors(),
        run.trained,
    )
    return state.create(variables, run.tx)


def train_step(run, mesh):
    """The jitted training step of a run."""
    return step.make_step(
        run.method.loss(run.networks, "data"),
        run.data.augment,
        run.tx,
        seed=run.seed,
        ema_decay=run.ema_decay,
        accumulate=run.accumulate,
        mesh=mesh,
    )


def train_batches(run, start):
    """Batches from step `start` to the end, this process's rows."""
    return pipeline.train_batches(
        run.data.train,
        size=run.data.image_size,
        crop=run.data.crop,
        batch_size=run.batch_size,
        seed=run.seed,
        start=start,
        stop=run.steps,
        process=(jax.process_index(), jax.process_count()),
        threads=run.data.threads,
    )


def eval_batches(run, split):
    """Batches of one pass over a split, this process's rows."""
    return pipeline.eval_batches(
        split,
        size=run.data.image_size,
        crop_ratio=run.data.crop_ratio,
        batch_size=run.evaluation.batch_size,
        process=(jax.process_index(), jax.process_count()),
        threads=run.data.threads,
    )
