"""A model as pure functions of one tree, and what is chosen of it after training."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import rng, soups, trees
from advadapters.precision import differ, in_precision


class Knob(NamedTuple):
    """Which network is taken out of what was trained.

    mixture: weights [K] of the domains. lam: the lambda that the network is conditioned
    on ([] or [B]), None if it is not. stats: its batch statistics, None for the mixed ones.
    """

    mixture: Any
    lam: Any = None
    stats: Any = None


class Case(NamedTuple):
    """A network by the names that result rows give it.

    told: {"kind": one of `KINDS`, "mixture": {domain: weight}}, with "lambda" and "width"
    where there are several, and "statistics" where these were estimated anew, on how many
    images.
    network: which of the run's networks: a width, 1 being the full one, or ENSEMBLE.
    """

    told: dict
    knob: Knob
    network: Any = 1.0


ENSEMBLE = "ensemble"
# One domain alone, weights mixed, probabilities mixed, conditioned on lambda.
KINDS = ("mode", "soup", ENSEMBLE, "lambda")


def mixture_case(domains, mixture, ensemble=False):
    """The Case of weights [K] over the domains; raises ValueError as `soups.check` does."""
    mixture = soups.check(mixture, convex=ensemble)
    told = {"mixture": dict(zip(domains, mixture, strict=True))}
    told = {"kind": ENSEMBLE if ensemble else kind_of(told)} | told
    knob = Knob(np.array(mixture, np.float32))
    return Case(told, knob, ENSEMBLE) if ensemble else Case(told, knob)


def kind_of(told):
    """The kind of a network by its other fields, as rows without one have them."""
    if "lambda" in told:
        return "lambda"
    if told.get("ensemble"):
        return ENSEMBLE
    return "mode" if [w for w in told["mixture"].values() if w] == [1.0] else "soup"


def key_of(told):
    """Which network a result row is of, hashable: equal where two rows are of one.

    Names that are shown are rounded and meant for people; nothing is looked up by them.
    """
    mixture = tuple(sorted(told.get("mixture", {}).items()))
    fields = ("kind", "lambda", "width", "statistics")
    return mixture, *(told.get(field) for field in fields)


class Network(NamedTuple):
    """Pure functions of one model.

    plain stands for {"params", "batch_stats"}, and "lambda" ([] or [B]) if the model is
    conditioned on it; index for the numbers [B] of the images, from which what is random
    about each is drawn.

    init: key -> plain, without lambda.
    at: (variables, Knob) -> plain, of a network as wide as this one.
    apply: (plain, images, key=None, index=None, gate=None) -> logits [B, L]; a key asks for
      training behaviour, but running statistics are never touched. gate: (key, keep [B])
      of gradients that are dropped, see `models.vit.ViT`, if the model is `gated`.
    train: (plain, images, key, index, pooled) -> (logits, new batch_stats); to be called
      under the mapped axes "views" and "data"; batch statistics are means over the
      devices, and if `pooled` over the views too.
    evaluate: (plain, images) -> logits, in the precision of evaluation, which every
      derivative of it has too, wherever it is taken.
    observe: (plain, images, key, index) -> the new batch_stats of `train`, not pooled, in
      the precision of evaluation.
    coarse: whether apply works in another precision than evaluate.
    patch: side in pixels of the images' square patches, 0 where there are none (whole).
    gated: whether apply takes a gate.
    """

    init: Callable
    at: Callable
    apply: Callable
    train: Callable
    evaluate: Callable
    observe: Callable
    coarse: bool
    patch: int
    gated: bool


def make_network(
    model, shape, exact=jnp.float32, precision="highest", attention="", narrow=False
):
    """A linen module as pure functions; shape: [H, W, C] of its images.

    exact: the type of matrix products in evaluation. Around a pixel value bfloat16 has
    steps as coarse as those of an attack. precision: of products in evaluation, see
    `in_precision`. attention: how evaluation computes it, "" as the model does. narrow:
    whether the variables are those of a wider network, of which this one is a corner.
    """
    # Models of other packages need not have all of these fields.
    fields = type(model).__dataclass_fields__.keys()
    changes = {"dtype": exact} | ({"attention": attention} if attention else {})
    changes = {name: value for name, value in changes.items() if name in fields}
    precise = model.clone(**changes)
    own, all_views = (
        model.clone(stats_axes=axes) if "stats_axes" in fields else model
        for axes in (("data",), ("views", "data"))
    )
    film = getattr(model, "film", None)

    @jax.jit  # so that it is traced once, however often its shapes are asked for
    def init(key):
        lam = {"lam": 0.0} if film else {}
        # As evaluation computes, which every platform can.
        made = precise.init(key, jnp.zeros((1, *shape)), **lam)
        return {"params": made["params"], "batch_stats": made.get("batch_stats", {})}

    def at(variables, knob):
        plain = trees.plain(variables, knob.mixture)
        if narrow:
            plain = trees.corner(plain, jax.eval_shape(init, jax.random.key(0)))
        if knob.stats is not None:
            plain = plain | {"batch_stats": knob.stats}
        return plain if knob.lam is None else plain | {"lambda": knob.lam}

    def apply(plain, images, key=None, index=None, gate=None):
        if key is None:
            tree, lam = given(plain)
            return model.apply(tree, images, **lam, **draws(None, index, gate))
        logits, _ = train(plain, images, key, index, False, gate)
        return logits

    def train(plain, images, key, index, pooled, gate=None):
        chosen, random = all_views if pooled else own, draws(key, index, gate)
        return trained(chosen, plain, images, random)

    def evaluate(plain, images):
        tree, lam = given(plain)
        with in_precision(precision):
            return precise.apply(tree, images, **lam)

    def observe(plain, images, key, index):
        random = draws(key, index, None)
        with in_precision(precision):
            return trained(own.clone(**changes), plain, images, random)[1]

    return Network(
        init,
        at,
        apply,
        train,
        evaluate,
        observe,
        coarse=differ(getattr(model, "dtype", exact), exact, precision),
        patch=patch_of(model, shape[0]),
        gated="gradient_keep" in inspect.signature(model.__call__).parameters,
    )


def given(plain):
    """A plain tree as a module's variables, and what else it is told."""
    tree = {branch: leaves for branch, leaves in plain.items() if branch != "lambda"}
    return tree, {"lam": plain["lambda"]} if "lambda" in plain else {}


def draws(key, index, gate):
    """The random streams of a pass, as arguments of a module's `apply`."""
    streams, gated = {}, {}
    if key is not None:
        streams["drop_path"] = rng.fold(key, "path")
        streams["dropout"] = rng.fold(key, "dropout")
    if gate is not None:
        streams["gradient_drop"], gated["gradient_keep"] = gate
    return dict(index=index, rngs=streams, **gated)


def trained(model, plain, images, random):
    """(logits, new batch_stats) of a training pass; random: see `draws`."""
    tree, lam = given(plain)
    logits, changed = model.apply(
        tree, images, train=True, mutable="batch_stats", **lam, **random
    )
    return logits, changed.get("batch_stats", {})


def ensemble(network):
    """The same model with the domains' probabilities mixed, not their weights.

    Its plain is {"members": the plain of each domain's mode, "weights" [K]}, its logits
    are log-probabilities, a forward pass for each domain. It cannot be trained.
    """

    def at(variables, knob):
        modes = jnp.eye(len(knob.mixture), dtype=jnp.float32)
        members = [network.at(variables, knob._replace(mixture=mode)) for mode in modes]
        return {"members": members, "weights": knob.mixture}

    def mixed(logits_of):
        def log_p(plain, images):
            each = [jax.nn.log_softmax(logits_of(one, images)) for one in plain["members"]]
            weights = plain["weights"][:, None, None]
            return jax.nn.logsumexp(jnp.stack(each), axis=0, b=weights)

        return log_p

    return network._replace(
        at=at,
        apply=mixed(network.apply),
        train=None,
        evaluate=mixed(network.evaluate),
        observe=None,
    )


def patch_of(model, side):
    """Side of a model's patches in pixels of square images of this side before resizing.

    0 where it has no patches, or where resizing leaves none of whole pixels.
    """
    pixels = getattr(model, "patch", 0) * side
    resized = getattr(model, "resize", 0) or side
    return 0 if pixels % resized else pixels // resized
