"""What a training method is: a loss, and the networks that come out of it.

`Method` is all that the step, evaluation and the verbs ask of one. `views.Views`, `oat.OAT`
and `twins.TWINS` are methods; rows of `builders.methods.METHODS` read them of configs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from advadapters import soups
from advadapters.errors import UsageError
from advadapters.flags import Choice
from advadapters.networks import Case, Knob, Network, Variables, mixture_case
from advadapters.shapes import AnyArray, PRNGKey, Scalar, Shaped
from advadapters.training import radius
from advadapters.training.cases import read_soups
from advadapters.training.radius import Attack, TrainingAttack

Batch = Mapping[str, Shaped[AnyArray, "..."]]  # "images", "labels", "index", "step"
Metrics = dict[str, Any]  # {name: float32 []}
# What a loss returns: the loss, and the new statistics with the metrics.
Outcome = tuple[Scalar, tuple[dict[str, Any], Metrics]]
Loss = Callable[[Variables, Batch, PRNGKey], Outcome]


class Check(NamedTuple):
    """Accuracy on held-out images, under the worst of several attacks.

    Attributes:
      name: that of the metric.
      weight: of this accuracy in the score by which the best checkpoint is chosen.
      case: the network that is looked at.
      attacks: those of which the worst counts; the images are clean if there are none.
      alarm: an attack of more steps, or None: see `runs.evaluating.validation`.
    """

    name: str
    weight: float
    case: Case
    attacks: tuple[Attack, ...] = ()
    alarm: Attack | None = None


class Facts(NamedTuple):
    """What a method may demand of the rest of a run.

    Attributes:
      rows: the number of images of a batch that one device has at once, in one part of
        the accumulation.
      statistics: whether the network has batch norm.
      separate: whether its statistics are kept for each view and domain.
      scanned: whether its blocks are one stack of parameters.
      patterns: those of the adapters' paths.
      start: a `builders.Start`, or None where training starts afresh.
    """

    rows: int
    statistics: bool
    separate: bool
    scanned: bool
    patterns: tuple[str, ...]
    start: Any


@runtime_checkable
class Method(Protocol):
    """A training method.

    Classes that inherit from it write `domains` and `loss`, and replace those of the
    others that are not the same for them.

    Attributes:
      widths: those of the networks that are trained, as factors, with the full one last.
      numbers: the flags of `evaluate` whose numbers choose among the networks, such as
        ("lambda",); it is empty where mixtures of the domains choose.
    """

    widths: tuple[float, ...] = (1.0,)
    numbers: tuple[str, ...] = ()

    def domains(self) -> tuple[str, ...]:
        """The names of the domains, in the order of the adapters' rows.

        Those of one width stand together, in the order of `widths`.
        """
        ...

    def loss(self, networks: Mapping[float, Network], axis: str | None = None) -> Loss:
        """Makes loss(variables, batch, key) -> (loss, (new statistics, metrics)).

        Args:
          networks: the network of each width.
          axis: the name of the mapped axis over devices, None outside such a map.
        """
        ...

    def attacks(self) -> tuple[TrainingAttack, ...]:
        """The attacks by which training makes images."""
        return ()

    def running_errors(self) -> dict[str, Any]:
        """For each view that draws its attack, the errors [attacks] that it starts with."""
        return {}

    def checks(self) -> list[Check]:
        """What validation looks at. Here, it is each domain alone under all attacks."""
        names, attacks = self.domains(), tuple(map(radius.full, self.attacks()))
        modes = [soups.one_hot(len(names), k) for k in range(len(names))]
        return [
            Check(name, 1.0, mixture_case(names, mode), attacks)
            for name, mode in zip(names, modes, strict=True)
        ]

    def describe(self) -> list[str]:
        """Says what is trained, in lines for the log."""
        return [f"{type(self).__name__}: {', '.join(self.domains())}"]

    def need(self, facts: Facts) -> None:
        """Raises UsageError where the method and the rest of the run do not go together."""

    def cases(self, weights: Sequence[float]) -> list[Case]:
        """The networks of the final table.

        Here, they are on the lines between the first domain and each other domain.

        Args:
          weights: those of the first domain.

        Raises:
          ValueError: a weight is that of no soup, see `soups.check`.
        """
        names = self.domains()
        mixtures = dict.fromkeys(soups.lines(len(names), weights))
        return [mixture_case(names, mixture) for mixture in mixtures]

    def cases_at(self, numbers: Mapping[str, Sequence[float]]) -> list[Case]:
        """The networks at the numbers of each flag; one that is left out has all values."""
        raise UsageError("this network is not conditioned on numbers: choose a mixture")

    def knob_at(self, lam: Any, width: float) -> Knob:
        """The network for a lambda that may be traced, [], see `networks.Knob`."""
        raise UsageError("this network is not conditioned on lambda: choose a mixture")

    def read_cases(self, choice: Choice, usual: Sequence[Case]) -> list[Case]:
        """The networks that are chosen, or `usual` where none is."""
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
    """Raises UsageError unless there are enough rows for each device.

    Args:
      method: the method that needs them.
      facts: how many rows there are.
      enough: whether these are enough.
      needed: what is needed, to be said in the message.
    """
    if not enough:
        raise UsageError(
            f"config.batch_size gives {facts.rows} images to each device and part; "
            f"{type(method).__name__} needs {needed}"
        )
