"""usage: advadapters extract --workdir=DIR --output=NEW [--mixture=... | --width=...]

Takes one network out of a trained run and makes it an ordinary run of its own, which
`evaluate` and `config.start.workdir` take like any other:

{flags}

Writes config.json, data.json, lineage.json (see `soup`) and checkpoints/ to the new folder
NEW. Nothing is trained, and no image is read but for --statistics.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Annotated, Any

from advadapters.errors import UsageError
from advadapters.flags import Overrides, Separated, Shown, Statistics, Step, Workdir

Make = Callable[[Any, Any], Any]  # variables and their shapes there -> variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    workdir: Workdir
    output: Annotated[str, Shown("NEW"), "the folder of the new run"]
    mixture: Annotated[
        tuple[str, ...],
        Separated(";", "mixture"),
        Shown("clean=0.9,linf=0.1"),
        "a mode or soup, as a network with one domain",
    ] = ()
    width: Annotated[
        float | None,
        Shown("0.5", "one number"),
        "a width of an OATS network, as a smaller OAT network",
    ] = None
    statistics: Annotated[
        Statistics,
        "with a --mixture, batch statistics estimated anew on so many training images "
        "(default: the mixed ones)",
    ] = None
    step: Step = "latest"
    overrides: Overrides = ()


def main(flags: Flags) -> int:
    """Returns the exit code."""
    if bool(flags.mixture) == (flags.width is not None):
        raise UsageError("give either --mixture=... or --width=...")
    if flags.width is not None and flags.statistics:
        raise UsageError("--statistics goes with --mixture=...: a width has its own")
    from advadapters.runs import opening, workdir
    from advadapters.runs.assembling import lineage

    opened = opening.open_trained(flags.workdir, flags.overrides, bool(flags.statistics))
    take = soup if flags.mixture else narrow
    changed, make = take(opened, opened.config, flags)
    variables, step = opening.restore_variables(opened, flags.step)
    new = opening.write_run(
        changed,
        flags.output,
        lambda like: make(variables, like),
        workdir.read_data(flags.workdir),
    )
    name = os.path.basename(opened.folder)
    row = lineage(name, opened.folder, opened.config, step)
    row |= {"mixture": flags.mixture[0]} if flags.mixture else {"width": flags.width}
    row |= {"statistics": flags.statistics} if flags.statistics else {}
    workdir.write_text(new.folder / "lineage.json", json.dumps([row], indent=1) + "\n")
    print(f"step {step} of {opened.folder} -> {new.folder}")
    return 0


def soup(opened: Any, config: dict[str, Any], flags: Flags) -> tuple[dict[str, Any], Make]:
    """(config of a network with one domain, variables -> its variables)."""
    from advadapters import defaults, networks, trees
    from advadapters.runs import evaluating
    from advadapters.training import states
    from advadapters.training.cases import read_mixtures

    run = opened.run
    if run.film:
        raise UsageError("--mixture: this network goes by lambda; take out a --width")
    mixtures = read_mixtures("mixture", flags.mixture, run.domains)
    if len(mixtures) != 1:
        raise UsageError(f"--mixture must be one mixture, got {';'.join(flags.mixture)!r}")
    cases = [networks.mixture_case(run.domains, mixtures[0])]

    def make(variables: Any, like: Any) -> Any:
        (case,) = evaluating.settle_statistics(opened, variables, cases, flags.statistics)
        tree = states.branches(run.network.at(variables, case.knob), (), 1)
        if trees.flatten(like).keys() != trees.flatten(tree).keys() or any(
            leaf.shape != trees.flatten(tree)[path].shape
            for path, leaf in trees.flatten(like).items()
        ):
            raise UsageError(
                "--mixture: the LoRAs of several domains side by side are no ordinary "
                "network; merge them into the kernels (advadapters.adapters.lora)"
            )
        return tree

    nominal = defaults.method("nominal", {}) | dict(trained=(".*",))
    return plain_config(config, nominal), make


def narrow(
    opened: Any, config: dict[str, Any], flags: Flags
) -> tuple[dict[str, Any], Make]:
    """(config of a network of one width, variables -> its variables)."""
    import jax

    from advadapters import trees

    method = opened.run.method
    if "width" not in method.numbers:
        raise UsageError("--width: this network has one width; take out a --mixture")
    (width,) = {case.network for case in method.cases_at({"width": [flags.width]})}
    count = len(method.domains()) // len(method.widths)
    first = method.widths.index(width) * count

    def make(variables: Any, like: Any) -> Any:
        def rows(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf[first : first + count], tree)

        stats = variables["stats"]
        cut = variables | {
            "adapters": rows(variables["adapters"]),
            "stats": stats | {"adapters": rows(stats["adapters"])},
        }
        return trees.corner(cut, like)

    kind = config["loss"]
    changed = plain_config(config, {kind: config[kind] | {"widths": (1.0,)}})
    factor = config["model"]["width"] * width
    return changed | {"model": config["model"] | {"width": factor}}, make


def plain_config(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config that starts from nothing, with changes."""
    from advadapters import defaults

    changed = {key: x for key, x in config.items() if key != config["loss"]}
    return changed | {"start": config["start"] | defaults.NO_START} | changes
