"""Names of suites, which are columns of results: which of them a config cannot give."""

from collections.abc import Iterable

from advadapters import soups
from advadapters.data.corruptions import CORRUPTIONS
from advadapters.data.shifts import SHIFTS

# What evaluation itself calls columns, and what --suite takes besides a config's suites.
COLUMNS = ("clean", "union", "corruptions", "corruptions mean", "mCE", "shape bias")
CASCADE = "autoattack"  # and all that begins like it


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError for a name that would take the place of another column.

    Those of `COLUMNS`, of AutoAttack, of corruptions ("fog" and "fog-3") and of other test
    sets, and those that --suite cannot say.
    """
    names = list(names)
    soups.check_names(names)
    for name in names:
        stem, _, severity = name.rpartition("-")
        moved = name in CORRUPTIONS or (stem in CORRUPTIONS and severity.isdecimal())
        if moved or name in (*COLUMNS, *SHIFTS) or name.startswith(CASCADE):
            raise ValueError(
                f"the name {name!r} is taken by evaluation itself; call the suite after "
                "its attack, like 'pgd20_linf'"
            )
        if "/" in name or ":" in name:
            raise ValueError(f"the name {name!r} has '/' or ':', as other test sets have")
