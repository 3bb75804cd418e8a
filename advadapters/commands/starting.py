"""The first parameters of a run that starts from another run, or from torch's weights."""

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from advadapters import checkpoints, soups, trees
from advadapters.commands import workdir
from advadapters.errors import UsageError
from advadapters.interop import torch_resnet


def read(run):
    """{"params", "batch_stats"} on the host, as `run.start` says.

    Leaves that `fresh` matches are drawn from the run's seed. Raises UsageError if there
    is no such checkpoint or file, or its network has other leaves than this run's.
    """
    start = run.start
    there = from_torch(start) if start.weights else from_run(start)
    fresh = run.network.init(jax.random.fold_in(jax.random.key(run.seed), 0))
    if start.weights:
        refuse_more(there, fresh, start)
    return {
        "params": fit(there["params"], fresh["params"], start.fresh),
        "batch_stats": fit(there["batch_stats"], fresh["batch_stats"], start.fresh),
    }


def describe(start):
    """Where the first parameters come from, in a few words."""
    return start.weights or f"{start.workdir}, checkpoint {start.step}"


def from_torch(start):
    """{"params", "batch_stats"} of the file of weights.

    Raises UsageError too if the file says that it normalises images in another way.
    """
    arrays = torch_resnet.read(epath.Path(start.weights).expanduser())
    for key, values in torch_resnet.inputs(arrays).items():
        own = start.inputs[key]
        if len(own) != len(values) or not np.allclose(own, values, atol=1e-4):
            want = tuple(round(value, 4) for value in values)
            raise UsageError(
                f"{start.weights} was trained with {key} {want} of its images: set "
                f"config.model.{key}={want}, which is {own}"
            )
    try:
        return torch_resnet.convert(arrays)
    except UsageError as error:
        raise UsageError(f"{start.weights}: {error}") from None


def refuse_more(there, fresh, start):
    """Raises UsageError for a leaf that this run's network does not have."""
    for branch, leaves in there.items():
        own = trees.flatten(fresh[branch])
        for path in trees.flatten(leaves):
            known = any(trees.matches(pattern, path) for pattern in start.fresh)
            if path not in own and not known:
                raise UsageError(
                    f"{start.weights} has {path}, which this network does not have: set "
                    "config.model to the same resnet, with norm='batch'"
                )


def from_run(start):
    """{"params", "batch_stats"}: a run's averaged parameters, mixed."""
    folder = epath.Path(start.workdir).expanduser().absolute()
    config = workdir.read_config(folder)
    domains = config.get("domains", ())
    weights = weights_of(start, domains)
    with checkpoints.Checkpoints(
        folder / "checkpoints", best=bool(config.get("validate_every")), read_only=True
    ) as saved:
        state = saved.restore_raw(saved.find(start.step, folder))
    # Empty branches are not kept in checkpoints.
    stats = {"shared": {}, "adapters": {}} | state["ema"].get("stats", {})
    empty = {"shared": {}, "adapters": {}, "frozen": {}}
    return trees.plain(
        empty | state["variables"] | state["ema"] | {"stats": stats}, weights
    )


def weights_of(start, domains):
    """The mixture as weights over the domains of the other run."""
    mixture = start.mixture or ({domains[0]: 1.0} if len(domains) == 1 else {})
    try:
        return soups.weights_of(mixture, domains)
    except ValueError as error:
        raise UsageError(
            f"config.start.mixture={start.mixture} of {start.workdir}: {error}"
        ) from None


def fit(there, fresh, patterns):
    """The leaves of `there` in the shape of the tree `fresh`, some of them fresh."""
    there, fresh = trees.flatten(there), trees.flatten(fresh)
    found = {}
    for path, leaf in fresh.items():
        if any(trees.matches(pattern, path) for pattern in patterns):
            found[path] = leaf
            continue
        shape = np.shape(there[path]) if path in there else None
        if shape != leaf.shape:
            raise UsageError(
                f"config.start: {path} is {list(leaf.shape)} here and "
                f"{'missing' if shape is None else list(shape)} there: use the same "
                "model, or list the leaf in config.start.fresh to initialise it"
            )
        found[path] = jnp.asarray(there[path])
    return trees.unflatten(found)
