"""Networks of an opened run as files that other programs load."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

import advadapters
from advadapters import hosts, meshes, networks, trees
from advadapters.errors import UsageError
from advadapters.exports import folders, reading, tensors, timm_files, writing
from advadapters.runs import cards, workdir
from advadapters.runs.context import OpenRun

SUFFIX = ".stablehlo"


def write(
    opened: OpenRun,
    variables: Mapping[str, Any],
    step: int,
    path: str | os.PathLike,
    case: networks.Case | None = None,
    width: float = 1.0,
) -> None:
    """Writes the networks of a run as one that takes a mixture, see `exports.reading`.

    A run that is conditioned on lambda becomes a network that takes lambda.

    opened, variables, step: a run and what was read of a checkpoint. case: the one network
    (`networks.Case`) to write in their place. width: of the networks, where there are
    several. A run of one domain takes no mixture. Raises UsageError for a file that cannot
    be written.
    """
    run = opened.run
    if case is None and "lambda" in run.method.numbers:
        _write_by_lambda(opened, variables, step, path, width)
        return
    if width != 1:
        raise UsageError("--width: this run has networks of one width")
    if case is None and len(run.domains) == 1:
        case = networks.mixture_case(run.domains, (1.0,))
    about = describe(opened, step, case)
    if case is None:
        network = writing.Exportable(run.network.evaluate, trees.plain, variables)
    else:
        chosen = run.networks[case.network]
        plain = jax.jit(chosen.at)(variables, case.knob)
        network = writing.Exportable(chosen.evaluate, None, plain)
    write_network(network, path, about)


def _write_by_lambda(
    opened: OpenRun,
    variables: Mapping[str, Any],
    step: int,
    path: str | os.PathLike,
    width: float,
) -> None:
    """`write` of all networks of one width as one that takes lambda."""
    run, method = opened.run, opened.run.method
    case = method.cases_at({"width": [width]})[0]  # raises UsageError for another width
    network = run.networks[case.network]

    def at(tree: Any, lam: Any) -> Any:
        return network.at(tree, method.knob_at(lam, case.network))

    known = run.film.lambdas if run.film and run.film.encoding != "none" else ()
    about = describe(opened, step, None) | {"domains": [], reading.LAMBDAS: list(known)}
    if case.identity.width is not None:
        about["source"]["network"] = {"width": case.identity.width}
    write_network(writing.Exportable(network.evaluate, at, variables), path, about)


def write_network(
    network: writing.Exportable, path: str | os.PathLike, about: Mapping[str, Any]
) -> None:
    """Writes a `writing.Exportable` that `describe` tells about; raises UsageError where
    the file cannot be written.
    """
    file = check_path(path)
    network = network._replace(tree=jax.tree.map(meshes.gather, network.tree))
    if not hosts.first():
        return
    try:
        writing.write(network, file, about)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error}") from None


def check_path(path: str | os.PathLike) -> epath.Path:
    """The path of a new file; raises UsageError unless its name ends with `SUFFIX`."""
    if not os.fspath(path).endswith(SUFFIX):
        raise UsageError(f"an exported network is a file {SUFFIX}, got {os.fspath(path)!r}")
    return epath.Path(os.path.abspath(os.path.expanduser(path)))


def describe(
    opened: OpenRun, step: int, case: networks.Case | None = None
) -> dict[str, Any]:
    """The metadata of a network of a run; case: the fixed one, None for all of them."""
    config, data = opened.config, opened.run.data
    classes = data.source.names or map(str, range(config["model"]["classes"]))
    domains = () if case else opened.run.domains
    size = f"{data.image_size}x{data.image_size}"
    colours = {1: "gray", 3: "RGB"}.get(data.channels, f"{data.channels} channels")
    mean, std = (list(config["model"].get(key, ())) for key in ("mean", "std"))
    return {
        "name": str(case.identity) if case else "",
        "domains": list(domains),
        "classes": list(classes),
        "image": [data.image_size, data.image_size, data.channels],
        "eps": radii(config, opened.run.domains),
        "preprocessing": (
            f"{colours} images [B, H, W, C] of {size}, float32 in [0, 1] or uint8. "
            f"Evaluation resizes by {data.interpolation!r} and keeps a square in the "
            f"middle, with {data.crop_ratio:g} of the shorter side. Normalisation, mean "
            f"{mean} and std {std}, is inside."
        ),
        "source": {
            "program": f"advadapters {advadapters.__version__}",
            "jax": jax.__version__,
            "run": opened.folder.name,
            "step": step,
            "network": case.identity.plain() if case else {},
            "model": config["model"],
        },
    }


def radii(
    config: Mapping[str, Any], domains: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """{domain: [{"attack", "norm", "eps"}]}: what images of each were trained under.

    Of a config with views, the attacks of those whose mixture has the domain; of others,
    which attack by themselves, all attacks for all domains.
    """
    rows = {
        name: {"attack": attack["name"], "norm": attack["norm"], "eps": attack["eps"]}
        for name, attack in config["attacks"].items()
    }
    if config["loss"] != "views":
        return {domain: list(rows.values()) for domain in domains}
    return {
        domain: [
            rows[name]
            for view in config["views"].values()
            if view["mixture"].get(domain)
            for name in view["attack"].split(",")
            if name
        ]
        for domain in domains
    }


def write_folder(
    opened: OpenRun,
    variables: Mapping[str, Any],
    step: int,
    folder: str | os.PathLike,
    case: networks.Case | None = None,
    to: str = "timm",
) -> None:
    """Writes one network of a run as `save` does; arguments as of `write`.

    Raises UsageError without a case for a run of several domains.
    """
    if case is None and len(opened.run.domains) > 1:
        raise UsageError(
            f"a folder holds one network, and there are several here: choose it by "
            f"--mixture, weights of {', '.join(opened.run.domains)}"
        )
    case = case or networks.mixture_case(opened.run.domains, (1.0,))
    plain = jax.jit(opened.run.networks[case.network].at)(variables, case.knob)
    save(plain, describe(opened, step, case), opened, folder, to)


def save(
    plain: Mapping[str, Any],
    about: Mapping[str, Any],
    opened: OpenRun,
    folder: str | os.PathLike,
    to: str = "timm",
) -> None:
    """Writes one network as a new folder that another program loads.

    plain: {"params", "batch_stats"}. about: what `describe` says of it. to: a row of
    `exports.folders.KINDS`, the program. In the folder are model.safetensors with its
    names, config.json, and README.md, the model card. If its name ends with .npz, it is a
    single file of arrays with big_vision's names. Raises UsageError for a network that the
    program's cannot be, and for a folder that is not empty.
    """
    target = epath.Path(os.path.abspath(os.path.expanduser(folder)))
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(f"{target} is not empty: name a new folder")
    plain = jax.tree.map(meshes.gather, plain)
    if target.name.endswith(".npz"):
        if to != "timm":
            raise UsageError(f"--to={to} writes a folder, not a file .npz: name a folder")
        named: dict[str, Any] = timm_files.big_vision_arrays(plain, about)
        workdir.write_whole(target, lambda file: np.savez(file, **named))
        return
    contents = folders.make(to, plain, about, opened.config["data"], target.name)
    record, rows = workdir.read_data(opened.folder), workdir.read_results(opened.folder)
    plain_rows = [row.plain() for row in rows or ()]
    text = cards.card(about, opened.config, record, plain_rows, contents.usage)
    if hosts.first():
        _write_folder(target, contents, text)


def _write_folder(target: epath.Path, contents: folders.Folder, card: str) -> None:
    """Writes the files of a folder, and reads the arrays back.

    Raises UsageError where they cannot be written, or are others when they are read.
    """
    arrays = contents.arrays
    try:
        target.mkdir(parents=True, exist_ok=True)
        written = target / "model.safetensors"
        data = tensors.pack(arrays, {"format": "pt"})
        workdir.write_whole(written, lambda file: file.write(data))
        for name, values in contents.files.items():
            workdir.write_json(target / name, values)
        workdir.write_text(target / "README.md", card)
        back = tensors.unpack(written.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {target}: {error}") from None
    if back.keys() != arrays.keys() or any(
        not np.array_equal(back[name], array) for name, array in arrays.items()
    ):
        raise UsageError(f"{written} does not hold what was written: is the disk full?")


def hub() -> Any:
    """The client of the Hugging Face Hub; raises UsageError where it is not installed."""
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(
            "--push needs huggingface_hub: pip install 'advadapters[hub]'"
        ) from None
    return huggingface_hub.HfApi()


def push(folder: str | os.PathLike, repository: str) -> str:
    """Uploads a folder to a repository of the Hub, which is made if there is none.

    Returns its address. Raises UsageError where the Hub refuses it or is not reached.
    """
    path, client = os.path.abspath(os.path.expanduser(folder)), hub()
    try:
        client.create_repo(repository, exist_ok=True)
        commit = f"Written by advadapters {advadapters.__version__}"
        client.upload_folder(repo_id=repository, folder_path=path, commit_message=commit)
    except Exception as error:  # those of its HTTP client too, which changes
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UsageError(
            f"cannot push {folder} to {repository}: {reason} (`hf auth login` logs in)"
        ) from None
    return f"https://huggingface.co/{repository}"
