"""usage: advadapters convert --input=IN [--output=OUT] [--image_size=224] [--patch=16]

Reads pretrained weights, prints what they are of and which config.model takes them, and
writes them as a file by this program's names, which config.start.weights takes.

IN is a file of timm's, transformers' (or its folder), vision_transformer's, big_vision's,
torch's or ONNX, whatever it is called, or a run of this program; docs/weights.md lists
them. Without OUT nothing is written.

{flags}
"""

import dataclasses
import re
from typing import Annotated, Any

from advadapters.errors import UsageError
from advadapters.flags import Separated, Shown, Step
from advadapters.schema import Between, OneOf

WAYS = ("bicubic", "cubic", "linear")  # of weights.resample, which is imported later


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this verb."""

    input: Annotated[str, Shown("IN"), "a file or folder of weights, or a run"]
    output: Annotated[str, Shown("OUT"), "the new file, .safetensors"] = ""
    image_size: Annotated[
        int | None,
        Between(low=1),
        Shown("224"),
        "resize positions for images of so many pixels",
    ] = None
    patch: Annotated[
        int | None, Between(low=1), Shown("16"), "resize patches to so many pixels"
    ] = None
    resample: Annotated[
        str, OneOf(WAYS), Shown("linear"), "how these are resized: bicubic, cubic or linear"
    ] = "bicubic"
    grid: Annotated[
        str,
        Shown("14x20"),
        "rows and columns of patches, where the positions of IN are no square; with "
        "--image_size they are resized to one",
    ] = ""
    heads: Annotated[
        int | None,
        Between(low=1),
        Shown("12"),
        "attention heads, where IN does not say (default: of 64 channels each)",
    ] = None
    mixture: Annotated[
        tuple[str, ...],
        Separated(";", "mixture"),
        Shown("clean=0.5,linf=0.5"),
        "of a run, which mode or soup",
    ] = ()
    step: Step = "latest"


def main(flags: Flags) -> int:
    """Returns the exit code."""
    from etils import epath

    from advadapters import weights

    source = epath.Path(flags.input).expanduser()
    output = epath.Path(flags.output).expanduser() if flags.output else None
    if output and output.exists():
        raise UsageError(f"{output} is there already: name a new file")
    is_run = source.is_dir() and (source / "checkpoints").exists()
    if is_run and flags.grid:
        raise UsageError("--grid is of files; the positions of runs are squares")
    loaded = from_run(flags) if is_run else weights.read(source, read_grid(flags))
    loaded, fates = resized(loaded, flags)
    fates |= {"pos_embed": "resampled"} if flags.grid else {}
    print(described(loaded, fates, flags.input))
    if output:
        weights.save(output, loaded)
        print(f"written: {output}, for config.start.weights")
    return 0


def read_grid(flags: Flags) -> Any:
    """The `fitting.Rectangle` of the flags, None without --grid."""
    from advadapters.weights.fitting import Rectangle

    if not flags.grid:
        return None
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", flags.grid)
    if match is None or flags.image_size is None:
        raise UsageError(
            f"--grid={flags.grid} must be ROWSxCOLUMNS like 14x20, with --image_size=224"
        )
    sides = int(match[1]), int(match[2])
    return Rectangle(*sides, flags.image_size, flags.patch or 0, flags.resample)


def from_run(flags: Flags) -> Any:
    """The `weights.Weights` of a run's averaged parameters, mixed."""
    import numpy as np

    from advadapters import trees, weights
    from advadapters.builders.run import Start
    from advadapters.runs import starting, workdir
    from advadapters.training.cases import read_mixtures

    folder = flags.input
    config = workdir.read_config(folder)
    domains = tuple(config.get("domains", ()))
    mixture: dict[str, float] = {}
    if flags.mixture:
        row, *more = read_mixtures("mixture", flags.mixture, domains)
        if more:
            raise UsageError("--mixture must be one mixture")
        mixture = {name: float(w) for name, w in zip(domains, row, strict=True)}
    model, data = config["model"], config["data"]
    nothing: dict[str, Any] = dict(
        fresh=(), dropped=(), changed=(), weights="", resample="bicubic"
    )
    start = Start(folder, flags.step, mixture, model=model, data=data, **nothing)
    plain, _ = starting.from_run(start)
    leaves = {
        branch: {path: np.asarray(leaf) for path, leaf in trees.flatten(tree).items()}
        for branch, tree in plain.items()
    }
    kept = {key: data[key] for key in starting.IMAGES}
    return weights.Weights(leaves, dict(model), kept, [], weights.OURS, "run")


def resized(loaded: Any, flags: Flags) -> tuple[Any, dict[str, str]]:
    """(the Weights for other images or patches, {path: fate} of leaves that changed)."""
    from advadapters.weights import fitting, settings

    size = flags.image_size
    if loaded.model["name"] != "vit":
        if size or flags.patch or flags.heads:
            raise UsageError("--image_size, --patch and --heads are of transformers")
        return loaded, {}
    flat = fitting.unrolled_blocks(loaded.leaves["params"])
    shown = settings.from_vit(flat)
    patch = flags.patch or shown["patch"]
    here = {path: leaf.shape for path, leaf in flat.items()}
    rows, width = here["patch_embed/kernel"]
    channels = rows // shown["patch"] ** 2
    here["patch_embed/kernel"] = (patch**2 * channels, width)
    if "pos_embed" in flat:
        first, prompts = int(shown["class_token"]), shown["prompts"]
        grid = settings.grid_of(here["pos_embed"][1], first, prompts)
        side = grid.side
        if size:
            if size % patch:
                raise UsageError(
                    f"--image_size={size} is no multiple of the patch, {patch}"
                )
            side = size // patch
        here["pos_embed"] = (1, grid.first + side**2, width)
    result = fitting.fit_vit(flat, here, channels, flags.resample)
    leaves = loaded.leaves | {"params": result.leaves}
    data = loaded.data | ({"image_size": size} if size else {})
    heads = {"heads": flags.heads} if flags.heads else {}
    form = dict(scan=False) if "scan" in loaded.model else {}
    model = loaded.model | settings.from_vit(result.leaves) | heads | form
    if isinstance(loaded.model.get("size"), str):
        model["heads"] = int(loaded.model["size"].split("x")[-1])
    return loaded._replace(leaves=leaves, model=model, data=data), result.fates


def described(loaded: Any, fates: dict[str, str], name: str) -> str:
    """What weights are of, as a few lines."""
    from advadapters import schema
    from advadapters.models import MODELS
    from advadapters.runs import starting
    from advadapters.weights import settings

    changed = {"params": fates, "batch_stats": {}}
    all_fates = {
        branch: dict.fromkeys(flat, "loaded") | changed[branch]
        for branch, flat in loaded.leaves.items()
    }
    gone = {branch: dict.fromkeys(flat, ()) for branch, flat in all_fates.items()}
    lines = [f"{name}: {loaded.family}, {loaded.kind}"]
    lines += starting.table(all_fates, gone, loaded.leaves)
    if loaded.ignored:
        lines.append(f"  no part of the network: {', '.join(loaded.ignored[:5])}")
    keys = settings.keys_of(loaded.model)
    usual = schema.defaults_of(MODELS[keys["name"]])
    differing = {k: v for k, v in keys.items() if k not in ("name", "size")}
    differing = {k: v for k, v in differing.items() if usual.get(k) != v or k not in usual}
    size = [repr(keys["size"])] if "size" in keys else ["SIZE"]
    arguments = [repr(keys["name"]), *size, *(f"{k}={v!r}" for k, v in differing.items())]
    lines.append(f"config.model = defaults.model({', '.join(arguments)})")
    if loaded.data:
        inner = ", ".join(f"{key}={value!r}" for key, value in loaded.data.items())
        lines.append(f"config.data.update({inner})")
    wanted = ("mean", "std", *starting.IMAGES)
    if keys["name"] == "vit":
        wanted = ("heads", "pool", "gelu", "norm_eps", *wanted)
    known = {*loaded.model, *loaded.data}
    guesses = {"heads": "heads (taken to have 64 channels each)"}  # `settings.keys_of`
    unknown = [guesses.get(key, key) for key in wanted if key not in known]
    if unknown:
        lines.append(f"not said by the file: {', '.join(unknown)}")
    return "\n".join(lines)
