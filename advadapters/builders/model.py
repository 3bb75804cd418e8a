"""config.model -> networks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from advadapters import schema, trees
from advadapters.builders import methods
from advadapters.builders.data import Data
from advadapters.errors import UsageError
from advadapters.models import MODELS, added, attention, film, layers
from advadapters.models.film import Film
from advadapters.networks import Network, make_network
from advadapters.precision import PRECISIONS
from advadapters.sections import Section
from advadapters.training import states

# Readers of the fields of models that hold more than a word or a number.
SPECIAL: dict[str, Callable[[Section], Any]] = {
    "added": lambda c: _read_added(c.sections("added")),
    "film": lambda c: _read_film(c.section("film")),
    "dtype": lambda c: layers.DTYPES[c.choice("dtype", layers.DTYPES)],
}


class Widths(NamedTuple):
    """A model of which narrower ones can be made.

    shape: [H, W, C] of an image. exact: further arguments of `networks.make_network`.
    """

    model: Any
    shape: tuple[int, ...]
    exact: dict[str, Any]

    @property
    def film(self) -> Film | None:
        """How the model is conditioned on lambda, None where it is not."""
        return getattr(self.model, "film", None)

    def make(self, width: float = 1.0) -> Network:
        """The network of a width, a factor; raises UsageError if it cannot be narrower."""
        if width == 1:
            return make_network(self.model, self.shape, **self.exact)
        if not getattr(self.model, "scales", False):
            raise UsageError("config.oat.widths below 1 need a convolutional network")
        model = self.model.clone(size=self.model.size.scaled(width))
        return make_network(model, self.shape, **self.exact, narrow=True)


def read_exact(c: Section) -> dict[str, Any]:
    """Reads dtype and precision of config.evaluation, as keywords of `make_network`."""
    exact = layers.DTYPES[c.choice("dtype", layers.DTYPES)]
    return dict(exact=exact, precision=c.choice("precision", PRECISIONS))


def read_model(
    c: Section, data: Data, classes: int, exact: dict[str, Any], platform: str
) -> Widths:
    """Reads config.model.

    Args:
      c: the section, without the key `classes`.
      data: the images that the model is to take.
      classes: how many the model tells apart.
      exact: how products are computed in evaluation, see `read_exact`.
      platform: what programs are compiled for, see `meshes.platform`.

    Raises:
      UsageError: a setting is wrong, or does not fit the images or another setting.
    """
    name = c.choice("name", MODELS)
    module = MODELS[name]
    fields = module.__dataclass_fields__
    settings = {name: read(c) for name, read in SPECIAL.items() if name in fields}
    for key, setting in schema.settings_of(module).items():
        if key not in SPECIAL:
            settings[key] = schema.read(c, key, setting)
    patch, resize = settings.get("patch", 1), settings.get("resize", 0)
    if (resize or data.image_size) % patch:
        side = f"data.image_size={data.image_size}"
        side = f"model.resize={resize}" if resize else side
        raise UsageError(f"config.model.patch={patch} does not divide config.{side}")
    size = module.read_size(c.take("size", str))
    if getattr(module, "scales", False):
        size = size.scaled(c.take("width", float, above=0, high=1.0))
    if choice := settings.get("attention"):
        dtype, head = settings["dtype"], size.width // size.heads
        settings["attention"] = attention.choose_for_training(choice, platform, dtype, head)
        other = attention.choose_for_evaluation(choice, platform, exact["exact"])
        exact = exact | {"attention": other}
    model = module(
        size=size,
        classes=classes,
        mean=_read_channels(c, "mean", data.channels),
        std=_read_channels(c, "std", data.channels),
        **settings,
    )
    shape = (data.image_size, data.image_size, data.channels)
    widths = Widths(model, shape, exact)
    if getattr(model, "added", ()):
        _check_targets(model, widths.make())
    return widths


def _read_film(c: Section) -> Film | None:
    """Reads config.model.film; None if the section is empty."""
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
        return Film(lambdas, encoding, size, c.take("center", float))


def _read_added(sections: Mapping[str, Section]) -> tuple[added.Added, ...]:
    """Reads config.model.added, the modules that are added to layers."""
    modules = []
    for name, c in sections.items():
        with c:
            modules.append(
                added.Added(
                    name=name,
                    kind=c.choice("kind", added.KINDS),
                    targets=c.take("targets", tuple, of=str),
                    rank=c.take("rank", int, low=1),
                    scale=c.take("scale", float),
                )
            )
    return tuple(modules)


def _check_targets(model: nn.Module, network: Network) -> None:
    """Raises UsageError for a target of an added module that is no layer with a kernel."""
    params = jax.eval_shape(network.init, jax.random.key(0))["params"]
    kernels = [path for path in trees.flatten(params) if path.endswith("/kernel")]
    names = [path.removesuffix("/kernel") for path in kernels]
    whole = [name for name in names if name.endswith("/qkv")]
    names += [name.removesuffix("qkv") + part for name in whole for part in "qkv"]
    for module in getattr(model, "added", ()):
        try:
            trees.select(names, module.targets)
        except trees.PatternError as error:
            raise UsageError(
                f"config.model.added.{module.name}.targets are dense or convolutional "
                f"layers; {str(error).replace('no parameter', 'none')}"
            ) from None


def _read_channels(c: Section, key: str, channels: int) -> tuple[float, ...]:
    """Reads a float for each channel."""
    values = c.take(key, tuple, of=float)
    if len(values) != channels:
        raise UsageError(
            f"{c.name}.{key} must be {channels} floats, one per channel, got {values}"
        )
    if key == "std" and min(values) <= 0:
        raise UsageError(f"{c.name}.std must be above 0, got {values}")
    return values


def check_patterns(network: Network, selections: Mapping[str, Sequence[str]]) -> None:
    """Raises UsageError if a pattern of {key of the config: patterns} matches nothing."""
    params = jax.eval_shape(network.init, jax.random.key(0))["params"]
    for where, patterns in selections.items():
        try:
            trees.select(trees.flatten(params), patterns)
            if where == "config.adapters":
                states.need_whole_loras(params, trees.split(params, patterns)[1])
        except trees.PatternError as error:
            raise UsageError(f"{where}: {error}") from None
