"""usage: advadapters dryrun --config=FILE[:VARIANT] --topology=v5e:16x16[,...]

Compiles the training step of a config and its final evaluation for devices that need not
be there, runs nothing, and tells what they cost: operations per image against the count on
paper, memory on each chip, what chips send each other, the time that the chip's figures
allow, and how many networks and images evaluation takes at once.

{flags}

A ViT-B takes minutes of a core to compile for a TPU, its training and each suite alike.
FLOPs are of matrix products, a product and a sum each; the compiler counts a loop's body
once, which is corrected by the count on paper. Times are at the chip's peak, if products,
memory and links never wait for each other: nothing is faster. Bytes from and to memory are
counted in the compiled program.
"""

import dataclasses
import itertools
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from advadapters.errors import UsageError, pick
from advadapters.flags import ConfigFile, Separated, Shown
from advadapters.markdown import markdown_table
from advadapters.runs import planning
from advadapters.runs.planning import number
from advadapters.schema import OneOf

SWEPT = ("batch_size", "sharding", "remat")
PARTS = ("training", "evaluation")
COLUMNS = (
    "topology", "batch", "state", "remat", "GFLOP/image on paper", "compiled",
    "state, GiB", "temporaries", "peak", "of", "messages (in loops)",
    "compute, ms", "memory, ms", "links, ms", "images/s", "hours", "chip-hours",
)  # fmt: skip
RATES = {"images_per_second": ",.0f", "hours": ",.1f", "chip_hours": ",.0f"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    config: Annotated[ConfigFile, "changes all of them"]
    topology: Annotated[
        tuple[str, ...],
        Separated(part="topology"),
        Shown("v5e:16x16,v4:4x4x4"),
        "TPUs (their compiler comes with `.[tpu]`), cpu:8 for fake CPU devices, gpu for "
        "the GPUs that are here",
    ]
    chip: Annotated[
        str,
        Shown("H100"),
        "whose figures cpu:8 is given: the plan is the CPU's, which is the nearest thing "
        "where there is no such chip",
    ] = ""
    images: Annotated[
        tuple[int, ...],
        Shown(
            "1281167,50000",
            "a number of training images, or two, the second of test images",
        ),
        "training and test images, where the data is not at hand",
    ] = ()
    parts: Annotated[tuple[str, ...], OneOf(PARTS), "what is compiled"] = PARTS
    batch_size: Annotated[
        tuple[int, ...],
        Shown("2048,4096"),
        "in place of config.batch_size; several values here and in the next two flags are "
        "compiled in every combination",
    ] = ()
    sharding: Annotated[
        tuple[str, ...], Shown("replicated,fsdp"), "in place of config.sharding"
    ] = ()
    remat: Annotated[
        tuple[str, ...], Shown("none,dots,full"), "in place of config.model.remat"
    ] = ()
    output: Annotated[
        str, Shown("FILE.json"), "all numbers, rewritten after each combination"
    ] = ""


def main(flags: Flags) -> int:
    """Returns the exit code: 1 if something does not fit."""
    cases = read_cases(flags.config.read(), flags)
    prepare([name for name, _ in cases])
    # All that a user can mistake comes first.
    built = [build(name, config, flags.chip) for name, config in cases]
    rows, evaluated = [], {}
    for (name, config), about in zip(cases, built, strict=True):
        remat = {"remat": config["model"].get("remat")}
        if "training" in flags.parts:
            rows.append(remat | measure(*about))
        if "evaluation" in flags.parts and (name, remat["remat"]) not in evaluated:
            measured = planning.measure(*about)
            evaluated[name, remat["remat"]] = [remat | row for row in measured]
        if flags.output:
            write(flags.output, rows, sum(evaluated.values(), []))
    evaluations = sum(evaluated.values(), [])
    tables = (costs_table(rows) if rows else "", planning.plan_table(evaluations))
    for text in filter(None, tables):
        print(text + "\n")
    lines = [advice(row) for row in rows] + [planning.advice(row) for row in evaluations]
    print(*dict.fromkeys(lines), sep="\n")
    return int(any(row["fits"] is False for row in rows + evaluations))


def read_cases(config: dict[str, Any], flags: Flags) -> list[tuple[str, dict[str, Any]]]:
    """[(topology, config)] for every combination."""
    if len(flags.images) > 2:
        raise UsageError(
            "--images must be a number of training images, or two, the second of test "
            f"images, got {','.join(map(str, flags.images))!r}"
        )
    if flags.images:
        source = "blank:" + ",".join(map(str, flags.images))
        config = config | {"data": config["data"] | {"source": source}}
    values = [getattr(flags, key) or [None] for key in SWEPT]
    cases = []
    for name, *combination in itertools.product(flags.topology, *values):
        changed = config
        for key, value in zip(SWEPT, combination, strict=True):
            if value is not None:
                changed = change(changed, key, value)
        cases.append((name, changed))
    return cases


def change(config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A config with one of SWEPT set to a value."""
    if key == "remat":
        return {**config, "model": config["model"] | {"remat": value}}
    return {**config, key: value}


def prepare(names: Sequence[str]) -> None:
    """Has JAX start with what the topologies need, unless it has started already."""
    import jax

    # No TPU is looked for or locked; what its compiler would ask a cloud is answered here.
    os.environ.update(
        ALLOW_MULTIPLE_LIBTPU_LOAD="true",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
    )
    counts = [int(n) for n in re.findall(r"cpu:(\d+)", " ".join(names))]
    try:
        if "gpu" not in names:
            jax.config.update("jax_platforms", "cpu")
        if counts:
            jax.config.update("jax_num_cpu_devices", max(counts))
    except RuntimeError:
        pass


def build(name: str, config: dict[str, Any], chip: str = "") -> tuple[str, Any, Any, Any]:
    """(topology, Run, mesh, Chip or None); chip: whose figures CPUs are given."""
    from advadapters import builders, costs, meshes

    if chip and not name.startswith("cpu:"):
        raise UsageError(f"--chip={chip} is for --topology=cpu:COUNT, not for {name!r}")
    devices, peak = costs.topology(name)
    if chip:
        peak = pick(costs.CHIPS, chip, "--chip")
    mesh = meshes.make(devices)
    return name, builders.build(config, mesh), mesh, peak


def measure(name: str, run: Any, mesh: Any, chip: Any) -> dict[str, Any]:
    """A row: everything that is known of one combination."""
    import numpy as np

    from advadapters import builders, costs, hlo

    started = time.monotonic()
    arguments = builders.abstract_state(run, mesh), builders.abstract_batch(run, mesh)
    traced = builders.train_step(run, mesh).trace(*arguments, np.uint32(run.seed))
    row = {
        "topology": name,
        "devices": mesh.size,
        "batch_size": run.batch_size,
        "accumulate": run.accumulate,
        "sharding": run.sharding,
        "steps": run.steps,
        "flops": planning.count_products(run, traced.jaxpr.jaxpr, mesh.size),
        "chip_memory": chip.memory if chip else None,
    }
    compiled, row["memory"] = costs.compiled(traced)
    if compiled is None:
        return row | {"fits": False}
    row["fits"] = row["memory"]["peak"] <= chip.memory if chip else None
    program = hlo.computations(compiled.as_text())
    row["collectives"] = hlo.collectives(program, mesh.size)
    row["traffic"] = (
        hlo.traffic(program) * row["flops"]["paper"] // row["flops"]["paper_once"]
    )
    once, paper = row["flops"]["paper_once"], row["flops"]["paper"]
    flops = (compiled.cost_analysis() or {})["flops"] * mesh.size / run.batch_size
    row["flops"] |= {"compiled_once": flops, "compiled": flops + paper - once}
    if chip:
        row |= times(row, chip)
    row["compile_seconds"] = time.monotonic() - started
    print(f"{name}, batch {run.batch_size}: {row['compile_seconds']:.0f} s", flush=True)
    return row


def times(row: Mapping[str, Any], chip: Any) -> dict[str, Any]:
    """What a row tells about time: at best, by the figures of a chip."""
    from advadapters import costs

    flops = row["flops"]["compiled"] * row["batch_size"]
    spent = (flops, row["traffic"], row["collectives"])
    seconds = costs.seconds(chip, row["devices"], *spent)
    hours = row["steps"] * seconds["step"] / 3600
    return {
        "seconds": seconds,
        "images_per_second": row["batch_size"] / seconds["step"],
        "hours": hours,
        "chip_hours": hours * row["devices"],
    }


def write(path: str, rows: Sequence[Any], evaluated: Sequence[Any]) -> None:
    """The rows as JSON, with the versions that compiled them."""
    import jax
    from etils import epath

    from advadapters.runs import workdir

    document = {"jax": jax.__version__, "libtpu": version("libtpu"), "rows": rows}
    document |= {"evaluation": evaluated}
    workdir.write_text(epath.Path(path), json.dumps(document, indent=1) + "\n")


def version(package: str) -> str | None:
    """Of an installed package, or None."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def costs_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All rows as a table."""
    return markdown_table(COLUMNS, map(cells, rows))


def cells(row: Mapping[str, Any]) -> list[str]:
    """The texts of a row, in the order of COLUMNS."""
    flops, memory, sent = row["flops"], row["memory"], row.get("collectives")
    seconds = row.get("seconds", {})
    forwards = flops["paper"] / flops["forward"]
    messages = ", ".join(
        f"{r['count']} {r['kind']} {r['bytes'] / 1e6:,.0f} MB ({r['in_loops']})"
        for r in sent or ()
    )
    return [
        row["topology"],
        f"{row['batch_size']}",
        row["sharding"],
        f"{row['remat']}",
        f"{flops['paper'] / 1e9:.1f} = {forwards:.2f} forwards",
        number(flops.get("compiled"), 1e9, ".1f"),
        *(number(memory.get(key), 2**30) for key in ("arguments", "temporaries", "peak")),
        number(row["chip_memory"], 2**30, ".0f"),
        messages or ("none" if sent == [] else "?"),
        *(number(seconds.get(key), 1e-3, ".1f") for key in ("compute", "memory", "links")),
        *(number(row.get(key), 1, form) for key, form in RATES.items()),
    ]


def advice(row: Mapping[str, Any]) -> str:
    """A line: whether it fits, and what to change if it does not."""
    where = f"{row['topology']}, batch {row['batch_size']}"
    if row["fits"] is None:
        return f"{where}: no figures of this device, so whether it fits is not known"
    if row["fits"]:
        loops = sum(sent["in_loops"] for sent in row["collectives"])
        messages = f"{loops} messages inside loops" if loops else "no messages inside loops"
        slowest = max(("compute", "memory", "links"), key=row["seconds"].get)
        return f"{where}: fits; {messages}; {slowest} is the slowest part"
    steps = [
        ("--config.sharding=fsdp", row["sharding"] == "replicated" and row["devices"] > 1),
        ("--config.model.remat=dots", row["remat"] == "none"),
        ("--config.model.remat=full", row["remat"] in ("none", "dots")),
        (f"--config.accumulate={2 * row['accumulate']}", True),
    ]
    changes = ", ".join(change for change, possible in steps if possible)
    return f"{where}: does NOT fit; try one after the other {changes}, more chips"
