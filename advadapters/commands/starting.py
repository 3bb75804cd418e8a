"""The first parameters of a run that starts from another run's checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from advadapters import checkpoints, trees
from advadapters.commands import workdir
from advadapters.errors import UsageError


def read(run):
    """{"params", "batch_stats"} on the host, as `run.start` says.

    The averaged parameters of the checkpoint, mixed; leaves that `fresh` matches are
    drawn from the run's seed. Raises UsageError if there is no such checkpoint or its
    network has other leaves than this run's.
    """
    start = run.start
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
    there = trees.plain(
        empty | state["variables"] | state["ema"] | {"stats": stats}, weights
    )
    fresh = run.network.init(jax.random.fold_in(jax.random.key(run.seed), 0))
    return {
        "params": fit(there["params"], fresh["params"], start.fresh),
        "batch_stats": fit(there["batch_stats"], fresh["batch_stats"], start.fresh),
    }


def weights_of(start, domains):
    """The mixture as weights over the domains of the other run."""
    mixture = start.mixture or ({domains[0]: 1.0} if len(domains) == 1 else {})
    if not mixture or set(mixture) - set(domains):
        raise UsageError(
            f"config.start.mixture={start.mixture} must name domains of "
            f"{start.workdir}; there are: {', '.join(domains)}"
        )
    if abs(sum(mixture.values()) - 1) > 1e-6:
        raise UsageError(f"config.start.mixture must sum to 1, got {start.mixture}")
    return np.array([mixture.get(domain, 0.0) for domain in domains], np.float32)


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
