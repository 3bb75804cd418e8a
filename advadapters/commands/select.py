"""usage: advadapters select --workdir=DIR[,DIR,...] [--labels=10,100,1000 --suite=...]

Chooses a soup for each shift from a few labelled images of it, and judges the choice on
images that it has not seen. Reads what `evaluate --grid=... --suite=...` found of each soup
and image (DIR/evaluation.npz), so nothing is computed again:

  advadapters evaluate --workdir=runs/season/soup --grid=0.2 --suite=corruptions
  advadapters select --workdir=runs/season/soup

Two tables: on unseen images, and on all images, those that chose included, as on the
poster of Croce et al. (2023). Several workdirs are seeds of one thing: the tables then show
their mean.

  --name=evaluation              the --name that `evaluate` was given
  --labels=10,50,100,500         numbers of labelled images (default: of 10, 50, 100, 500,
                                 1000 those that leave half of the images unseen)
  --draws=20                     random draws of the labelled images, where they are fewer
                                 than the most; the others have one
  --suite=fog-5,snow-5           only these suites
  --config.KEY=VALUE             is checked as by `evaluate`, and changes nothing here

Beside a soup of its own for each suite it shows the best single ingredient and one soup for
all suites, both chosen on the most labels, and ensembles that were evaluated. Of soups that
are equal on the labelled images, the one that is better on clean ones (on clean ones: in
the other suites) is chosen, where these are the same images. "tied" counts the soups that
these images do not tell from the winner (exact McNemar tests, Holm). The last line tells
how successive halving would have done on the same images. Writes DIR/selection.json and
selection.md, of several workdirs in the first.
"""

import json

import numpy as np

from advadapters import configs
from advadapters.errors import UsageError, pick

LABELS = (10, 50, 100, 500, 1000)
FLAGS = dict(workdir=None, name="evaluation", labels="", draws="20", suite="")


def main(argv):
    """Returns the exit code."""
    argv, overrides = configs.split(argv)
    _, flags = configs.parse(argv, FLAGS, with_config=False)
    from etils import epath

    from advadapters.commands import changes, workdir
    from advadapters.evaluation import choosing

    folders = [epath.Path(name).expanduser() for name in flags["workdir"].split(",")]
    draws = configs.read_number("draws", flags["draws"]) or 1
    for folder in folders if overrides else ():
        config = workdir.read_config(folder)
        changes.find(folder, config, configs.override(config, overrides))
    read = workdir.read_alike(folders, flags["name"])
    told = read[0][0]
    if sum(one["kind"] != "ensemble" for one in told) < 3:
        raise UsageError(
            f"{folders[0]} has {len(told)} networks to choose from: run `advadapters "
            "evaluate --grid=0.2` first"
        )
    tables = [keep_suites(found, flags["suite"]) for _, found, _ in read]
    fewest = min(len(t.labels) for found in tables for t in found.values())
    labels = read_labels(flags["labels"], fewest)
    runs = [choosing.rows(told, found, labels, draws) for found in tables]
    halved = [choosing.halving_rows(told, found, labels[-1]) for found in tables]
    text = choosing.markdown(runs) + "\n\n" + describe(sum(halved, [])) + "\n"
    rows = [
        row | {"workdir": str(folder)}
        for folder, run in zip(folders, runs, strict=True)
        for row in run
    ]
    told = json.dumps({"rows": rows, "halving": sum(halved, [])}, indent=1)
    workdir.write_text(folders[0] / "selection.json", told + "\n")
    workdir.write_text(folders[0] / "selection.md", text)
    print(text + f"written to {folders[0]}: selection.json, selection.md")
    return 0


def keep_suites(found, text):
    """The tables of the suites that are asked for; all but "union" by default."""
    if text:
        return {name: pick(found, name, "suite") for name in text.split(",")}
    return {name: table for name, table in found.items() if name != "union"}


def read_labels(text, images):
    """Growing numbers of labelled images, fewer than there are."""
    if not text:
        return [n for n in LABELS if n <= images // 2] or [max(1, images // 2)]
    try:
        labels = sorted({int(part) for part in text.split(",")})
    except ValueError:
        labels = [0]
    if labels[0] < 1 or labels[-1] >= images:
        raise UsageError(
            f"--labels must be whole numbers from 1 to {images - 1}, so that some of the "
            f"{images} images are unseen, got {text!r}"
        )
    return labels


def describe(halved):
    """What successive halving came to."""
    same = sum(row["behind"] == 0 for row in halved)
    share = np.mean([row["passes"] / row["brute"] for row in halved])
    return (
        f"successive halving: as good as brute force in {same} of {len(halved)} searches, "
        f"at most {100 * max(row['behind'] for row in halved):.1f} points behind, with "
        f"{100 * share:.0f}% of the forward passes"
    )
