"""What the final evaluation of a config costs on devices that need not be there.

Its clean part is a forward pass, which every attack's program has too, so where there are
attacks only these are compiled.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from advadapters.markdown import markdown_table

Row = Mapping[str, Any]  # of the plan, as its JSON has it
COLUMNS = (
    "topology", "suite", "networks", "at once", "images on a chip",
    "GFLOP/image and network", "variables, GiB", "temporaries", "peak", "of", "calls",
    "compute, ms a call", "memory, ms", "hours", "chip-hours",
)  # fmt: skip


def count_products(run: Any, jaxpr: Any, devices: int) -> dict[str, float]:
    """FLOPs per image on paper: of a forward pass, of a step, of a step with loops once."""
    import jax

    from advadapters import builders, costs

    plain = jax.eval_shape(run.network.init, jax.random.key(0))
    if run.film:
        plain["lambda"] = jax.ShapeDtypeStruct((), "float32")
    image = builders.abstract_images(run, 1)
    forward = jax.make_jaxpr(run.network.evaluate)(plain, image)
    step, once = (costs.products(jaxpr, devices, o) / run.batch_size for o in (False, True))
    return {"forward": costs.products(forward.jaxpr), "paper": step, "paper_once": once}


def measure(name: str, run: Any, mesh: Any, chip: Any) -> list[dict[str, Any]]:
    """[row]: everything that is known of each suite, on the networks of each width."""
    import jax

    from advadapters import builders
    from advadapters.evaluation import fitting
    from advadapters.runs import asking, evaluating, opening

    started = time.monotonic()
    variables, evaluation = builders.abstract_variables(run, mesh), run.evaluation
    cache = {"room": fitting.room_of(chip) if chip else fitting.room(mesh, variables)}
    questions = evaluating.questions_of(
        opened := opening.OpenRun(run, mesh, None, cache, {}),
        evaluation.cases,
        evaluation.suites,
    )
    if evaluation.suites:
        del questions["clean"]
    # CPUs that stand for another chip take as many as it would.
    most = evaluation.at_once if chip else fitting.most(mesh, evaluation.at_once)
    batch = builders.abstract_batch(run, mesh)
    batch["seed"] = jax.ShapeDtypeStruct(batch["index"].shape, "uint32")
    programs = asking.programs_of(opened, variables, questions, batch, most)
    images, rows = len(run.data.test), []
    for part, program in zip(asking.by_network(questions), programs, strict=True):
        suite, network, cases = part
        row: dict[str, Any] = dict(topology=name, devices=mesh.size)
        row |= dict(suite=suite, network=network)
        row |= dict(networks=len(cases), soups=program.soups, rows=program.rows)
        row |= dict(images=images, memory=program.memory, room=cache["room"])
        row["calls"] = math.ceil(len(cases) / program.soups)
        row["calls"] *= math.ceil(images / (program.rows * mesh.size))
        row["flops"] = program.flops / (program.soups * program.rows * mesh.size)
        row["variables"] = fitting.size_of(variables)
        row["chip_memory"] = chip.memory if chip else None
        row["fits"] = None
        if chip:
            row["fits"] = bool(program.call) and row["memory"]["peak"] <= cache["room"]
        if chip and program.call:
            row |= times(row, program, chip, evaluation.exact)
        rows.append(row)
    print(f"{name}, evaluation: {time.monotonic() - started:.0f} s", flush=True)
    return rows


def times(row: Row, program: Any, chip: Any, exact: bool) -> dict[str, Any]:
    """What a row tells about time, at best; exact: whether products are real float32."""
    from advadapters import costs, hlo

    traffic = hlo.traffic(hlo.computations(program.call.as_text()))
    traffic *= program.flops / program.once
    chip = chip._replace(flops=chip.exact if exact else chip.flops)
    seconds = costs.seconds(chip, row["devices"], program.flops, traffic, [])
    hours = row["calls"] * seconds["step"] / 3600
    return {"seconds": seconds, "hours": hours, "chip_hours": hours * row["devices"]}


def plan_table(rows: Sequence[Row]) -> str:
    """All rows as a table, "" for none."""
    return markdown_table(COLUMNS, map(cells, rows)) if rows else ""


def cells(row: Row) -> list[str]:
    """The texts of a row, in the order of COLUMNS."""
    memory, seconds = row["memory"], row.get("seconds", {})
    return [
        row["topology"],
        row["suite"] if row["network"] == 1.0 else f"{row['suite']}, {row['network']}",
        *(f"{row[key]:,}" for key in ("networks", "soups", "rows")),
        number(row["flops"], 1e9, ",.1f"),
        number(row["variables"], 2**30),
        *(number(memory.get(key), 2**30) for key in ("temporaries", "peak")),
        number(row["chip_memory"], 2**30, ".0f"),
        f"{row['calls']:,}",
        *(number(seconds.get(key), 1e-3, ",.0f") for key in ("compute", "memory")),
        number(row.get("hours"), 1, ",.2f"),
        number(row.get("chip_hours"), 1, ",.1f"),
    ]


def number(value: float | None, unit: float, form: str = ".2f") -> str:
    """A number in a unit, or a question mark."""
    return "?" if value is None else format(value / unit, form)


def advice(row: Row) -> str:
    """A line: whether it fits, and what to do if it does not."""
    where = f"{row['topology']}, evaluation under {row['suite']}"
    much = f"{row['soups']} of {row['networks']} networks on {row['rows']} images of a chip"
    if row["fits"] is None:
        return f"{where}: {much} at once; no figures of this device, see above"
    if row["fits"]:
        return f"{where}: fits, {much} at once"
    return (
        f"{where}: does NOT fit, not even {much} at once; try one after the other "
        "--config.model.remat=full, --config.evaluation.dtype=bfloat16"
    )
