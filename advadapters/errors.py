"""The one exception that a user's mistake raises."""


class UsageError(ValueError):
    """Bad input, told in one line: what was given, what is allowed, how to fix it.

    The command line prints the line and exits with code 2.
    """


def pick(table, name, what):
    """table[name], or a UsageError that lists the names there are."""
    if name not in table:
        raise UsageError(f"unknown {what} {name!r}; there are: {', '.join(table)}")
    return table[name]
