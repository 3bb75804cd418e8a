"""Markdown tables."""

from collections.abc import Collection, Iterable, Sequence


def markdown_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()
) -> str:
    """A Markdown table of rows of texts, one for each title; no line break at its end.

    right: numbers of the columns that are aligned to the right.

    >>> print(markdown_table(("suite", "robust, %"), [("clean|fog", "97.5")], right=[1]))
    | suite | robust, % |
    | --- | ---: |
    | clean\\|fog | 97.5 |
    """
    rules = ["---:" if k in right else "---" for k in range(len(titles))]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (titles, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rules, *lines[1:]))
