"""One run of several trained networks: what `soup` does, and where its parts come from."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from advadapters import configs
from advadapters.errors import UsageError

Config = dict[str, Any]


def assemble(
    folders: Sequence[str],
    output: str,
    overrides: Sequence[str] = (),
    *,
    names: Sequence[str] | None = None,
    soup_weights: Sequence[float] | None = None,
) -> Any:
    """Writes the run of several networks, --config.KEY=VALUE applied; returns it opened.

    names: of its domains; those of the folders for None. soup_weights: of the first
    ingredient, in the networks that are evaluated; those of its config for None.
    """
    from advadapters import soups
    from advadapters.runs import opening, workdir

    names = list(names or []) or [
        os.path.basename(os.path.normpath(folder)) for folder in folders
    ]
    if len(set(names)) != len(names) or len(names) < 2:
        raise UsageError(f"--ingredients must be two or more different names, got {names}")
    try:
        soups.check_names(names)
    except ValueError as error:
        raise UsageError(f"--ingredients: {error}; rename the folder") from None
    settings = [
        configs.override(workdir.read_config(folder), overrides) for folder in folders
    ]
    need_alike(folders, settings)
    data = need_same_classes(folders)
    networks = [read(folder, overrides) for folder in folders]
    try:
        params = soups.stack([plain["params"] for plain, _ in networks], names)
        stats = soups.stack([plain["batch_stats"] for plain, _ in networks], names)
    except ValueError as error:
        raise UsageError(f"--ingredients: {error}") from None
    variables = {
        "shared": {},
        "adapters": params,
        "frozen": {},
        "stats": {"shared": {}, "adapters": stats, "errors": {}},
    }
    config = config_of(names, settings, bool(stats))
    if soup_weights is not None:
        config["evaluation"]["soup_weights"] = tuple(soup_weights)
    new = opening.write_run(config, output, lambda like: variables, data)
    steps = [step for _, step in networks]
    rows = list(map(lineage, names, folders, settings, steps))
    workdir.write_text(new.folder / "lineage.json", json.dumps(rows, indent=1) + "\n")
    ancestors = sorted({row["ancestor"] for row in rows})
    if len(ancestors) > 1:
        print(f"warning: the ingredients have different ancestors: {', '.join(ancestors)}")
    print(f"{' + '.join(names)} -> {new.folder}")
    return new


def need_alike(folders: Sequence[str], settings: Sequence[Config]) -> None:
    """Raises UsageError where networks do not make soups, or results would not compare.

    Models that differ or have several domains, and suites of one name that differ.
    """
    from advadapters.defaults import TRAINING_ONLY

    def model(config: Config) -> Config:
        return {k: v for k, v in config["model"].items() if k not in TRAINING_ONLY}

    for folder, config in zip(folders, settings, strict=True):
        if len(config["domains"]) != 1 or config["loss"] != "views":
            raise UsageError(
                f"{folder} is not a network with one domain; take one out of it first: "
                "advadapters extract"
            )
        differ = [k for k, v in model(config).items() if model(settings[0]).get(k) != v]
        if differ:
            raise UsageError(
                f"{folder} and {folders[0]} differ in config.model.{differ[0]}: soups mix "
                "networks of one kind"
            )
        need_same_suites(folders[0], settings[0], folder, config)


def need_same_suites(first: str, there: Config, folder: str, config: Config) -> None:
    """Raises UsageError for a suite that two runs have with other settings."""
    suites, others = there["evaluation"]["suites"], config["evaluation"]["suites"]
    for name in suites.keys() & others.keys():
        for key in sorted(suites[name].keys() | others[name].keys()):
            values = suites[name].get(key), others[name].get(key)
            if values[0] != values[1]:
                raise UsageError(
                    f"{folder} and {first} both have a suite {name!r}, with {key}="
                    f"{values[1]!r} and {values[0]!r}: results have one of each name; "
                    f"--config.evaluation.suites.{name}.{key}=... sets it for all"
                )


def need_same_classes(folders: Sequence[str]) -> Any:
    """What the first of the runs that knows its images remembers of them, or None.

    Raises UsageError where names of classes differ; says so where they are not known.
    """
    from advadapters.data import identity
    from advadapters.runs import workdir

    known = {folder: workdir.read_data(folder) for folder in folders}
    there = {folder: data for folder, data in known.items() if data}
    if len(there) < len(known):
        missing = ", ".join(folder for folder in known if folder not in there)
        print(f"class names are not compared: none are known of {missing}")
    (first, data), *others = [*there.items()] or [("", None)]
    for folder, other in others:
        line = identity.need_same_names(data["classes"], other["classes"], (first, folder))
        if line:
            print(line)
    return data


def read(folder: str, overrides: Sequence[str]) -> tuple[Any, int]:
    """({"params", "batch_stats"} of a run's newest averaged network, step)."""
    from advadapters.runs import opening

    opened = opening.open_trained(folder, overrides, images=False)
    variables, step = opening.restore_variables(opened, "latest")
    network = opened.run.network
    return network.at(variables, opened.run.evaluation.cases[0].knob), step


def config_of(names: Sequence[str], settings: Sequence[Config], statistics: bool) -> Config:
    """The config of the run: the first ingredient's, everything domain-specific."""
    from advadapters import defaults

    first, share = settings[0], 1 / len(names)
    suites = {}
    for config in settings:
        suites |= config["evaluation"]["suites"]
    return first | dict(
        domains=tuple(names),
        adapters=("everything",),
        trained=(".*",),
        views={name: defaults.view(name, share) for name in names},
        attacks={},
        statistics="separate" if statistics else "pooled",
        weight_perturbation=0.0,
        start=first["start"] | defaults.NO_START,
        # Nothing is shared, so a common call gains nothing; convolutions are slow in it.
        evaluation=first["evaluation"] | {"suites": suites, "soups_at_once": 1},
    )


def lineage(
    name: str, folder: str | os.PathLike, config: Config, step: int
) -> dict[str, Any]:
    """Where an ingredient comes from."""
    recipe = json.dumps(config, sort_keys=True).encode()
    return {
        "name": name,
        "workdir": os.path.abspath(folder),
        "step": step,
        "ancestor": ancestor(folder, config),
        "threats": config["attacks"],
        "epochs": config["epochs"],
        "recipe": hashlib.sha256(recipe).hexdigest()[:12],
    }


def ancestor(folder: str | os.PathLike, config: Config) -> str:
    """The run, or file of weights, at the beginning of a chain of fine-tunings."""
    from advadapters.runs import workdir

    visited = set()
    while (source := source_of(folder, config)) and source not in visited:
        folder = source
        visited.add(folder)
        try:
            config = workdir.read_config(folder)
        except UsageError:  # a file, or moved since; its name still tells it from another
            break
    return os.path.abspath(config["start"]["weights"] or folder)


def source_of(folder: str | os.PathLike, config: Config) -> str:
    """The run that one was fine-tuned from or taken out of, "" if it began by itself."""
    from advadapters.runs import workdir

    rows = workdir.read_lineage(folder)
    known = {row["ancestor"] for row in rows}
    return config["start"]["workdir"] or (known.pop() if len(known) == 1 else "")
