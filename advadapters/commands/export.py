"""usage: advadapters export --workdir=DIR --output=FILE.stablehlo [--mixture=...]

Writes the network of a trained run for other programs:

  --to=stablehlo  one file that JAX alone runs, on CPUs, GPUs and TPUs, with gradients, for
                  batches of any size. Unless a flag chooses one network, the mixture stays
                  an input: weights of the domains for all images, or for each. Of a run
                  that is conditioned on lambda, lambda is the input.
                  `advadapters.load_exported` reads it with jax, numpy and flatbuffers.
  --to=timm       a new folder that timm and transformers load: model.safetensors with
                  timm's names, LoRAs merged; config.json; and README.md, a model card. Of
                  one vision transformer, or ResNet with the stem for ImageNet, chosen by
                  --mixture. With --output=FILE.npz it is one file of arrays with
                  big_vision's names, which timm reads too.
  --to=transformers
                  the same with the names of transformers' own ViT, which needs no timm
  --to=torch      the same of a residual network with the names of torchvision's and
                  RobustBench's classes; the card has the lines that RobustBench needs

{flags}

No image of the run is read or written.
"""

import dataclasses
from typing import Annotated, Any

from advadapters.errors import UsageError
from advadapters.flags import Shown, Step, Workdir
from advadapters.schema import OneOf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    workdir: Workdir
    output: Annotated[str, Shown("FILE.stablehlo"), "the new file, or the new folder"]
    to: Annotated[
        str, OneOf(("stablehlo", "timm", "transformers", "torch")), "what is written"
    ] = "stablehlo"
    mixture: Annotated[str, Shown("clean=0.3,linf=0.7"), "one mode or soup alone"] = ""
    lambda_: Annotated[
        float | None,
        Shown("0.2"),
        "of a run that is conditioned on lambda, the network there",
    ] = None
    width: Annotated[
        float, Shown("0.5"), "with --lambda, of a run of several widths, one of these"
    ] = 1.0
    push: Annotated[
        str,
        Shown("USER/NAME"),
        "of a folder, the repository of the Hugging Face Hub that it is uploaded to, with "
        "the login of huggingface_hub",
    ] = ""
    step: Step = "latest"


def main(flags: Flags) -> int:
    """Returns the exit code."""
    if flags.mixture and flags.lambda_ is not None:
        raise UsageError("give either --mixture=... or --lambda=...")
    from advadapters.runs import exporting, opening

    if flags.push:
        if flags.to == "stablehlo" or flags.output.endswith(".npz"):
            raise UsageError("--push uploads a folder: add --to=timm, or another but .npz")
        exporting.hub()  # raises UsageError where it is not installed
    if flags.to == "stablehlo":
        exporting.check_path(flags.output)
    opened = opening.open_trained(flags.workdir, images=False)
    case = read_case(opened.run, flags)
    variables, step = opening.restore_variables(opened, flags.step)
    if flags.to == "stablehlo":
        width = flags.width if case is None else 1.0
        exporting.write(opened, variables, step, flags.output, case, width)
    else:
        exporting.write_folder(opened, variables, step, flags.output, case, flags.to)
    print(f"step {step} of {flags.workdir} -> {flags.output}")
    if flags.push:
        print(f"{flags.output} -> {exporting.push(flags.output, flags.push)}")
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
