"""The first parameters of a run that starts from another run, or from a file of weights."""

import collections
import os
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from advadapters import checkpoints, networks, soups, trees, weights
from advadapters.data import identity
from advadapters.defaults import TRAINING_ONLY
from advadapters.errors import UsageError
from advadapters.models import MODELS
from advadapters.runs import evaluating, workdir

# Keys of config.model that names and shapes of parameters show; of the size, not the heads.
SHOWN = (
    "classes", "patch", "prompts", "scan", "size", "width", "class_token",
    "class_position", "pre_norm", "layer_scale", "qkv_bias", "patch_bias",
)  # fmt: skip

# Settings of the images that files of weights may say.
IMAGES = ("image_size", "crop_ratio", "interpolation")
# Settings of ours that no other program's file says.
NEVER_TOLD = ("positions", "resize", "norm", "added", "film")


class First(NamedTuple):
    """plain: {"params", "batch_stats"} on the host. told: what became of every leaf."""

    plain: dict | None
    told: str


def read(run):
    """The First parameters that `run.start` says.

    Every leaf of either network is loaded, resampled or folded (see `weights.fitting`),
    initialised (those that `fresh` matches, from the run's seed) or dropped (those of the
    other network that `dropped` or `fresh` matches). Raises UsageError for a leaf with
    another fate, for a setting of the model that no leaf shows, is another there and is not
    in `changed`, and if there is no such checkpoint or file.
    """
    start = run.start
    there, lines = from_file(start) if start.weights else from_run(start)
    here = initial(run, bool(start.fresh))
    there, here = ({b: trees.flatten(tree[b]) for b in tree} for tree in (there, here))
    whole, changes = there["params"], {}
    if start.model["name"] == "vit":
        there["params"], changes = fitted(whole, here["params"], start)
    try:
        trees.select([path for leaves in there.values() for path in leaves], start.dropped)
    except trees.PatternError as error:
        raise UsageError(f"config.start.dropped: {error} of {source(start)}") from None
    fates, plain = {}, {}
    for branch, leaves in here.items():
        plain[branch] = trees.unflatten(
            fit(there[branch], leaves, start, fates.setdefault(branch, {}))
        )
    head = f"first parameters: {describe(start)}"
    for path, fate in changes.items():
        if fates["params"].get(path, "loaded") == "loaded":
            fates["params"][path] = fate
    there["params"] = whole | there["params"]
    return First(plain, "\n".join([head, *table(fates, there, here), *lines]))


def initial(run, values):
    """{"params", "batch_stats"} as the seed draws them, or only their shapes and types."""
    key = jax.random.fold_in(jax.random.key(run.seed), 0)
    if not values:
        return jax.eval_shape(run.network.init, key)
    return jax.jit(run.network.init, compiler_options=run_once())(key)


def run_once():
    """Compiler options of a program that runs once: on CPUs with less optimization.

    The same bits in half the time (seen: 4 s instead of 8), as long as products and sums
    are still fused, which they are not at level 0. None where XLA was told a level.
    """
    flag = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or flag in os.environ.get("XLA_FLAGS", ""):
        return None
    return {flag: 1}


def source(start):
    """The run or the file that the parameters come from."""
    return start.weights or start.workdir


def need_same_classes(run):
    """Raises UsageError where a run's head is taken over and its classes have other names.

    Says so where they cannot be compared. Files of weights have no names.
    """
    start = run.start
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


def describe(start):
    """Where the first parameters come from, in a few words."""
    return start.weights or f"{start.workdir}, checkpoint {start.step}"


def from_file(start):
    """({"params", "batch_stats"} of the file of weights, further lines to tell)."""
    found = weights.read(epath.Path(start.weights).expanduser())
    there = {key: value for key, value in found.model.items() if key not in SHOWN}
    if heads := there.pop("heads", 0):
        there["size"] = {"heads": heads}
    elif isinstance(found.model.get("size"), str):
        there["size"] = found.model["size"]
    lines = other_settings(start, there)
    lines += [
        f"  images: {key} is {told(start.data[key])}, there {told(value)}"
        for key, value in found.data.items()
        if not same(start.data[key], value)
    ]
    wanted = [*hidden(start.model), *IMAGES]
    unknown = [key for key in wanted if key not in (*there, *found.data, *NEVER_TOLD)]
    if unknown:
        unknown = ["heads" if key == "size" else key for key in unknown]
        lines.append(f"  not said by the file: {', '.join(unknown)}")
    if found.ignored:
        more = f" and {len(found.ignored) - 3} more" if found.ignored[3:] else ""
        lines.append(f"  no part of the network: {', '.join(found.ignored[:3])}{more}")
    return {b: trees.unflatten(leaves) for b, leaves in found.leaves.items()}, lines


def fitted(there, here, start):
    """`weights.fitting.Fitted`: the leaves of a ViT, for one with leaves like `here`."""
    arrays = {path: np.asarray(leaf) for path, leaf in there.items()}
    shapes = {path: tuple(leaf.shape) for path, leaf in here.items()}
    channels = len(start.model["mean"])
    return weights.fitting.fit_vit(arrays, shapes, channels, start.resample)


def from_run(start):
    """({"params", "batch_stats"}, lines): a run's averaged parameters, mixed."""
    folder = epath.Path(start.workdir).expanduser().absolute()
    config = workdir.read_config(folder)
    case = case_of(start, config)
    lines = other_settings(start, config["model"])
    with checkpoints.Checkpoints(
        folder / "checkpoints", best=bool(config.get("validate_every")), read_only=True
    ) as saved:
        state = saved.restore_raw(saved.find(start.step, folder))
    # Empty branches are not kept in checkpoints.
    stats = {"shared": {}, "adapters": {}} | state["ema"].get("stats", {})
    empty = {"shared": {}, "adapters": {}, "frozen": {}}
    variables = empty | state["variables"] | state["ema"] | {"stats": stats}
    lines += evaluating.warnings_of_statistics(variables, [case])
    return trees.plain(variables, case.knob.mixture), lines


def case_of(start, config):
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


def other_settings(start, there):
    """A line for each setting of the model that is another there, of those `changed`.

    there: the other model's settings. Raises UsageError for one that is not among them.
    """
    own, lines, refused = workdir.leaves(hidden(start.model)), [], {}
    for key, value in workdir.leaves(hidden(there)).items():
        if key not in own or same(own[key], value):
            continue
        if key.partition(".")[0] in start.changed:
            lines.append(f"  changed: {key} is {told(own[key])}, there {told(value)}")
        else:
            refused[key] = value
    if refused:
        there = ", ".join(f"{key} {told(value)}" for key, value in refused.items())
        here = "; ".join(
            f"config.model.{key}={told(value)}, which is {told(own[key])}"
            for key, value in refused.items()
        )
        names = ", ".join(repr(key.partition(".")[0]) for key in refused)
        raise UsageError(
            f"{source(start)} was trained with {there}: set {here}, or name {names} in "
            "config.start.changed"
        )
    return lines


def hidden(model):
    """The settings of config.model that no leaf shows, with the heads of a transformer."""
    kept = {k: v for k, v in model.items() if k not in (*TRAINING_ONLY, *SHOWN)}
    size = model.get("size")
    if model.get("name") == "vit" and isinstance(size, str):
        size = {"heads": MODELS["vit"].read_size(size).heads}
    return kept | ({"size": size} if isinstance(size, dict) else {})


def same(own, value):
    """Whether two settings are equal, floats up to what files of float32 keep."""
    try:
        slack = 1e-4 if np.ndim(own) else 0.0
        alike = np.allclose(own, value, rtol=1e-4, atol=slack)
        return np.shape(own) == np.shape(value) and alike
    except TypeError:
        return own == value


def told(value):
    """A setting as it is written; the floats of files with four digits."""
    if isinstance(value, tuple):
        return tuple(round(v, 4) if isinstance(v, float) else v for v in value)
    return value


def matches(patterns, path):
    """Whether one of the patterns matches a path."""
    return any(trees.matches(pattern, path) for pattern in patterns)


def fit(there, here, start, fates):
    """The leaves of `there` that `here` has, {path: leaf}, the rest initialised.

    Fills fates {path: "loaded", "initialised" or "dropped"}.
    """
    found, differ = {}, []
    for path, leaf in here.items():
        if matches(start.fresh, path):
            found[path], fates[path] = leaf, "initialised"
            continue
        known = path in there and not matches(start.dropped, path)
        shape = np.shape(there[path]) if known else ()
        if not known or shape != leaf.shape:
            shape = list(shape) if known else "missing"
            differ.append(f"{path} is {list(leaf.shape)} here and {shape} there")
            continue
        found[path], fates[path] = jnp.asarray(there[path]), "loaded"
    if differ:
        more = f"; and {len(differ) - 3} more" if differ[3:] else ""
        raise UsageError(
            f"config.start: {'; '.join(differ[:3])}{more}: use the same model, or list "
            "the leaves in config.start.fresh to initialise them"
        )
    left = [path for path in there if path not in here]
    for path in left:
        if not matches((*start.dropped, *start.fresh), path):
            more = f" and {len(left) - 1} more leaves" if left[1:] else ""
            raise UsageError(
                f"{source(start)} has {path}{more}, which this network does not have: use "
                "the same config.model, or list in config.start.dropped what is left behind"
            )
        fates[path] = "dropped"
    return found


def table(fates, there, here):
    """A line per fate: leaves, numbers, and the leaves of each part of the network."""
    lines = []
    for fate in ("loaded", "resampled", "folded", "initialised", "dropped"):
        paths = [(b, p) for b in fates for p, one in fates[b].items() if one == fate]
        parts = collections.Counter(
            re.sub(r"\d+", "*", path.partition("/")[0]) for _, path in paths
        )
        leaves = [here[b][p] if p in here[b] else there[b][p] for b, p in paths]
        size = sum(int(np.size(leaf)) for leaf in leaves)
        listed = ", ".join(f"{part} {count}" for part, count in parts.items())
        if paths:
            lines.append(f"  {fate:12} {len(paths):>5} leaves, {size:>12,}: {listed}")
    return lines
