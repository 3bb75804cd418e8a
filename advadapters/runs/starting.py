"""The first parameters of a run that starts from another run, or from a file of weights."""

import collections
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from advadapters import checkpoints, networks, soups, trees, weights
from advadapters.builders.run import Run, Start
from advadapters.data import identity
from advadapters.defaults import TRAINING_ONLY
from advadapters.errors import UsageError
from advadapters.models import MODELS
from advadapters.runs import evaluating, workdir
from advadapters.shapes import AnyArray, Shaped

Leaf = Shaped[AnyArray, "..."] | jax.ShapeDtypeStruct
Flat = Mapping[str, Leaf]  # by path
Fates = dict[str, str]  # by path: "loaded", "initialised" or "dropped", ...

# Keys of config.model that the names and shapes of parameters show. Of the size they show
# all but the number of heads.
SHOWN = (
    "classes", "patch", "prompts", "scan", "size", "width", "class_token",
    "class_position", "pre_norm", "layer_scale", "qkv_bias", "patch_bias",
)  # fmt: skip

# Settings of the images that files of weights may say.
IMAGES = ("image_size", "crop_ratio", "interpolation")
# Settings of ours that no other program's file says.
NEVER_SAID = ("positions", "resize", "norm", "added", "film")


class First(NamedTuple):
    """The first parameters of a run.

    Attributes:
      plain: {"params", "batch_stats"} on the host, None where all of them are initialised.
      report: lines for the user that say what became of every leaf.
    """

    plain: dict[str, Any] | None
    report: str


def read(run: Run) -> First:
    """The first parameters that `run.start` asks for.

    Every leaf of either network is loaded, or changed as `weights.fitting` does it,
    initialised from the run's seed (those that `fresh` matches), or dropped (those of the
    other network that `dropped` or `fresh` matches).

    Raises:
      UsageError: a leaf has none of these fates; the models differ in a setting that no
        leaf shows and that is not in `changed`; or there is no such checkpoint or file.
    """
    start = run.start
    assert start is not None
    there, lines = _from_file(start) if start.weights else from_run(start)
    here = _initial(run, bool(start.fresh))
    there, here = ({b: trees.flatten(tree[b]) for b in tree} for tree in (there, here))
    whole, changes = there["params"], {}
    if start.model["name"] == "vit":
        there["params"], changes = _fit_vit(whole, here["params"], start)
        if any(path.startswith("blocks/") for path in here["params"]):
            whole = weights.fitting.scanned_blocks(_arrays(whole))  # as fates call them
    elif start.weights:
        there["params"] = _arrays(whole)
        weights.fitting.recolour(there["params"], _shapes(here["params"]), changes)
    try:
        trees.select([path for leaves in there.values() for path in leaves], start.dropped)
    except trees.PatternError as error:
        raise UsageError(f"config.start.dropped: {error} of {_source(start)}") from None
    fates, plain = {}, {}
    for branch, leaves in here.items():
        plain[branch] = trees.unflatten(
            _fit(there[branch], leaves, start, fates.setdefault(branch, {}))
        )
    head = f"first parameters: {_describe(start)}"
    for path, fate in changes.items():
        if fates["params"].get(path, "loaded") == "loaded":
            fates["params"][path] = fate
    there["params"] = whole | there["params"]
    return First(plain, "\n".join([head, *table(fates, there, here), *lines]))


def _initial(run: Run, values: bool) -> dict[str, Any]:
    """{"params", "batch_stats"} as the seed draws them, or only their shapes and types."""
    key = jax.random.fold_in(jax.random.key(run.seed), 0)
    if not values:
        return jax.eval_shape(run.network.init, key)
    return jax.jit(run.network.init, compiler_options=run_once())(key)


def run_once() -> dict[str, Any] | None:
    """The compiler options of a program that runs once, which is optimized less on CPUs.

    It gives the same bits in half the time (4 s instead of 8 in one case), as long as
    products and sums are still fused, which they are not at level 0. There are no options
    where the environment gives XLA a level.
    """
    flag = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or flag in os.environ.get("XLA_FLAGS", ""):
        return None
    return {flag: 1}


def _source(start: Start) -> str:
    """The run or the file that the parameters come from."""
    return start.weights or start.workdir


def need_same_classes(run: Run) -> None:
    """Raises UsageError where a run's head is taken over and its classes have other names.

    Prints a line where they cannot be compared. Files of weights have no names.
    """
    start = run.start
    assert start is not None
    params = jax.eval_shape(run.network.init, jax.random.key(0))["params"]
    head = [path for path in trees.flatten(params) if path.startswith("head/")]
    if not start.workdir or all(
        any(trees.matches(pattern, path) for pattern in start.fresh) for path in head
    ):
        return
    workdir.read_config(start.workdir)  # raises UsageError where there is no run
    there = workdir.read_data(start.workdir)
    if there is None:
        line = f"{start.workdir} knows no class names, so they are not compared"
    else:
        titles = (start.workdir, "the data")
        names = there["classes"], run.data.source.names
        try:
            line = identity.need_same_names(*names, titles)
        except UsageError as error:
            raise UsageError(
                f"config.start.workdir: {error}, or give the head new classes with "
                "config.start.fresh=('head/.*',)"
            ) from None
    if line:
        print(line)


def _describe(start: Start) -> str:
    """Where the first parameters come from, in a few words."""
    return start.weights or f"{start.workdir}, checkpoint {start.step}"


def _from_file(start: Start) -> tuple[dict[str, Any], list[str]]:
    """({"params", "batch_stats"} of the file of weights, further lines for the user)."""
    file = weights.read(epath.Path(start.weights).expanduser())
    there = {key: value for key, value in file.model.items() if key not in SHOWN}
    if heads := there.pop("heads", 0):
        there["size"] = {"heads": heads}
    elif isinstance(file.model.get("size"), str):
        there["size"] = file.model["size"]
    lines = _other_settings(start, there)
    if "pool" not in there:
        _need_pool_with_norm(start, file.leaves["params"])
    lines += [
        f"  images: {key} is {_written(start.data[key])}, there {_written(value)}"
        for key, value in file.data.items()
        if not _is_same(start.data[key], value)
    ]
    keys = [*_hidden(start.model), *IMAGES]
    unknown = [key for key in keys if key not in (*there, *file.data, *NEVER_SAID)]
    if unknown:
        unknown = ["heads" if key == "size" else key for key in unknown]
        lines.append(f"  not said by the file: {', '.join(unknown)}")
    if file.ignored:
        more = f" and {len(file.ignored) - 3} more" if file.ignored[3:] else ""
        lines.append(f"  no part of the network: {', '.join(file.ignored[:3])}{more}")
    return {b: trees.unflatten(leaves) for b, leaves in file.leaves.items()}, lines


def _need_pool_with_norm(start: Start, leaves: Flat) -> None:
    """Raises UsageError where the norm of each token would become the norm of their mean.

    What a file does not say of its pool its names may: a norm after the mean is called
    differently, so "norm" belongs to any pool but "tokens".
    """
    fresh = _matches_any(start.fresh, "norm/scale") or "pool" in start.changed
    if start.model.get("pool") == "tokens" and "norm/scale" in leaves and not fresh:
        raise UsageError(
            f"{start.weights} was trained with the norm before the mean over tokens, and "
            "config.model.pool=tokens has it after: set config.model.pool=class or "
            "normed_tokens, or begin with a norm of its own, "
            "config.start.fresh=('norm/.*',), or name 'pool' in config.start.changed"
        )


def _fit_vit(there: Flat, here: Flat, start: Start) -> weights.fitting.Fitted:
    """The leaves of a ViT, for one with leaves like `here`."""
    channels = len(start.model["mean"])
    arrays, shapes = _arrays(there), _shapes(here)
    return weights.fitting.fit_vit(arrays, shapes, channels, start.resample)


def _arrays(flat: Flat) -> dict[str, np.ndarray]:
    """The leaves as numpy's arrays."""
    return {path: np.asarray(leaf) for path, leaf in flat.items()}


def _shapes(flat: Flat) -> dict[str, tuple[int, ...]]:
    """The shapes of the leaves."""
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def from_run(start: Start) -> tuple[dict[str, Any], list[str]]:
    """A run's averaged parameters, mixed, and further lines for the user.

    Returns:
      {"params", "batch_stats"}, and a line for each setting of the model that is `changed`
      and each warning.
    """
    folder = epath.Path(start.workdir).expanduser().absolute()
    config = workdir.read_config(folder)
    case = _case_of(start, config)
    lines = _other_settings(start, config["model"])
    with checkpoints.Checkpoints(
        folder / "checkpoints", best=bool(config.get("validate_every")), read_only=True
    ) as saved:
        state, _ = saved.read(start.step, saved.restore_raw, folder)
    # Empty branches are not kept in checkpoints.
    stats = {"shared": {}, "adapters": {}} | state["ema"].get("stats", {})
    empty = {"shared": {}, "adapters": {}, "frozen": {}}
    variables = empty | state["variables"] | state["ema"] | {"stats": stats}
    lines += evaluating.warnings_of_statistics(variables, [case])
    return trees.plain(variables, case.knob.mixture), lines


def _case_of(start: Start, config: Mapping[str, Any]) -> networks.Case:
    """The network of the other run that its mixture names."""
    domains = config.get("domains", ())
    if not domains:
        raise UsageError(
            f"{start.workdir} has a network of {config.get('loss')!r}: take an ordinary "
            "one out of it first, by advadapters extract"
        )
    mixture = start.mixture or ({domains[0]: 1.0} if len(domains) == 1 else {})
    try:
        return networks.mixture_case(domains, soups.weights_of(mixture, domains))
    except ValueError as error:
        raise UsageError(
            f"config.start.mixture={start.mixture} of {start.workdir}: {error}"
        ) from None


def _other_settings(start: Start, there: Mapping[str, Any]) -> list[str]:
    """A line for each setting of the model that is `changed`, where it is another there.

    there: the other model's settings. Raises UsageError where one that is not `changed` is
    another.
    """
    settings, lines, refused = workdir.leaves(_hidden(start.model)), [], {}
    for key, value in workdir.leaves(_hidden(there)).items():
        if key not in settings or _is_same(settings[key], value):
            continue
        if key.partition(".")[0] in start.changed:
            here, other = _written(settings[key]), _written(value)
            lines.append(f"  changed: {key} is {here}, there {other}")
        else:
            refused[key] = value
    if refused:
        others = ", ".join(f"{key} {_written(value)}" for key, value in refused.items())
        flags = "; ".join(
            f"config.model.{key}={_written(value)}, which is {_written(settings[key])}"
            for key, value in refused.items()
        )
        names = ", ".join(repr(key.partition(".")[0]) for key in refused)
        raise UsageError(
            f"{_source(start)} was trained with {others}: set {flags}, or name {names} in "
            "config.start.changed"
        )
    return lines


def _hidden(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of config.model that no leaf shows, with the heads of a transformer."""
    kept = {k: v for k, v in model.items() if k not in (*TRAINING_ONLY, *SHOWN)}
    size = model.get("size")
    if model.get("name") == "vit" and isinstance(size, str):
        size = {"heads": MODELS["vit"].read_size(size).heads}
    return kept | ({"size": size} if isinstance(size, dict) else {})


def _is_same(first: Any, second: Any) -> bool:
    """Whether two settings are equal, floats as far as files of float32 keep them."""
    try:
        slack = 1e-4 if np.ndim(first) else 0.0
        close = np.allclose(first, second, rtol=1e-4, atol=slack)
        return np.shape(first) == np.shape(second) and close
    except TypeError:
        return first == second


def _written(value: Any) -> Any:
    """A setting as messages have it, with four digits of the floats in tuples."""
    if isinstance(value, tuple):
        return tuple(round(v, 4) if isinstance(v, float) else v for v in value)
    return value


def _matches_any(patterns: Sequence[str], path: str) -> bool:
    """Whether one of the patterns matches a path."""
    return any(trees.matches(pattern, path) for pattern in patterns)


def _fit(there: Flat, here: Flat, start: Start, fates: Fates) -> dict[str, Leaf]:
    """The leaves of `there` that `here` has, and the rest as `here` has them.

    It adds the fate of every leaf to `fates`.
    """
    leaves, differ = {}, []
    for path, leaf in here.items():
        if _matches_any(start.fresh, path):
            leaves[path], fates[path] = leaf, "initialised"
            continue
        known = path in there and not _matches_any(start.dropped, path)
        shape = np.shape(there[path]) if known else ()
        if not known or shape != leaf.shape:
            shape = list(shape) if known else "missing"
            differ.append(f"{path} is {list(leaf.shape)} here and {shape} there")
            continue
        leaves[path], fates[path] = jnp.asarray(there[path]), "loaded"
    if differ:
        more = f"; and {len(differ) - 3} more" if differ[3:] else ""
        raise UsageError(
            f"config.start: {'; '.join(differ[:3])}{more}: use the same model, or list "
            "the leaves in config.start.fresh to initialise them"
        )
    left = [path for path in there if path not in here]
    for path in left:
        if not _matches_any((*start.dropped, *start.fresh), path):
            more = f" and {len(left) - 1} more leaves" if left[1:] else ""
            raise UsageError(
                f"{_source(start)} has {path}{more}, which this network does not have: use "
                "the same config.model, or list in config.start.dropped what is left behind"
            )
        fates[path] = "dropped"
    return leaves


def table(
    fates: Mapping[str, Fates],
    there: Mapping[str, Mapping[str, Any]],
    here: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """A line for each fate, with its leaves, their numbers, and where they are.

    Args:
      fates: the fate of each leaf, by branch and path.
      there, here: the leaves of either network, by branch and path.
    """
    lines = []
    for fate in ("loaded", "resampled", "recoloured", "folded", "initialised", "dropped"):
        paths = [(b, p) for b in fates for p, other in fates[b].items() if other == fate]
        parts = collections.Counter(
            re.sub(r"\d+", "*", path.partition("/")[0]) for _, path in paths
        )
        leaves = [here[b][p] if p in here[b] else there[b][p] for b, p in paths]
        size = sum(int(np.size(leaf)) for leaf in leaves)
        listed = ", ".join(f"{part} {count}" for part, count in parts.items())
        if paths:
            lines.append(
                f"  {fate:12} {len(paths):>5} leaves, {size:>12,} parameters: {listed}"
            )
    return lines
