"""What attacks share: settings, checked before anything is traced, and their outcome."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

import advadapters.convolutions  # noqa: F401, installs its rule
from advadapters import losses, rng, schema
from advadapters.attacks import checks
from advadapters.balls import BALLS, Ball
from advadapters.errors import UsageError, check_word
from advadapters.pixels import to_float
from advadapters.shapes import (
    AnyArray,
    Array,
    Classes,
    Float,
    Images,
    Int,
    Logits,
    LogitsFn,
    Marks,
    Number,
    PRNGKey,
    PRNGKeys,
)

TARGETS = ("", "random", "least_likely")

# Settings that several attacks have, as annotations: see `schema`.
Steps = Annotated[int, schema.Between(low=1), "gradient steps of a start"]
Restarts = Annotated[int, schema.Between(low=1), "independent starts; the best is kept"]
Loss = Annotated[str, schema.OneOf(losses.LOSSES), "what is climbed"]
Target = Annotated[
    str, schema.OneOf(TARGETS), "class to go for, none, random or least_likely"
]


class Outcome(NamedTuple):
    """What one run of an attack leads to.

    points: misclassified where `broken`, else those with the highest loss. forwards: the
    forward (and backward) passes of the whole batch.

    Of a random network: those misclassified in most of the draws made there, in any of
    them where `broken`. The worst of many looks worse than it is: judge on other draws.
    """

    points: Images
    broken: Marks
    forwards: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What one run of an attack is given, whichever attack it is; made by `problem_of`.

    Attributes:
      logits_fn: images -> logits; of a random network, (images, key) -> logits.
      images: float32 in [0, 1], through which no gradient flows.
      labels: class numbers.
      keys: a random key for each image.
      norm: the name of the ball.
      eps: its radius, which may be traced.
      active: the examples that matter; a run may end when all of them are broken.
    """

    logits_fn: LogitsFn
    images: Images
    labels: Classes
    keys: PRNGKeys
    norm: str
    eps: Number
    active: Marks

    @property
    def ball(self) -> Ball:
        """The ball of the norm."""
        return BALLS[self.norm]

    def draws(self, *parts: str | int | Int[Array, ""]) -> PRNGKeys:
        """A key for each image of what these parts name, see `rng.fold`."""
        return jax.vmap(lambda key: rng.fold(key, *parts))(self.keys)


def problem_of(
    logits_fn: LogitsFn,
    images: Images,
    labels: Classes,
    key: PRNGKey | PRNGKeys,
    *,
    norm: str,
    eps: Number,
    active: Marks | None = None,
) -> Problem:
    """The Problem of these images, all of them active by default; key: one, or one each."""
    images = jax.lax.stop_gradient(images)
    active = jnp.ones(images.shape[0], bool) if active is None else active
    keys = rng.per_example(key, images.shape[0])
    return Problem(logits_fn, images, labels, keys, norm, eps, active)


def checked(attack: Callable[..., Images]) -> Callable[..., Images]:
    """The attack, but bad input raises UsageError, a line that says what is allowed.

    Images of uint8 are taken too, and attacked as float32 in [0, 1]. Images and labels
    are looked at where they are not traced; the number of classes, when the network is
    called.
    """

    @functools.wraps(attack)
    def run(
        logits_fn: Callable, images: Any, labels: Any, key: Any, **settings: Any
    ) -> Images:
        checks.check_images(images)
        checks.check_labels(labels, len(images))
        images = to_float(images)
        check_settings(attack, settings, images.shape[1:])
        targets = settings.get("targets")
        if targets is not None:
            checks.check_labels(targets, len(images), "targets")
        try:
            key = rng.per_example(key, len(images))
        except ValueError as error:
            raise UsageError(str(error)) from None

        def network(points: Images) -> Logits:
            logits = logits_fn(points)
            checks.check_logits(logits, len(images))
            checks.check_classes(labels, logits.shape[1])
            if targets is not None:
                checks.check_classes(targets, logits.shape[1], "targets")
            return logits

        return attack(network, images, labels, key, **settings)

    return run


def norms(attack: Callable[..., Images]) -> Collection[str]:
    """The names of the balls that an attack knows: one that is its default, or all."""
    only = inspect.signature(attack).parameters["norm"].default
    return BALLS if only is inspect.Parameter.empty else (only,)


def check_settings(
    attack: Callable[..., Images], settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """Raises UsageError unless all are what an attack on images [H, W, C] may have."""
    if "norm" in settings:
        check_word(norms(attack), settings["norm"], f"norm of {attack.__name__}")
    known = schema.settings_of(attack)
    if settings.get("targets") is not None:
        known |= {"loss": schema.Setting(str, schema.OneOf(losses.TARGETED))}
    for name, value in settings.items():
        if name in known and checks.concrete(value):
            schema.check(name, value, known[name])
    if "eps" in settings and checks.concrete(settings["eps"]):
        norm = settings.get("norm", next(iter(norms(attack))))
        checks.radius(norm, settings["eps"], shape)


def rows_where(
    choose: Marks, new: Float[AnyArray, "B ..."], old: Float[AnyArray, "B ..."]
) -> Float[AnyArray, "B ..."]:
    """Row by row `new` where `choose` [B], else `old`."""
    return jnp.where(choose.reshape(-1, *[1] * (new.ndim - 1)), new, old)
