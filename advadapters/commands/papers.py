"""usage: advadapters papers [--paper=seasoning,oat] [--count=256 --output=FILE.md]
       advadapters papers --runs=DIR [--paper=oat --output=FILE.md]

The plan of the papers' workflows in launch/reproduce: what is trained for each, and what
that costs at best on each kind of chip. With --runs, what came out instead: every training,
its networks, and their accuracies under the attacks that `train` and `evaluate` tried, with
the interval, the number of seeds and the command. The row of what was not run is empty.

{flags}

Every training step is traced and none is compiled, which takes seconds each. Operations
are of matrix products, a product and a sum each, with all loops of attacks but those of no
fixed length, as APGD has, which count once. Times are at the chips' peak in bfloat16, so
nothing is faster. What memory and links cost besides, whether a batch fits, and what
evaluation costs, `dryrun` tells for one training. The last column says what of a training
is not the paper's, or is only remembered. A training that several papers share counts in
the sum of each, and once in the sum of all.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from advadapters.errors import UsageError, check_word
from advadapters.flags import ConfigFile, Shown
from advadapters.markdown import markdown_table
from advadapters.schema import Between

CHIPS = ("v5e", "v4", "v6e", "H100")
PLAN = "launch/reproduce/full.yaml"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    plan: Annotated[
        str, Shown(PLAN), "the file that says what is trained, as the workflows read it"
    ] = PLAN
    paper: Annotated[
        tuple[str, ...], Shown("seasoning,oat"), "only these papers (default: all)"
    ] = ()
    chip: Annotated[tuple[str, ...], Shown("v5e,H100"), "kinds of chips"] = CHIPS
    count: Annotated[
        int | None, Between(low=1), Shown("256"), "so many chips: prints the hours too"
    ] = None
    seeds: Annotated[int, Between(low=1), "how often each training is made"] = 1
    runs: Annotated[str, Shown("DIR"), "the folder of the workflows' runs"] = ""
    output: Annotated[str, Shown("FILE.md"), "a file for the table"] = ""


def main(flags: Flags) -> int:
    """Returns the exit code."""
    from advadapters import costs

    for name in flags.chip:
        check_word(costs.CHIPS, name, "--chip")
    papers, trainings = read_plan(flags.plan)
    for name in flags.paper:
        check_word(papers, name, "--paper")
    names = {paper: papers[paper] for paper in flags.paper or papers}
    if flags.runs:
        return write(results(names, trainings, flags.runs), flags.output)
    configs = {}  # what is wrong in one of them comes before the first is traced
    for name in dict.fromkeys(sum(names.values(), [])):
        configs[name] = read_config(name, trainings[name])
    rows = {}
    for name, config in configs.items():
        rows[name] = measure(config) | {"ours": trainings[name].get("ours", "")}
        print(f"{name}: {rows[name]['flops']:.3g} FLOP", flush=True)
    return write(papers_table(names, rows, flags), flags.output)


def write(text: str, output: str) -> int:
    """Prints a table and writes it to a file, if one is named; returns the exit code."""
    print(text)
    if output:
        from etils import epath

        from advadapters.runs import workdir

        workdir.write_text(epath.Path(output).expanduser(), text + "\n")
        print(f"written to {output}")
    return 0


def read_plan(path: str) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """({paper: names of its trainings}, {name: training}) of a plan.

    Raises UsageError for a file that is none.
    """
    import yaml

    try:
        with open(path) as file:
            plan = yaml.safe_load(file)
        trainings, patterns = dict(plan["trainings"]), dict(plan["papers"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"cannot read {path} as a plan with trainings and papers: {error}; call this "
            "in a checkout of the repository, or name the file by --plan"
        ) from None
    papers = {paper: matching(patterns[paper], trainings) for paper in patterns}
    empty = [paper for paper, names in papers.items() if not names]
    if empty:
        raise UsageError(f"{path}: papers.{empty[0]} matches no training")
    return papers, trainings


def matching(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that one of the patterns matches."""
    return [n for n in names if any(fnmatch.fnmatch(n, p) for p in patterns)]


def read_config(name: str, training: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a training on blank images; raises UsageError for anything wrong."""
    try:
        arguments, (images, tests) = [f"--config={training['config']}"], training["images"]
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"trainings.{name} needs a config and two numbers of images, got {training}"
        ) from None
    arguments += str(training.get("flags", "")).split()
    config = ConfigFile(tuple(arguments)).read()
    config["data"]["source"] = f"blank:{images},{tests}"
    return config


def measure(config: dict[str, Any]) -> dict[str, Any]:
    """What is known of a training without compiling it: steps, and FLOPs of all of them."""
    import jax
    import numpy as np

    from advadapters import builders, meshes
    from advadapters.runs import planning

    mesh = meshes.make(jax.devices()[:1])
    run = builders.build(config, mesh)
    arguments = builders.abstract_state(run, mesh), builders.abstract_batch(run, mesh)
    traced = builders.train_step(run, mesh).trace(*arguments, np.uint32(run.seed))
    flops = planning.count_products(run, traced.jaxpr.jaxpr, mesh.size)
    return {
        "steps": run.steps,
        "batch": run.batch_size,
        "forwards": flops["paper"] / flops["forward"],
        "flops": flops["paper"] * run.batch_size * run.steps,
    }


def papers_table(
    papers: Mapping[str, Sequence[str]], rows: Mapping[str, Mapping[str, Any]], flags: Flags
) -> str:
    """A line for each training of each paper, the papers' sums, and the sum of all."""
    units = [f"chip-hours, {name}" for name in flags.chip]
    if flags.count:
        units += [f"hours, {flags.count} {name}" for name in flags.chip]
    titles = ["training", "steps", "batch", "forwards an image", "EFLOP", *units, "ours"]
    lines = []
    for paper, names in papers.items():
        for name in names:
            row = rows[name]
            counts = [f"{row['steps']:,}", f"{row['batch']:,}", f"{row['forwards']:.1f}"]
            lines.append([name, *counts, *price(row["flops"], flags), row["ours"]])
        lines.append(total(f"all of {paper}", [rows[name] for name in names], flags))
    if len(papers) > 1:
        lines.append(total("all papers, shared trainings once", [*rows.values()], flags))
    seeds = f" of {flags.seeds} seeds" if flags.seeds > 1 else ""
    return f"{markdown_table(titles, lines)}\nat best, by matrix products alone{seeds}"


def total(title: str, rows: Sequence[Mapping[str, Any]], flags: Flags) -> list[str]:
    """The line of a sum."""
    cells = price(sum(row["flops"] for row in rows), flags)
    return [f"**{title}**", "", "", "", *cells, ""]


def price(flops: float, flags: Flags) -> list[str]:
    """The cells of so many FLOPs for each seed: EFLOP, chip-hours, hours."""
    from advadapters import costs

    flops *= flags.seeds
    hours = [flops / costs.CHIPS[name].flops / 3600 for name in flags.chip]
    cells = [f"{flops / 1e18:,.2f}", *map(number, hours)]
    return cells + [number(spent / flags.count) for spent in hours if flags.count]


def number(hours: float) -> str:
    """Hours with two digits at least."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def results(
    papers: Mapping[str, Sequence[str]], trainings: Mapping[str, Any], runs: str
) -> str:
    """What the workflows have found so far: a table for each paper."""
    return "\n\n".join(
        f"{paper}, percent\n\n" + results_table(names, trainings, runs)
        for paper, names in papers.items()
    )


def results_table(names: Sequence[str], trainings: Mapping[str, Any], runs: str) -> str:
    """A line for each network of each training, a column for each attack."""
    seeds = {name: read_seeds(runs, name) for name in names}
    suites = {s: None for each in seeds.values() for seed in each for s in columns(seed)}
    lines = []
    for name, each in seeds.items():
        command = f"`advadapters train --config={trainings[name]['config']}`"
        networks = list(each[0]) if each else [None]
        for network in networks:
            rows = [seed[network] for seed in each if network in seed]
            cells = [cell([r[suite] for r in rows if suite in r]) for suite in suites]
            title = "not run" if network is None else str(network)
            lines.append([name, title, *cells, str(len(rows)), command])
    return markdown_table(["training", "network", *suites, "seeds", "command"], lines)


def columns(networks: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """The suites of one seed, without single corruptions."""
    rows = [row for suites in networks.values() for row in suites.values()]
    return list(dict.fromkeys(row.suite for row in rows if not row.corruption))


def read_seeds(runs: str, name: str) -> list[dict[Any, dict[str, Any]]]:
    """{network: {suite: row}} of each seed of a training that was run."""
    from etils import epath

    from advadapters.evaluation import rows

    seeds = []
    for folder in sorted(epath.Path(runs).expanduser().glob("seed*")):
        files = [folder / name / f"{kind}.json" for kind in ("results", "attacks")]
        texts = [file.read_text() for file in files if file.exists()]
        if texts:
            seeds.append(rows.by_network([r for t in texts for r in rows.load(t)]))
    return seeds


def cell(rows: Sequence[Any]) -> str:
    """One seed with the interval over its images, several with that over the seeds."""
    from advadapters.evaluation.studies import spread
    from advadapters.evaluation.tables import percent

    if len(rows) > 1:
        return spread([row.value for row in rows])
    return percent(rows[0]) if rows else ""
