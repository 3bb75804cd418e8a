"""usage: advadapters doctor [--data=SOURCE | --config=FILE[:VARIANT]] [--workdir=DIR]

Looks at what a training needs: versions, devices, a folder that can be written, and images
that come fast enough. Changes nothing.

{flags}

Times of stages are seconds of CPU, "waiting" is what reading takes beyond that: threads
hide it. "all together" is the training's own pipeline with its threads and workers, by
seconds on the clock.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from advadapters.errors import UsageError
from advadapters.files import write_whole
from advadapters.flags import ConfigFile, Shown
from advadapters.markdown import markdown_table
from advadapters.runs import machine
from advadapters.schema import Between
from advadapters.sections import Section

PACKAGES = (
    "advadapters", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
    "opencv-python-headless", "tensorflow-datasets",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    data: Annotated[
        str,
        Shown("folder:DIR"),
        "measures a source, or tar:DIR, ..., with ImageNet's crops",
    ] = ""
    config: Annotated[
        ConfigFile | None, "of --config=FILE, whose config.data is measured"
    ] = None
    workdir: Annotated[str, Shown("DIR"), "tries to write there"] = ""
    images: Annotated[int, Between(low=1), "how many random training images are read"] = 512
    rounds: Annotated[
        int, Between(low=1), "how many times; the first time finds the disk's cache cold"
    ] = 5
    images_per_second: Annotated[
        float | None,
        Between(above=0),
        Shown("300"),
        "of the training step on one chip (`advadapters dryrun` estimates it, attack "
        "included)",
    ] = None
    chips: Annotated[
        int,
        Between(low=1),
        Shown("8"),
        "how many such chips there are: tells how many cores can feed them",
    ] = 1
    output: Annotated[str, Shown("FILE.json"), "all numbers"] = ""


def main(flags: Flags) -> int:
    """Returns the exit code."""
    wanted, measured = flags.images_per_second, bool(flags.config or flags.data)
    if flags.config and flags.data:
        raise UsageError("--data and --config both name images: give one of them")
    if wanted and not measured:
        raise UsageError(
            "--images_per_second is compared with images: give --data or --config"
        )
    config = flags.config.read() if flags.config else None
    report = {"versions": versions(), "host": machine.host(), "devices": machine.devices()}
    for title, values in report.items():
        print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
    if flags.workdir:
        report["workdir"] = write_test(flags.workdir)
        print(f"workdir: {flags.workdir} can be written")
    if measured:
        data = read(config, flags.data)
        for line in data.source.notes:
            print(line)
        report["data"] = measure(data, flags.images, flags.rounds)
        print("\n" + speed_table(report["data"]))
    if wanted:
        report["needed"] = needed(report, wanted, flags.chips)
        print("\n" + advice(report["needed"], report["host"]))
    if flags.output:
        text = json.dumps(report, indent=1) + "\n"
        write_whole(pathlib.Path(flags.output), lambda file: file.write(text.encode()))
    return 0


def versions() -> dict[str, str]:
    """{package: version}, Python's too."""
    numbers = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            numbers[name] = "missing"
    return numbers


def write_test(path: str) -> dict[str, Any]:
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


def read(config: dict[str, Any] | None, spec: str) -> Any:
    """A builders' Data of config.data, or of a source with ImageNet's crops."""
    import jax

    from advadapters import defaults, meshes
    from advadapters.builders.data import read_data

    if config:
        classes, values = config["model"]["classes"], config["data"]
    else:
        classes, values = 0, defaults.config().to_dict()["data"]
        values |= dict(source=spec, crop="random_resized", interpolation="bicubic")
    with Section("config.data", values) as section:
        return read_data(section, classes, meshes.make(jax.devices()[:1]))


def measure(data: Any, count: int, rounds: int) -> dict[str, Any]:
    """What was measured on training images.

    {"stages": {name: seconds of CPU per image}, "core": images per second of CPU,
    "together": images per second on the clock, ...}; each has median, low and high.
    """
    import numpy as np

    from advadapters.data import timing

    how = dict(size=data.image_size, crop=data.crop, interpolation=data.interpolation)
    timing.stages(data.train, [0], **how)  # imports, caches
    draw, timings = np.random.default_rng(0), []
    for _ in range(rounds):
        chosen = draw.integers(len(data.train), size=count)
        timings.append(timing.stages(data.train, chosen, **how))
    total = [sum(row.values()) - row["waiting"] for row in timings]
    together = timing.together(
        data.train, count, rounds, threads=data.threads, workers=data.workers, **how
    )
    return {
        "images": len(data.train),
        "drawn": count,
        "rounds": rounds,
        "threads": data.threads,
        "workers": data.workers,
        "stages": {name: spread([row[name] for row in timings]) for name in timings[0]},
        "core": spread([1 / seconds for seconds in total]),
        "together": spread(together),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of some numbers, and their range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def speed_table(measured: Mapping[str, Any]) -> str:
    """The table of `measure`."""
    lines = []
    for name, seconds in measured["stages"].items():
        middle, low, high = (1000 * seconds[k] for k in ("median", "low", "high"))
        rate = f"{1000 / middle:,.0f}" if middle and name != "waiting" else ""
        lines.append((name, f"{middle:.3f} ({low:.3f}-{high:.3f})", rate))
    for name in ("core", "together"):
        middle, low, high = (measured[name][k] for k in ("median", "low", "high"))
        title = {
            "core": "all stages",
            "together": f"all together: {measured['threads']} threads"
            + (f" in each of {measured['workers']} workers" if measured["workers"] else ""),
        }[name]
        lines.append((title, "", f"{middle:,.0f} ({low:,.0f}-{high:,.0f})"))
    drawn = f"{measured['rounds']} x {measured['drawn']} of {measured['images']:,} images"
    titles = ("stage", "ms of CPU per image", "images/s of a core")
    return f"{markdown_table(titles, lines)}\n\n{drawn}; median (lowest-highest)"


def needed(report: Mapping[str, Any], wanted: float, chips: int) -> dict[str, Any]:
    """Cores that can feed so many chips."""
    if "data" not in report:
        raise UsageError(
            "--images_per_second needs --data or --config, to be compared with"
        )
    core = report["data"]["core"]["median"]
    return {
        "images_per_second": wanted * chips,
        "chips": chips,
        "cores": math.ceil(wanted * chips / core),
        "hosts_like_this": math.ceil(wanted * chips / core / report["host"]["cores"]),
    }


def advice(needs: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """`needed` in words."""
    rate = needs["images_per_second"] / needs["chips"]
    return (
        f"{needs['chips']} chips at {rate:,g} images/s "
        f"need {needs['cores']} cores like these to decode and crop; this host has "
        f"{here['cores']}, so {needs['hosts_like_this']} such hosts"
    )
