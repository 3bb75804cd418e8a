"""usage: advadapters doctor [--data=SOURCE | --config=FILE[:VARIANT]] [--workdir=DIR]

Looks at what a training needs: versions, devices, a folder that can be written, and images
that come fast enough. Changes nothing.

  --data=folder:DIR, tar:DIR, ...  measures a source, with ImageNet's crops
  --config=FILE                    measures config.data, which --config.KEY=VALUE changes
  --workdir=DIR                    tries to write there
  --images=512                     so many random training images, ...
  --rounds=5                       ... so many times; the first finds the disk's cache cold
  --images_per_second=300          of the training step on one chip (`advadapters dryrun`
                                   estimates it, attack included), and
  --chips=8                        how many there are: how many cores can feed them
  --output=FILE.json               all numbers

Times of stages are seconds of CPU, "waiting" is what reading takes beyond that: threads
hide it. "all together" is the training's own pipeline with its threads and workers, by
seconds on the clock.
"""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
import tempfile
import time
from typing import Any

from advadapters import configs
from advadapters.commands import machine
from advadapters.errors import UsageError
from advadapters.files import write_whole
from advadapters.markdown import markdown_table

FLAGS = {
    "data": "",
    "workdir": "",
    "images": "512",
    "rounds": "5",
    "images_per_second": "",
    "chips": "1",
    "output": "",
}
PACKAGES = (
    "advadapters", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
    "opencv-python-headless", "tensorflow-datasets",
)  # fmt: skip


def main(argv):
    """Returns the exit code."""
    given = any(argument.lstrip("-").startswith("config=") for argument in argv)
    config, flags = configs.parse(argv, FLAGS, with_config=given)
    images, rounds, chips = (number(name, flags) for name in ("images", "rounds", "chips"))
    wanted = number("images_per_second", flags, float) if flags["images_per_second"] else 0
    if given and flags["data"]:
        raise UsageError("--data and --config both name images: give one of them")
    if wanted and not (given or flags["data"]):
        raise UsageError(
            "--images_per_second is compared with images: give --data or --config"
        )
    found = {"versions": versions(), "host": machine.host(), "devices": machine.devices()}
    for title, told in found.items():
        print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in told.items()))
    if flags["workdir"]:
        found["workdir"] = write_test(flags["workdir"])
        print(f"workdir: {flags['workdir']} can be written")
    if given or flags["data"]:
        data = read(config, flags["data"])
        for line in data.source.notes:
            print(line)
        found["data"] = measure(data, images, rounds)
        print("\n" + markdown(found["data"]))
    if wanted:
        found["needed"] = needed(found, wanted, chips)
        print("\n" + advice(found["needed"], found["host"]))
    if flags["output"]:
        text = json.dumps(found, indent=1) + "\n"
        write_whole(pathlib.Path(flags["output"]), lambda file: file.write(text.encode()))
    return 0


def number(name, flags, kind: type = int):
    """The value of a flag, above 0."""
    try:
        value = kind(flags[name])
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise UsageError(f"--{name} must be a number above 0, got {flags[name]!r}")
    return value


def versions():
    """{package: version}, Python's too."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def write_test(path):
    """Writes a file in a folder, or where it would be made, and removes it again."""
    folder = pathlib.Path(path).expanduser().absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    start = time.perf_counter()
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            file.write(bytes(2**24))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"cannot use {folder} as a workdir: {error}") from None
    return {"path": str(folder), "megabytes_per_second": 16 / (time.perf_counter() - start)}


def read(config: Any, spec):
    """A builders' Data of config.data, or of a source with ImageNet's crops."""
    import jax

    from advadapters import defaults, meshes
    from advadapters.builders.data import read_data

    classes = config.model.classes if config else 0
    if not config:
        config = defaults.config()
        config.data.update(source=spec, crop="random_resized", interpolation="bicubic")
    with configs.Section("config.data", config.data.to_dict()) as section:
        return read_data(section, classes, meshes.make(jax.devices()[:1]))


def measure(data, count, rounds):
    """What was measured on training images.

    {"stages": {name: seconds of CPU per image}, "core": images per second of CPU,
    "together": images per second on the clock, ...}; each has median, low and high.
    """
    import numpy as np

    from advadapters.data import timing

    how = dict(size=data.image_size, crop=data.crop, interpolation=data.interpolation)
    timing.stages(data.train, [0], **how)  # imports, caches
    draw, told = np.random.default_rng(0), []
    for _ in range(rounds):
        chosen = draw.integers(len(data.train), size=count)
        told.append(timing.stages(data.train, chosen, **how))
    total = [sum(row.values()) - row["waiting"] for row in told]
    together = timing.together(
        data.train, count, rounds, threads=data.threads, workers=data.workers, **how
    )
    return {
        "images": len(data.train),
        "drawn": count,
        "rounds": rounds,
        "threads": data.threads,
        "workers": data.workers,
        "stages": {name: spread([row[name] for row in told]) for name in told[0]},
        "core": spread([1 / seconds for seconds in total]),
        "together": spread(together),
    }


def spread(values):
    """The median of some numbers, and their range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def markdown(told):
    """The table of `measure`."""
    lines = []
    for name, seconds in told["stages"].items():
        middle, low, high = (1000 * seconds[k] for k in ("median", "low", "high"))
        rate = f"{1000 / middle:,.0f}" if middle and name != "waiting" else ""
        lines.append((name, f"{middle:.3f} ({low:.3f}-{high:.3f})", rate))
    for name in ("core", "together"):
        middle, low, high = (told[name][k] for k in ("median", "low", "high"))
        title = {
            "core": "all stages",
            "together": f"all together: {told['threads']} threads"
            + (f" in each of {told['workers']} workers" if told["workers"] else ""),
        }[name]
        lines.append((title, "", f"{middle:,.0f} ({low:,.0f}-{high:,.0f})"))
    drawn = f"{told['rounds']} x {told['drawn']} of {told['images']:,} images"
    titles = ("stage", "ms of CPU per image", "images/s of a core")
    return f"{markdown_table(titles, lines)}\n\n{drawn}; median (lowest-highest)"


def needed(found, wanted, chips):
    """Cores that can feed so many chips."""
    if "data" not in found:
        raise UsageError(
            "--images_per_second needs --data or --config, to be compared with"
        )
    core = found["data"]["core"]["median"]
    return {
        "images_per_second": wanted * chips,
        "chips": chips,
        "cores": math.ceil(wanted * chips / core),
        "hosts_like_this": math.ceil(wanted * chips / core / found["host"]["cores"]),
    }


def advice(told, here):
    """`needed` in words."""
    return (
        f"{told['chips']} chips at {told['images_per_second'] / told['chips']:,g} images/s "
        f"need {told['cores']} cores like these to decode and crop; this host has "
        f"{here['cores']}, so {told['hosts_like_this']} such hosts"
    )
