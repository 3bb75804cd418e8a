"""Result rows: how each network did in each suite, and their one way to and from files.

results.json and evaluation.json hold a list of objects, `Row.plain` of each row. What is
shown of a network is `str(row.network)`, which is made for people and read back by nothing.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from advadapters.intervals import wilson
from advadapters.networks import Identity

R = TypeVar("R", bound="Row")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Row:
    """How one network did in one suite.

    Attributes:
      network: which network it is about. `str(row.network)` is its name, such as "0.3 clean
        + 0.7 linf", and `row.network.mixture` has its weights.
      suite: "clean", or the name of an attack, a corruption or a test set.
      metric: what the value is: "accuracy" (also on corrupted images), "robust_accuracy",
        "shape_bias" or "mCE".
      value: the metric; low, high: its 95% interval, None where it has none.
      correct: images that are right, None where none are counted; n: of how many.
      step: of the checkpoint.
      not_finite, not_attacked: counts of `accuracy.Table`.
      flops: of one image's forward pass, where the networks of a run differ in it.
      corruption, severity: of the suite, where it is one.
      more: further fields of the row, such as the settings of the attack.
    """

    network: Identity
    suite: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    correct: int | None = None
    n: int
    step: int
    not_finite: int = 0
    not_attacked: int = 0
    flops: float | None = None
    corruption: str | None = None
    severity: int | None = None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:.3f} to {self.high:.3f})"
        measured = f"{self.metric} {self.value:.3f}{interval}"
        return f"Row({str(self.network)!r}, {self.suite!r}, {measured}, {self.n} images)"

    @classmethod
    def of_counts(
        cls: type[R],
        network: Identity,
        suite: str,
        correct: int,
        n: int,
        step: int,
        not_finite: int = 0,
        not_attacked: int = 0,
        **fields: Any,
    ) -> R:
        """The row of a network that has so many of n images right, with Wilson's interval.

        fields: further ones of the row, such as the metric where it is no accuracy on clean
        or attacked images.
        """
        low, high = wilson(correct, n)
        metric = "accuracy" if suite == "clean" else "robust_accuracy"
        return cls(
            **{
                "network": network,
                "suite": suite,
                "metric": metric,
                "value": correct / n if n else 0.0,
                "low": low,
                "high": high,
                "correct": correct,
                "n": n,
                "step": step,
                "not_finite": not_finite,
                "not_attacked": not_attacked,
            }
            | fields
        )

    def plain(self) -> dict[str, Any]:
        """The row as plain values, those of its network among them; None is left out."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("network", "more")
        }
        known = {key: value for key, value in fields.items() if value is not None}
        return self.network.plain() | known | {**self.more}

    @classmethod
    def of_plain(cls: type[R], values: Mapping[str, Any]) -> R:
        """The row of plain values, also of those that older versions wrote."""
        known_names = [
            f.name for f in dataclasses.fields(cls) if f.name not in ("network", "more")
        ]
        known = {key: values[key] for key in known_names if key in values}
        identity = (*Identity.FIELDS, "ensemble")
        more = {k: v for k, v in values.items() if k not in (*known, *identity)}
        return cls(network=Identity.of_plain(values), more=more, **known)

    def with_more(self: R, **fields: Any) -> R:
        """The row with further fields."""
        return dataclasses.replace(self, more={**self.more, **fields})


def dump(rows: Iterable[Row]) -> str:
    """The content of a file of rows."""
    return json.dumps([row.plain() for row in rows], indent=1) + "\n"


def load(text: str) -> list[Row]:
    """The rows of a file's content; raises ValueError where it holds none."""
    content = json.loads(text)
    if not isinstance(content, list):
        raise ValueError("no list of result rows")
    try:
        return [Row.of_plain(values) for values in content]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no result rows: {error}") from None


def by_network(rows: Sequence[Row]) -> dict[Identity, dict[str, Row]]:
    """{network: {suite: row}}, the networks in the order of the rows."""
    table: dict[Identity, dict[str, Row]] = {}
    for row in rows:
        table.setdefault(row.network, {})[row.suite] = row
    return table
