"""The strict reading of a config's plain values, section by section."""

import math
from collections.abc import Iterable
from typing import Any, TypeVar

from advadapters.errors import UsageError, check_word

T = TypeVar("T")


class Section:
    """Values of one part of a config, taken key by key.

    with Section("config.data", values) as data:
        size = data.take("image_size", int, low=1)

    Leaving the block raises UsageError for the first key that was not taken.
    """

    def __init__(self, name: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise UsageError(f"{name} must be a section with keys, got {values!r}")
        self.name = name
        self.left = dict(values)  # that were not taken yet
        self.known: list[str] = []  # keys that were taken

    def __enter__(self) -> "Section":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None and self.left:
            raise UsageError(
                f"unknown key {self.name}.{next(iter(self.left))}; there are: "
                + ", ".join(self.known)
            )

    def take(
        self,
        key: str,
        kind: type[T],
        *,
        low: float | None = None,
        above: float | None = None,
        below: float | None = None,
        high: float | None = None,
        of: type | None = None,
    ) -> T:
        """The value of a key.

        Args:
          key: of this section; it must be there.
          kind: the type of the value. Floats must be finite.
          low: the least value that is allowed, if any.
          above: what the value must be larger than, if anything.
          below: what the value must be smaller than, if anything.
          high: the largest value that is allowed, if any.
          of: the type of the elements of a tuple.

        Raises:
          UsageError: the key is missing or its value is not allowed.
        """
        value = self._take_any(key, kind, of)
        for wrong, bound in (
            (low is not None and not value >= low, f"at least {low}"),
            (above is not None and not value > above, f"above {above}"),
            (below is not None and not value < below, f"below {below}"),
            (high is not None and not value <= high, f"at most {high}"),
        ):
            if wrong:
                raise UsageError(f"{self.name}.{key} must be {bound}, got {value!r}")
        return value

    def _take_any(self, key: str, kind: type, of: type | None) -> Any:
        """`take` without bounds."""
        self.known.append(key)
        if key not in self.left:
            raise UsageError(f"{self.name}.{key} is missing ({kind.__name__})")
        value: Any = self.left.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple and isinstance(value, list):
            value = tuple(value)
        if of is float and kind is tuple and isinstance(value, tuple):
            value = tuple(float(v) if type(v) is int else v for v in value)
        if type(value) is not kind:
            raise UsageError(f"{self.name}.{key} must be {kind.__name__}, got {value!r}")
        items = value if kind is tuple else (value,)
        if of and not all(type(item) is of for item in items):
            raise UsageError(f"{self.name}.{key} must hold {of.__name__}, got {value!r}")
        if not all(math.isfinite(item) for item in items if isinstance(item, float)):
            raise UsageError(f"{self.name}.{key} must be finite, got {value!r}")
        return value

    def choice(self, key: str, allowed: Iterable[str]) -> str:
        """The value of a key that must be one of the strings in `allowed`."""
        value = self.take(key, str)
        check_word(allowed, value, f"{self.name}.{key}")
        return value

    def section(self, key: str) -> "Section":
        """The section below a key."""
        return Section(f"{self.name}.{key}", self.take(key, dict))

    def sections(self, key: str) -> dict[str, "Section"]:
        """{name: Section} of a section whose keys are free names."""
        return self.section(key).parts()

    def parts(self) -> dict[str, "Section"]:
        """{name: Section} of all keys that were not taken, each of them a section."""
        values, self.left = self.left, {}
        return {name: Section(f"{self.name}.{name}", v) for name, v in values.items()}
