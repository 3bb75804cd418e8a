"""What may still change of a run's config once it has begun, and of where its data lie."""

import os
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

from advadapters import hosts
from advadapters.data import identity, pipeline
from advadapters.errors import UsageError
from advadapters.runs import workdir

# Keys, and sections, that change nothing of what was trained so far, and whether what
# `train` evaluates at its end depends on them.
LATER = {
    "log_every": False,
    "checkpoint_every": False,
    "keep_checkpoints": False,
    "optimizer.max_nonfinite": False,
    "model.attention": False,  # the same sums in another order
    "data.source": False,  # where the same images lie
    "data.data_dir": False,
    "data.threads": False,
    "data.workers": False,
    "data.skip_corrupt": True,
    "data.test_split": True,
    "data.test_images": True,
    "data.crop_ratio": True,
    "evaluation": True,
    "epochs": True,  # only longer, and said on the command line
}
Changes = Mapping[str, tuple[Any, Any]]  # {key: (old value, new value)}
PLACES = ("data.source", "data.data_dir")


def row_of(key: str) -> str | None:
    """The key of LATER that a key is, or is in; None for those that must stay."""
    return next((row for row in LATER if f"{key}.".startswith(f"{row}.")), None)


def find(
    folder: str | os.PathLike,
    old: dict[str, Any],
    new: dict[str, Any],
    said: Collection[str] = (),
) -> Changes:
    """{key: (old value, new value)} of two configs of a run.

    said: keys that were given on the command line. Raises UsageError where one of them
    changes what was trained.
    """
    old, new = workdir.leaves(old), workdir.leaves(new)
    pairs = {key: (old.get(key), new.get(key)) for key in sorted({*old, *new})}
    changed = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    refused = {k: pair for k, pair in changed.items() if row_of(k) is None}
    if refused:
        pairs = [f"{k}: {a} there, {b} now" for k, (a, b) in refused.items()]
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise UsageError(
            f"{folder} holds a run of another config ({', '.join(pairs[:3])}{more}): name "
            f"another workdir, or use that config; only {', '.join(LATER)} may change later"
        )
    before, now = changed.get("epochs", (0, 1))
    shorter = (now or 0) < (before or 0)
    if shorter or ("epochs" in changed and "epochs" not in said):
        raise UsageError(
            f"{folder} holds a run of another config (epochs: {before} there, {now} now): "
            "to go on for longer, give more on the command line: --config.epochs=..."
        )
    return changed


def describe(changed: Changes, title: str = "changed since the run began") -> str:
    """The changes in one line."""
    shown = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
    longer = (
        "; schedules go on as those of the longer training" if "epochs" in changed else ""
    )
    return f"{title}: {shown}{longer}"


def stale(changed: Changes) -> bool:
    """Whether what `train` evaluated is to be evaluated again."""
    return any(LATER[row_of(key) or key] for key in changed)


def compare(
    folder: str | os.PathLike, there: Any, run: Any, changed: Changes, training: bool
) -> list[str]:
    """[line to be told] of what a run remembers of its data and what it has now.

    there: see `identity`, or None if nothing is remembered. training: whether training
    images count too. Raises UsageError where classes differ, or the images of a place that
    was changed, or the number of those to train on.
    """
    moved = [key for key in PLACES if key in changed]
    if there is None:
        if moved and training:
            raise UsageError(
                f"{folder} does not know its images, so {moved[0]} must stay: put them at "
                f"{changed[moved[0]][0]!r}"
            )
        return [f"{folder} knows no class names, so they are not compared"]
    here = record_of(run, 0)
    titles = (f"the run in {folder}", "the data")
    line = identity.need_same_names(there["classes"], here["classes"], titles)
    lines = [line] if line else []
    for name in ("train", "test") if training else ("test",):
        other = identity.differences(there[name], here[name])
        if not other or (name == "test" and "data.test_split" in changed):
            continue
        if moved:
            raise UsageError(
                f"config.{moved[0]}={changed[moved[0]][1]!r} has not the {name} images of "
                f"{folder} ({other[0]}): only a place with the same ones may be named; "
                "`evaluate --data=` takes others"
            )
        if name == "train" and there[name]["images"] != here[name]["images"]:
            raise UsageError(
                f"{folder} was trained on other images ({other[0]}): give them back, since "
                "batches are made of their order (config.data.skip_corrupt=True leaves "
                "corrupt ones out without that), or name another workdir"
            )
        lines.append(f"the {name} images are not those of {folder}: {other[0]}")
    return lines


def settle(
    folder: str | os.PathLike, config: dict[str, Any], run: Any, said: Collection[str]
) -> None:
    """Has a run of a workdir go on with a config that may differ in LATER; says what does.

    Raises UsageError, and has nothing written, where that would change its results.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    changed = find(folder, workdir.read_config(folder), workdir.plain(config), said)
    there = workdir.read_data(folder)
    lines = compare(folder, there, run, changed, training=True)
    again = stale(changed)
    here = record_of(run, config["model"]["classes"])
    tried = bool(there) and there.get("seen") == here["test"]["fingerprint"]
    done = workdir.read_results(folder) is not None and not again
    if not done and (again or not tried):
        lines += look_at_tests(run)
        tried = True
    here["seen"] = here["test"]["fingerprint"] if tried else None
    if changed:
        lines.append(describe(changed))
    for line in lines:
        print(line)
    if changed or here != there:
        workdir.record(folder, config, here, changed, again)


def first_record(config: dict[str, Any], run: Any) -> dict[str, Any]:
    """What a new run is to remember of its data; says what images are found corrupt."""
    for line in look_at_tests(run):
        print(line)
    here = record_of(run, config["model"]["classes"])
    return here | {"seen": here["test"]["fingerprint"]}


@hosts.once
def record_of(run: Any, classes: int) -> Any:
    """What process 0 finds of the data, see `identity`."""
    return identity.describe(run.data.source, classes)


@hosts.once
def look_at_tests(run: Any) -> list[str]:
    """Tries every image that will be evaluated; returns lines to be told.

    By process 0 alone. Raises UsageError if some are corrupt and may not be left out.
    """
    data, lines = run.data, []
    for name, split in (("test", data.test), ("validation", data.validation)):
        bad = pipeline.unreadable(split, data.threads, Tried(name))
        if not bad:
            continue
        count = f"{len(bad):,} of {len(split):,} {name} images cannot be decoded"
        try:
            split[bad[0]]
        except UsageError as error:
            raise UsageError(f"{count}; the first: {error}") from None
        lines.append(f"warning: {count} and are left out of every number")
    return lines


class Tried:
    """A progress line on stderr every 10 s."""

    def __init__(self, name: str) -> None:
        self.name, self.started = name, time.monotonic()
        self.shown = self.started

    def __call__(self, count: int, total: int) -> None:
        now = time.monotonic()
        if now - self.shown > 10:
            self.shown, left = now, (now - self.started) * (total - count) / count
            print(
                f"decoding {self.name} images once, to know them whole: {count:,} of "
                f"{total:,}  ETA {left:.0f} s",
                file=sys.stderr,
                flush=True,
            )
