"""What a training method is: a loss, and the networks that come out of it.

`Method` is all that the step, evaluation and the verbs ask of one. `views.Views`, `oat.OAT`
and `twins.TWINS` are methods; rows of `builders.methods.METHODS` read them of configs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from advadapters import soups
from advadapters.errors import UsageError
from advadapters.flags import Choice
from advadapters.networks import Case, mixture_case
from advadapters.training import radius
from advadapters.training.cases import read_soups


class Check(NamedTuple):
    """Accuracy on held-out images, under the worst of the attacks (none: clean).

    weight: in the score by which the best checkpoint is found. alarm: an attack of more
    steps, or None: see `runs.evaluating.validation`.
    """

    name: str
    weight: float
    case: Case
    attacks: tuple[Callable, ...] = ()
    alarm: Callable | None = None


class Facts(NamedTuple):
    """What of a run a method may make demands on.

    rows: images of a batch that one device has at once, in one part of the accumulation.
    statistics: whether the network has batch norm. separate: whether its statistics are
    kept for each view and domain. scanned: whether its blocks are one stack of parameters.
    patterns: of the adapters. start: a `builders.Start`, None where training starts afresh.
    """

    rows: int
    statistics: bool
    separate: bool
    scanned: bool
    patterns: tuple[str, ...]
    start: Any


@runtime_checkable
class Method(Protocol):
    """A training method. Classes that inherit from it write `domains` and `loss`, and what
    is not as here.

    Attributes:
      widths: of the networks that are trained, as factors, the full one last.
      numbers: the flags of `evaluate` whose numbers choose among the networks, like
        ("lambda",); () where mixtures of the domains do.
    """

    widths: tuple[float, ...] = (1.0,)
    numbers: tuple[str, ...] = ()

    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order of the adapters' rows; those of one width
        stand together, in the order of `widths`."""
        ...

    def loss(self, networks: Mapping[float, Any], axis: str | None = None) -> Callable:
        """loss(variables, batch, key) -> (float32 [], (new statistics, metrics)).

        networks: {width: Network}. axis: name of the mapped axis over devices, if any.
        """
        ...

    def attacks(self) -> tuple[Callable, ...]:
        """Those that training makes images by."""
        return ()

    def running_errors(self) -> dict:
        """{view: float32 [attacks]}: the first running errors of attacks to draw."""
        return {}

    def checks(self) -> list[Check]:
        """What is looked at on held-out images: each domain alone, under all attacks."""
        names, attacks = self.domains(), tuple(map(radius.full, self.attacks()))
        modes = [soups.one_hot(len(names), k) for k in range(len(names))]
        return [
            Check(name, 1.0, mixture_case(names, mode), attacks)
            for name, mode in zip(names, modes, strict=True)
        ]

    def describe(self) -> list[str]:
        """What is trained, in lines for the log."""
        return [f"{type(self).__name__}: {', '.join(self.domains())}"]

    def need(self, facts: Facts) -> None:
        """Raises UsageError where the method and the rest of the run do not go together."""

    def cases(self, weights: Sequence[float]) -> list[Case]:
        """The networks of the final table: lines between the first domain and the others.

        weights: of the first domain. Raises ValueError as `soups.check` does.
        """
        names = self.domains()
        mixtures = dict.fromkeys(soups.lines(len(names), weights))
        return [mixture_case(names, mixture) for mixture in mixtures]

    def cases_at(self, numbers: Mapping[str, Sequence[float]]) -> list[Case]:
        """The networks at {flag: numbers}; all values of a flag where it is left out."""
        raise UsageError("this network is not conditioned on numbers: choose a mixture")

    def read_cases(self, choice: Choice, usual: Sequence[Case]) -> list[Case]:
        """The networks that are chosen; `usual` where none is."""
        numbers = {"lambda": choice.lambda_, "width": choice.width}
        numbers = {flag: values for flag, values in numbers.items() if values}
        if not self.numbers and numbers:
            raise UsageError(
                f"--{next(iter(numbers))}: this network is not conditioned on lambda; "
                "choose by --mixture=..."
            )
        if not self.numbers:
            return read_soups(self.domains(), choice, usual)
        mixed = [flag for flag in ("mixture", "grid", "ensemble") if getattr(choice, flag)]
        if wrong := mixed + [flag for flag in numbers if flag not in self.numbers]:
            ways = " and ".join(f"--{flag}=..." for flag in self.numbers)
            raise UsageError(f"--{wrong[0]}: this network goes by {ways}")
        return self.cases_at(numbers) if numbers else list(usual)


def need_apart(method: Method, facts: Facts) -> None:
    """Raises UsageError where the domains of a method do not differ in what they need."""
    name, domains = type(method).__name__, method.domains()
    if facts.statistics and not facts.separate:
        raise UsageError(
            f"{name} keeps the batch statistics of its domains apart: set "
            "config.statistics='separate'"
        )
    if len(domains) > 1 and not facts.patterns:
        raise UsageError(
            f"{name} has {len(domains)} domains, which differ in config.adapters: "
            "name some, like ('norms',)"
        )


def need_rows(method: Method, facts: Facts, enough: bool, needed: str) -> None:
    """Raises UsageError where a device has not enough rows; needed: what would be."""
    if not enough:
        raise UsageError(
            f"config.batch_size gives {facts.rows} images to each device and part; "
            f"{type(method).__name__} needs {needed}"
        )
