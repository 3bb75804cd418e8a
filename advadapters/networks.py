"""A model as pure functions of one tree, and what is chosen of it after training."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import rng, soups, trees
from advadapters.precision import differ, in_precision
from advadapters.shapes import Images, Logits, PRNGKey, Shaped

Plain = dict[str, Any]  # an ordinary network, see `Network`
Variables = Mapping[str, Any]  # what is trained, see `training.states.branches`
Numbers = Shaped[jax.Array | np.ndarray, " B"] | None  # of the images


class Knob(NamedTuple):
    """Which network is taken out of what was trained.

    Attributes:
      mixture: weights [K] of the domains.
      lam: the lambda that the network is conditioned on, [] or [B]; None if it is not.
      stats: its batch statistics, None for the mixed ones.
    """

    mixture: Any
    lam: Any = None
    stats: Any = None


ENSEMBLE = "ensemble"
# One domain alone, weights mixed, probabilities mixed, conditioned on lambda.
KINDS = ("mode", "soup", ENSEMBLE, "lambda")


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which network of a run a row of results is about; equal where two are one network.

    Attributes:
      kind: one of `KINDS`.
      mixture: {domain: weight}.
      lambda_, width: where the networks of the run differ in them.
      statistics: on how many images batch statistics were estimated anew, if they were.

    Its text is what people call it, such as "0.9 clean + 0.1 linf". Weights are rounded in
    it, so nothing is looked up by it.
    """

    kind: str
    mixture: Mapping[str, float]
    lambda_: float | None = None
    width: float | None = None
    statistics: int | None = None

    FIELDS = ("kind", "mixture", "lambda", "width", "statistics")  # of plain values

    def __hash__(self) -> int:
        numbers = self.lambda_, self.width, self.statistics
        return hash((self.kind, *sorted(self.mixture.items()), *numbers))

    def __str__(self) -> str:
        if self.kind == "lambda":
            numbers = {"lambda": self.lambda_, "width": self.width}
            return ", ".join(f"{k} {v:g}" for k, v in numbers.items() if v is not None)
        parts = {name: weight for name, weight in self.mixture.items() if weight}
        if self.kind == "mode":
            return f"{next(iter(parts))} mode"
        mixed = " + ".join(f"{round(weight, 4):g} {name}" for name, weight in parts.items())
        return f"ensemble of {mixed}" if self.kind == ENSEMBLE else mixed or self.kind

    def plain(self) -> dict[str, Any]:
        """The fields that are not None, as files have them."""
        numbers = self.lambda_, self.width, self.statistics
        values = (self.kind, dict(self.mixture), *numbers)
        pairs = zip(self.FIELDS, values, strict=True)
        return {key: value for key, value in pairs if value is not None}

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> "Identity":
        """The network that plain values are of, other fields among them.

        Older files lack the kind, and mark ensembles.
        """
        mixture = values.get("mixture", {})
        kind = values.get("kind") or (
            "lambda"
            if "lambda" in values
            else ENSEMBLE
            if values.get("ensemble")
            else kind_of(mixture)
        )
        numbers = (values.get(key) for key in ("lambda", "width", "statistics"))
        return cls(kind, mixture, *numbers)


class Case(NamedTuple):
    """A network of a run, and how it is taken out of what was trained.

    Attributes:
      identity: the network by the names that result rows give it.
      knob: how it is taken out.
      network: which of the run's networks: a width, 1 being the full one, or ENSEMBLE.
    """

    identity: Identity
    knob: Knob
    network: Any = 1.0


def mixture_case(
    domains: Sequence[str], mixture: Iterable[SupportsFloat], ensemble: bool = False
) -> Case:
    """The Case of a mixture.

    Args:
      domains: the names of all K domains in order.
      mixture: K weights.
      ensemble: whether probabilities are mixed, not parameters.

    Raises:
      ValueError: the weights are those of no soup, see `soups.check`.
    """
    weights = soups.check(mixture, convex=ensemble)
    named = dict(zip(domains, weights, strict=True))
    knob = Knob(np.array(weights, np.float32))
    if ensemble:
        return Case(Identity(ENSEMBLE, named), knob, ENSEMBLE)
    return Case(Identity(kind_of(named), named), knob)


def kind_of(mixture: Mapping[str, float]) -> str:
    """ "mode" of weights that are one domain alone, "soup" of others."""
    return "mode" if [w for w in mixture.values() if w] == [1.0] else "soup"


class Network(NamedTuple):
    """Pure functions of one model.

    Here plain stands for {"params", "batch_stats"}, and "lambda" ([] or [B]) if the model
    is conditioned on it; index for the numbers [B] of the images, from which what is
    random about each is drawn.

    Attributes:
      init: key -> plain, without lambda.
      at: (variables, Knob) -> plain, of a network as wide as this one.
      apply: (plain, images, key=None, index=None, gate=None) -> logits [B, L]. A key asks
        for training behaviour, but running statistics are never touched. gate: (key,
        keep [B]) of gradients that are dropped, see `models.vit.ViT`, if the model is
        `gated`.
      train: (plain, images, key, index, pooled) -> (logits, new batch_stats). It must be
        called under the mapped axes "views" and "data". Batch statistics are means over
        the devices, and with `pooled` over the views too.
      evaluate: (plain, images) -> logits, in the precision of evaluation, which every
        derivative of it has too, wherever it is taken.
      observe: (plain, images, key, index) -> the new batch_stats of `train`, not pooled,
        in the precision of evaluation.
      coarse: whether apply works in another precision than evaluate.
      patch: side in pixels of the images' square patches; 0 without (whole) patches.
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
    model: Any,
    shape: Sequence[int],
    exact: Any = jnp.float32,
    precision: str = "highest",
    attention: str = "",
    narrow: bool = False,
) -> Network:
    """A linen module as pure functions.

    Args:
      model: a module of `models.MODELS`, or of another package.
      shape: [H, W, C] of its images.
      exact: the type of matrix products in evaluation. Around a pixel value bfloat16 has
        steps as coarse as those of an attack.
      precision: of products in evaluation, see `in_precision`.
      attention: how evaluation computes it, "" for as the model does.
      narrow: whether the variables are those of a wider network, of which this one is a
        corner.
    """
    # Models of other packages need not have all of these fields.
    fields = type(model).__dataclass_fields__.keys()
    changes = {"dtype": exact} | ({"attention": attention} if attention else {})
    changes = {name: value for name, value in changes.items() if name in fields}
    precise = model.clone(**changes)
    single_view, all_views = (
        model.clone(stats_axes=axes) if "stats_axes" in fields else model
        for axes in (("data",), ("views", "data"))
    )
    init = _make_init(precise, shape)  # as evaluation computes, which every platform can

    def apply(
        plain: Plain,
        images: Images,
        key: PRNGKey | None = None,
        index: Numbers = None,
        gate: Any = None,
    ) -> Logits:
        if key is None:
            tree, lam = _split_lambda(plain)
            return model.apply(tree, images, **lam, **_random(None, index, gate))
        logits, _ = train(plain, images, key, index, False, gate)
        return logits

    def train(
        plain: Plain,
        images: Images,
        key: PRNGKey | None,
        index: Numbers,
        pooled: bool,
        gate: Any = None,
    ) -> tuple[Logits, Any]:
        module, random = all_views if pooled else single_view, _random(key, index, gate)
        return _train(module, plain, images, random)

    def evaluate(plain: Plain, images: Images) -> Logits:
        tree, lam = _split_lambda(plain)
        with in_precision(precision):
            return precise.apply(tree, images, **lam)

    def observe(plain: Plain, images: Images, key: PRNGKey | None, index: Numbers) -> Any:
        random = _random(key, index, None)
        with in_precision(precision):
            return _train(single_view.clone(**changes), plain, images, random)[1]

    return Network(
        init,
        _make_at(init, narrow),
        apply,
        train,
        evaluate,
        observe,
        coarse=differ(getattr(model, "dtype", exact), exact, precision),
        patch=patch_of(model, shape[0]),
        gated="gradient_keep" in inspect.signature(model.__call__).parameters,
    )


def _make_init(model: Any, shape: Sequence[int]) -> Callable[[PRNGKey], Plain]:
    """The `init` of a Network, for images of a shape [H, W, C]."""
    lam = {"lam": 0.0} if getattr(model, "film", None) else {}

    @jax.jit  # so that it is traced once, however often its shapes are asked for
    def init(key: PRNGKey) -> Plain:
        leaves = model.init(key, jnp.zeros((1, *shape)), **lam)
        return {"params": leaves["params"], "batch_stats": leaves.get("batch_stats", {})}

    return init


def _make_at(
    init: Callable[[PRNGKey], Plain], narrow: bool
) -> Callable[[Variables, Knob], Plain]:
    """The `at` of a Network; narrow: whether it is a corner of a wider one."""

    def at(variables: Variables, knob: Knob) -> Plain:
        plain = trees.plain(variables, knob.mixture)
        if narrow:
            plain = trees.corner(plain, jax.eval_shape(init, jax.random.key(0)))
        if knob.stats is not None:
            plain = plain | {"batch_stats": knob.stats}
        return plain if knob.lam is None else plain | {"lambda": knob.lam}

    return at


def _split_lambda(plain: Plain) -> tuple[dict, dict]:
    """The variables of a module, and lambda as an argument of it if there is one."""
    tree = {branch: leaves for branch, leaves in plain.items() if branch != "lambda"}
    return tree, {"lam": plain["lambda"]} if "lambda" in plain else {}


def _random(key: PRNGKey | None, index: Numbers, gate: Any) -> dict:
    """The random streams of a pass, as arguments of a module's `apply`."""
    streams, keep = {}, {}
    if key is not None:
        streams["drop_path"] = rng.fold(key, "path")
        streams["dropout"] = rng.fold(key, "dropout")
    if gate is not None:
        streams["gradient_drop"], keep["gradient_keep"] = gate
    return dict(index=index, rngs=streams, **keep)


def _train(model: Any, plain: Plain, images: Images, random: dict) -> tuple[Logits, Any]:
    """(logits, new batch_stats) of a training pass; random: see `_random`."""
    tree, lam = _split_lambda(plain)
    logits, updates = model.apply(
        tree, images, train=True, mutable="batch_stats", **lam, **random
    )
    return logits, updates.get("batch_stats", {})


def ensemble(network: Network) -> Network:
    """The same model with the domains' probabilities mixed, not their weights.

    Its plain tree is {"members": the plain tree of each domain's mode, "weights" [K]}. Its
    logits are log-probabilities, which take a forward pass for each domain. It cannot be
    trained.
    """

    def at(variables: Variables, knob: Knob) -> Plain:
        modes = jnp.eye(len(knob.mixture), dtype=jnp.float32)
        members = [network.at(variables, knob._replace(mixture=mode)) for mode in modes]
        return {"members": members, "weights": knob.mixture}

    def mix_outputs(logits_of: Callable[..., Any]) -> Callable[..., Any]:
        def log_p(plain: Plain, images: Images) -> Logits:
            logits = [logits_of(member, images) for member in plain["members"]]
            weights = plain["weights"][:, None, None]
            log_p = jax.nn.log_softmax(jnp.stack(logits))
            return jax.nn.logsumexp(log_p, axis=0, b=weights)

        return log_p

    return network._replace(
        at=at,
        apply=mix_outputs(network.apply),
        train=None,
        evaluate=mix_outputs(network.evaluate),
        observe=None,
    )


def patch_of(model: Any, side: int) -> int:
    """The side of a model's patches, in pixels of square images before resizing.

    It is 0 where the model has no patches, or where resizing leaves none of whole pixels.
    """
    pixels = getattr(model, "patch", 0) * side
    resized = getattr(model, "resize", 0) or side
    return 0 if pixels % resized else pixels // resized
