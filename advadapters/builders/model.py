"""config.model -> networks."""

from typing import Any, NamedTuple

import jax

from advadapters import schema, trees
from advadapters.builders import methods
from advadapters.errors import UsageError
from advadapters.models import MODELS, added, attention, film, layers
from advadapters.networks import make_network
from advadapters.precision import PRECISIONS
from advadapters.training import states

# How the fields are read that hold more than a word or a number.
SPECIAL = {
    "added": lambda c: read_added(c.sections("added")),
    "film": lambda c: read_film(c.section("film")),
    "dtype": lambda c: layers.DTYPES[c.choice("dtype", layers.DTYPES)],
}


def read_exact(c):
    """dtype and precision of config.evaluation, as keywords of `make_network`."""
    exact = layers.DTYPES[c.choice("dtype", layers.DTYPES)]
    return dict(exact=exact, precision=c.choice("precision", PRECISIONS))


def read_model(c, data, classes, exact, platform):
    """config.model -> Widths; exact: see `read_exact`, platform: `meshes.platform`."""
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
        mean=read_channels(c, "mean", data.channels),
        std=read_channels(c, "std", data.channels),
        **settings,
    )
    shape = (data.image_size, data.image_size, data.channels)
    widths = Widths(model, shape, exact)
    if getattr(model, "added", ()):
        check_targets(model, widths.make())
    return widths


class Widths(NamedTuple):
    """A model of which narrower ones can be made; see `networks.make_network`."""

    model: Any
    shape: tuple[int, ...]
    exact: dict

    @property
    def film(self):
        """How the model is conditioned on lambda, or None."""
        return getattr(self.model, "film", None)

    def make(self, width=1.0):
        """The network of a width; raises UsageError if it cannot be made narrower."""
        if width == 1:
            return make_network(self.model, self.shape, **self.exact)
        if not getattr(self.model, "scales", False):
            raise UsageError("config.oat.widths below 1 need a convolutional network")
        model = self.model.clone(size=self.model.size.scaled(width))
        return make_network(model, self.shape, **self.exact, narrow=True)


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
    for one in getattr(model, "added", ()):
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


def check_patterns(network, chosen):
    """Raises UsageError if one of the {key: patterns} matches no parameter."""
    params = jax.eval_shape(network.init, jax.random.key(0))["params"]
    for where, patterns in chosen.items():
        try:
            trees.select(trees.flatten(params), patterns)
            if where == "config.adapters":
                states.need_whole_loras(params, trees.split(params, patterns)[1])
        except trees.PatternError as error:
            raise UsageError(f"{where}: {error}") from None
