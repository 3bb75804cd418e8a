"""usage: advadapters soup --ingredients=DIR,DIR,... --output=NEW

Makes one run of several trained networks, whose domains are the ingredients, named like
their folders: `evaluate --workdir=NEW --mixture=linf=0.5,l2=0.5` then evaluates a soup of
whole networks, `extract` takes one out, and `evaluate` alone looks at the lines between
the first ingredient and the others.

  --config.KEY=VALUE             of keys that may still change, see `train`

The ingredients must be runs of the same model and classes with one domain each (see
`extract`). No image is read. Soups
work where they were fine-tuned from one ancestor; another is warned of. Writes to NEW
config.json, checkpoints/ and lineage.json: where each ingredient comes from, its threat
model and a hash of its recipe.
"""

from advadapters import configs
from advadapters.commands import assembling

FLAGS = {"ingredients": None, "output": None}


def main(argv):
    """Returns the exit code."""
    argv, overrides = configs.split(argv)
    _, flags = configs.parse(argv, FLAGS, with_config=False)
    folders = [folder for folder in flags["ingredients"].split(",") if folder]
    assembling.assemble(folders, flags["output"], overrides)
    return 0
