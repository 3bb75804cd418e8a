"""The one exception that a user's mistake raises, and choices by name."""

import difflib


class UsageError(ValueError):
    """Bad input, told in one line: what was given, what is allowed, how to fix it.

    The command line prints the line and exits with code 2.
    """


def pick(table, name, what):
    """table[name], or a UsageError that lists the names and says which one is near."""
    check_word(table, name, what)
    return table[name]


def check_word(known, name, what):
    """Raises a UsageError that lists the names there are, unless this is one of them."""
    if isinstance(name, str) and name in known:
        return
    told = ", ".join(word or "''" for word in known)
    folded = {word.lower(): word for word in known}
    near = difflib.get_close_matches(str(name).lower(), folded, n=1)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else ""
    raise UsageError(f"unknown {what} {name!r}; there are: {told}{hint}")
