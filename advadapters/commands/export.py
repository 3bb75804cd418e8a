"""usage: advadapters export --workdir=DIR --output=FILE.stablehlo [--mixture=...]

Writes the network of a trained run to one file that needs neither this program's models
nor the run: a StableHLO program with its gradient, for CPUs, GPUs and TPUs and batches of
any size, the parameters, and what the network is. Without a flag that chooses one network,
the mixture stays an input: weights of the domains for all images, or for each.

{flags}

`advadapters.load_exported(FILE)` reads it with jax, numpy and flatbuffers alone. No image
of the run is read or written.
"""

import dataclasses
import os
from typing import Annotated, Any

from advadapters.errors import UsageError
from advadapters.flags import Shown, Step, Workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    workdir: Workdir
    output: Annotated[str, Shown("FILE.stablehlo"), "the new file"]
    mixture: Annotated[str, Shown("clean=0.3,linf=0.7"), "one mode or soup alone"] = ""
    lambda_: Annotated[
        float | None,
        Shown("0.2"),
        "of a run that is conditioned on lambda, the network there",
    ] = None
    width: Annotated[
        float, Shown("0.5"), "with --lambda, of a run of several widths, one of these"
    ] = 1.0
    step: Step = "latest"


def main(flags: Flags) -> int:
    """Returns the exit code."""
    if flags.mixture and flags.lambda_ is not None:
        raise UsageError("give either --mixture=... or --lambda=...")
    from advadapters.runs import exporting, opening

    exporting.check_path(flags.output)
    opened = opening.open_trained(flags.workdir, images=False)
    case = read_case(opened.run, flags)
    variables, step = opening.restore_variables(opened, flags.step)
    exporting.write(opened, variables, step, flags.output, case)
    size = os.path.getsize(os.path.expanduser(flags.output))
    print(f"step {step} of {opened.folder} -> {flags.output}, {size:,} bytes")
    return 0


def read_case(run: Any, flags: Flags) -> Any:
    """The one network (`networks.Case`) that the flags name, None for all."""
    from advadapters import networks
    from advadapters.training import cases

    if flags.lambda_ is not None:
        if "lambda" not in run.method.numbers:
            raise UsageError("--lambda: this run is not conditioned on it; see --mixture")
        return run.method.cases_at({"lambda": [flags.lambda_], "width": [flags.width]})[0]
    if not flags.mixture:
        return None
    (mixture,) = cases.read_mixtures("mixture", [flags.mixture], run.domains)
    return networks.mixture_case(run.domains, mixture)
