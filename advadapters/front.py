"""The front door from Python: a trained run, its networks, and what people do with them.

    import advadapters as aa

    run = aa.load("runs/fashion")
    soup = run.soup(clean=0.3, linf=0.7)
    soup.predict(images)

Everything here is exported from `advadapters` itself. Opening a run needs neither the
images nor the machine that it was trained on.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import attacks, configs, defaults, losses, networks, soups
from advadapters.attacks import checks
from advadapters.builders.views import read_fixed
from advadapters.data.splits import ArraySplit
from advadapters.errors import UsageError
from advadapters.evaluation import tables
from advadapters.evaluation.rows import Row
from advadapters.exports.writing import Exportable
from advadapters.pixels import to_float
from advadapters.runs import evaluating, exporting, opening, training
from advadapters.runs.context import OpenRun
from advadapters.sections import Section
from advadapters.shapes import Float, HostImages, Int, Logits, LogitsFn

BATCH = 256  # images that a Classifier looks at in one call of its program

# What people give: arrays, or nested lists of numbers. They are checked by hand, since a
# wrong kind or size should raise a UsageError that says what would be right.
ImagesLike = Any
LabelsLike = Any


class Classifier:
    """One ordinary network, which makes logits of images.

    Images are [B, H, W, C], uint8 or floats in [0, 1], of the size that the network was
    trained for. With one channel they may also be [B, H, W]. The network normalises them.

    Attributes:
      params: the parameters, in nested dicts of arrays as flax takes them.
      batch_stats: the running statistics of batch norm, {} where there are none.
      classes: the names of the classes, or their numbers as text.
      shape: (H, W, C) of an image.
      name: what tables call this network, such as "0.3 clean + 0.7 linf".
      logits_fn: a pure function of float images, for attacks and for `jax.jit`.
    """

    def __init__(
        self,
        evaluate: Callable[[networks.Plain, Any], Logits],
        plain: networks.Plain,
        about: Mapping[str, Any],
        opened: OpenRun,
    ) -> None:
        # `about` is what `exporting.describe` says of the network, `opened` is its run.
        self.shape, self.classes = tuple(about["image"]), tuple(about["classes"])
        self.name = about["name"]
        self.params = plain.get("params", {})
        self.batch_stats = plain.get("batch_stats", {})
        self.logits_fn = jax.tree_util.Partial(evaluate, plain)
        self._about, self._opened = about, opened
        self._jitted = jax.jit(lambda logits_fn, images: logits_fn(images))

    def __repr__(self) -> str:
        side, classes = "x".join(map(str, self.shape)), len(self.classes)
        return f"Classifier({self.name!r}, images {side}, {classes} classes)"

    def __call__(self, images: ImagesLike) -> Float[jax.Array, "B L"]:
        """The logits. Raises UsageError for images of another kind or size."""
        images = self._read(images)
        return jnp.concatenate(
            [self._logits(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        )

    def predict(self, images: ImagesLike) -> Int[np.ndarray, " B"]:
        """The number of the likeliest class of each image."""
        return np.asarray(jnp.argmax(self(images), axis=-1))

    def accuracy(self, images: ImagesLike, labels: LabelsLike) -> float:
        """The share of the images whose label has the largest logit.

        labels: whole numbers [B].
        """
        images, labels = checks.inputs(self._read(images), labels)
        checks.check_classes(labels, len(self.classes))
        return float(np.mean(~losses.misclassified(self(images), labels)))

    def export(self, path: str | os.PathLike) -> None:
        """Writes the network to one file that needs no more than JAX to run.

        path: that of a file .stablehlo, which `load_exported` reads on CPUs, GPUs and TPUs.
        """
        evaluate, (plain,) = self.logits_fn.func, self.logits_fn.args
        exporting.write_network(Exportable(evaluate, None, plain), path, self._about)

    def save(self, folder: str | os.PathLike, to: str = "timm") -> None:
        """Writes the network as a new folder that another program loads.

        It holds model.safetensors with that program's names, LoRAs merged; config.json;
        and README.md, a model card that says how to load it and what was measured. With a
        name that ends with .npz it is one file of arrays with big_vision's names, which
        timm reads too.

        to: "timm", for timm and transformers together; "transformers", for its own ViT; or
        "torch", for the residual networks of torchvision and RobustBench.

        Raises UsageError for a network that the program's cannot be.
        """
        (plain,) = self.logits_fn.args
        exporting.save(plain, self._about, self._opened, folder, to)

    def _logits(self, images: HostImages) -> Float[jax.Array, "B L"]:
        # A last part of another size would be compiled anew.
        short = 0 if len(images) == BATCH else -len(images) % 8
        padded = np.concatenate([images, np.repeat(images[:1], short, axis=0)])
        return self._jitted(self.logits_fn, to_float(padded))[: len(images)]

    def _read(self, images: ImagesLike) -> HostImages:
        """Images as this network takes them. Raises UsageError for others."""
        images = np.asarray(images)
        if images.ndim == 3 and self.shape[2] == 1:
            images = images[..., None]
        if np.issubdtype(images.dtype, np.floating):
            images = images.astype(np.float32)
        checks.check_images(images)
        if images.shape[1:] != self.shape:
            raise UsageError(
                f"images must be [B, {', '.join(map(str, self.shape))}] for this network, "
                f"got {list(images.shape)}: resize them"
            )
        return images


class Run(NamedTuple):
    """A trained run, see `load`.

    Attributes:
      step: that of the checkpoint.
      classes: the names of the classes, or their numbers as text where they have none.
      opened, variables: what the package itself takes.
    """

    opened: OpenRun
    variables: Any
    step: int
    classes: tuple[str, ...]

    def __repr__(self) -> str:
        domains = ", ".join(self.domains)
        return f"Run({self.path!r}, step {self.step}, domains {domains})"

    @property
    def path(self) -> str:
        """The folder of the run."""
        return str(self.opened.folder)

    @property
    def config(self) -> dict[str, Any]:
        """The config that it was trained with, as plain values."""
        return self.opened.config

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of the domains, to which soups give weights."""
        return tuple(self.opened.run.domains)

    def soup(
        self, weights: Mapping[str, float] | None = None, /, **more: float
    ) -> Classifier:
        """The network at these weights of the domains, which must sum to 1.

        >>> run.soup(clean=0.3, linf=0.7)  # doctest: +SKIP
        Classifier('0.3 clean + 0.7 linf', images 28x28x1, 10 classes)

        Domains that are left out have the weight 0. Weights below 0 or above 1 extrapolate.
        Raises UsageError for unknown domains and other sums.
        """
        if self.opened.run.film:
            raise UsageError("this run goes by lambda: take run.at(0.2), not a soup")
        return self._classifier(self._case({**(weights or {}), **more}))

    def mode(self, domain: str) -> Classifier:
        """The network of one domain alone."""
        return self.soup({domain: 1.0})

    def at(self, lam: float, width: float = 1.0) -> Classifier:
        """The network at a lambda (and width) of a run that is conditioned on it."""
        method = self.opened.run.method
        if "lambda" not in method.numbers:
            raise UsageError("this run is not conditioned on lambda: take run.soup(...)")
        numbers = {"lambda": [float(lam)], "width": [float(width)]}
        return self._classifier(method.cases_at(numbers)[0])

    def evaluate(
        self,
        images: ImagesLike,
        labels: LabelsLike,
        *,
        soups: Sequence[Mapping[str, float] | Sequence[float]] | None = None,
        attacks: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> list[Row]:
        """The accuracy of soups on these images, clean and under attacks.

        Args:
          images: uint8 [B, H, W, C], or floats that are whole multiples of 1/255.
          labels: whole numbers [B].
          soups: weights of the domains, in dicts or in sequences in their order, such as
            `line(11)`; None for those of the run's config.
          attacks: {name: settings}, such as {"pgd20": pgd("linf", 0.1, steps=20)}; None for
            the suites of the run's config, {} for clean images only.

        Returns:
          A `Row` for each soup and suite, such as

              Row('linf mode', 'pgd20', robust_accuracy 0.460 (0.392 to 0.529), 200 images)

          `table` and `plot_tradeoff` take them, and pandas makes a table with a column for
          each value of `pandas.DataFrame([row.plain() for row in rows])`.
        """
        opened = self.opened
        cases = opened.run.evaluation.cases
        if soups is not None:
            cases = [self._case(weights) for weights in soups]
        images, labels = checks.inputs(as_bytes(images), labels)
        checks.check_classes(labels, self.config["model"]["classes"])
        suites = opened.run.evaluation.suites
        if attacks is not None:
            sections = {
                name: Section(f"attacks.{name}", dict(settings))
                for name, settings in attacks.items()
            }
            suites = read_fixed(sections, images.shape[1:])
        split = ArraySplit(images, labels)
        results = evaluating.evaluate(opened, self.variables, split, cases, suites)
        return evaluating.rows(
            opened, self.variables, cases, results, self.step, attacked=suites
        )

    def export(self, path: str | os.PathLike, width: float = 1.0) -> None:
        """Writes all soups to one file: a network with the mixture as an input.

        A run of one domain is a fixed network, as a soup is, see `Classifier.export`. A run
        that is conditioned on lambda is a network with lambda as an input.

        path: that of a file .stablehlo, which `load_exported` reads on CPUs, GPUs and TPUs.
        It needs no more than JAX. width: that of the networks, of a run with several.
        """
        exporting.write(self.opened, self.variables, self.step, path, width=width)

    def _case(self, weights: Mapping[str, float] | Sequence[float]) -> networks.Case:
        """The network of these weights. Raises UsageError for those of no soup."""
        names = self.domains
        if not isinstance(weights, Mapping):
            if len(weights) != len(names):
                raise UsageError(
                    f"soup {tuple(weights)}: one weight for each of {', '.join(names)}"
                )
            weights = dict(zip(names, weights, strict=True))
        try:
            return networks.mixture_case(names, soups.weights_of(weights, names))
        except ValueError as error:
            raise UsageError(f"soup {weights}: {error}") from None

    def _classifier(self, case: networks.Case) -> Classifier:
        network = self.opened.run.networks[case.network]
        plain = jax.jit(network.at)(self.variables, case.knob)
        about = exporting.describe(self.opened, self.step, case)
        return Classifier(network.evaluate, plain, about, self.opened)


def as_bytes(images: ImagesLike) -> np.ndarray:
    """Images as uint8. Raises UsageError for floats between the 256 levels."""
    images = np.asarray(images)
    if not np.issubdtype(images.dtype, np.floating):
        return images
    levels = np.round(np.float64(images) * 255)
    if not (np.abs(np.float64(images) * 255 - levels) < 1e-3).all():
        raise UsageError(
            "evaluate takes uint8 images, or floats that are whole multiples of 1/255: "
            "round them, or call a Classifier and `autoattack`, which take any in [0, 1]"
        )
    return levels.clip(0, 255).astype(np.uint8)


def load(path: str | os.PathLike, step: str | int = "latest") -> Run:
    """A trained run from its folder.

    It reads the averaged parameters, but neither images nor what only training needs.
    Raises UsageError where there is no run.

    step: "latest", "best" or the number of a checkpoint.
    """
    opened = opening.open_trained(os.fspath(path), images=False)
    variables, number = opening.restore_variables(opened, str(step))
    names = opened.run.data.source.names
    classes = names or map(str, range(opened.config["model"]["classes"]))
    return Run(opened, variables, number, tuple(classes))


def config(name: str, **changes: Any) -> dict[str, Any]:
    """A config as plain values, from a file or by the name of one in the package.

    >>> config("digits:nominal", epochs=5)["epochs"]
    5.0

    Raises UsageError for a name, key or type that does not exist.

    changes: values of keys. Inner keys have dots, as in `**{"optimizer.base_lr": 1e-3}`.
    """
    settings, _ = configs.parse([f"--config={name}"], {})
    configs.change(settings, changes)
    return settings.to_dict()


def train(config: Mapping[str, Any], workdir: str | os.PathLike) -> Run:
    """Trains a config in a folder, or goes on there, as `advadapters train` does."""
    training.train(opening.open_run(dict(config), os.fspath(workdir)))
    return load(workdir)


def autoattack(
    network: Classifier | LogitsFn,
    images: ImagesLike,
    labels: LabelsLike,
    *,
    norm: str,
    eps: float,
    seed: int = 0,
    **settings: Any,
) -> attacks.Report:
    """AutoAttack on a Classifier or any `logits_fn`.

    It takes the settings of `advadapters.attacks.autoattack`, and a seed in place of the
    key.
    """
    logits_fn = network.logits_fn if isinstance(network, Classifier) else network
    read = network._read if isinstance(network, Classifier) else np.asarray
    key = jax.random.key(seed)
    return attacks.autoattack(
        logits_fn, read(images), labels, key, norm=norm, eps=eps, **settings
    )


def line(count: int, low: float = 0.0, high: float = 1.0) -> list[tuple[float, float]]:
    """`count` soups of two domains, from the first alone to the second alone.

    low, high: the weights of the second domain at the ends. Those below 0 or above 1
    extrapolate.

    >>> line(3)
    [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    """
    if count < 2:
        raise UsageError(f"a line has 2 soups at least, got {count}")
    steps = np.linspace(low, high, count).round(9).tolist()
    return [(round(1 - weight, 9), weight) for weight in steps]


def pgd(norm: str, eps: float, steps: int = 20, **settings: Any) -> dict[str, Any]:
    """Settings for `Run.evaluate` of a PGD that keeps the best iterate."""
    return defaults.evaluation_pgd(norm, float(eps), steps) | settings


def table(rows: Sequence[Row]) -> str:
    """Rows of `Run.evaluate` as a Markdown table, in percent with 95% intervals."""
    return tables.results_table(rows)


def plot_tradeoff(rows: Sequence[Row], suite: str = "", ax: Any = None) -> Any:
    """Draws robust against clean accuracy with intervals.

    Args:
      rows: those of `Run.evaluate`.
      suite: which robust accuracy, the first one of the rows by default.
      ax: matplotlib's axes to draw on, new ones by default.

    Returns:
      The axes.
    """
    robust = [row.suite for row in rows if row.suite != "clean"]
    if not robust or (suite and suite not in robust):
        known = ", ".join(dict.fromkeys(robust)) or "those on clean images only"
        raise UsageError(f"no rows of {suite or 'an attack'}; there are: {known}")
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.figure(figsize=(5.5, 4.5), layout="constrained").subplots()
    tables.draw_against(ax, rows, suite or robust[0], "C0")
    return ax
