"""The one exception that a user's mistake raises, and choices by name."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

Row = TypeVar("Row")


class UsageError(ValueError):
    """Bad input: one line says what was given, what is allowed and how to fix it.

    The command line prints the line and exits with code 2.
    """


def pick(table: Mapping[str, Row], name: Any, what: str) -> Row:
    """The row of a table; see `check_word` for what is raised where there is none."""
    check_word(table, name, what)
    return table[name]


def check_word(known: Iterable[str], name: Any, what: str) -> None:
    """Checks that a name is one of those that are known.

    Args:
      known: the names that there are.
      name: the value that a user gave.
      what: what the name is of, in words.

    Raises:
      UsageError: it is not; the message lists the names and says which one is similar.
    """
    known = list(known)
    if isinstance(name, str) and name in known:
        return
    listing = ", ".join(word or "''" for word in known)
    folded = {word.lower(): word for word in known}
    similar = difflib.get_close_matches(str(name).lower(), folded, n=1)
    hint = f"; did you mean {folded[similar[0]]!r}?" if similar else ""
    raise UsageError(f"unknown {what} {name!r}; there are: {listing}{hint}")


def first_few(names: Sequence[str]) -> str:
    """The first three names, and how many more there are.

    >>> first_few(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
