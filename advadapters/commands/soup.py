"""usage: advadapters soup --ingredients=DIR,DIR,... --output=NEW

Makes one run of several trained networks, whose domains are the ingredients, named like
their folders: `evaluate --workdir=NEW --mixture=linf=0.5,l2=0.5` then evaluates a soup of
whole networks, `extract` takes one out, and `evaluate` alone looks at the lines between
the first ingredient and the others.

{flags}

The ingredients must be runs of the same model and classes with one domain each (see
`extract`). No image is read. Soups
work where they were fine-tuned from one ancestor; another is warned of. Writes to NEW
config.json, checkpoints/ and lineage.json: where each ingredient comes from, its threat
model and a hash of its recipe.
"""

import dataclasses
from typing import Annotated

from advadapters.flags import Overrides, Separated, Shown
from advadapters.runs import assembling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    ingredients: Annotated[
        tuple[str, ...], Separated(part="folder"), Shown("DIR,DIR"), "trained runs"
    ]
    output: Annotated[str, Shown("NEW"), "the folder of the new run"]
    overrides: Overrides = ()


def main(flags: Flags) -> int:
    """Returns the exit code."""
    assembling.assemble(flags.ingredients, flags.output, flags.overrides)
    return 0
