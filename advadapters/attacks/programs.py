"""The programs of cascades: networks as their arguments, and what a batch runs through."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses, rng
from advadapters.attacks import checks
from advadapters.attacks.contract import Outcome, problem_of, rows_where
from advadapters.attacks.malt import nearest_classes
from advadapters.pixels import to_float
from advadapters.shapes import (
    AnyArray,
    Array,
    Bytes,
    Classes,
    Images,
    Int,
    Logits,
    LogitsFn,
    Marks,
    Number,
    PerImage,
    PRNGKey,
    PRNGKeys,
    Shaped,
)

# What is compiled for networks whose parameters are arguments, of all cascades of this
# process; a dict keeps the programs that were used last.
PROGRAMS, KEPT = {}, 128
# What tells programs apart besides their arguments.
CONTEXT = (
    "jax_default_matmul_precision",
    "jax_enable_x64",
    "jax_threefry_partitionable",
    "jax_default_prng_impl",
)


def program_of(
    programs: dict, function: Callable, fixed: tuple, arguments: tuple
) -> tuple[Callable, bool]:
    """(what is compiled of a function for arguments like these, whether it is new).

    programs: a dict of what is compiled, the last used at its end; it keeps KEPT of them.
    fixed: the function's first arguments, hashable; for each value there is another
    program.
    """
    leaves, structure = jax.tree.flatten(arguments)
    kinds = tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)
    context = tuple(getattr(jax.config, name, None) for name in CONTEXT)
    name = (function, fixed, structure, kinds, context)
    program = programs.pop(name, None)
    is_new = program is None
    if is_new:
        jitted = jax.jit(functools.partial(function, *fixed))
        program = jitted.lower(*arguments).compile()
    programs[name] = program  # behind all that was used before
    while len(programs) > KEPT:
        del programs[next(iter(programs))]
    return program, is_new


class Bound(NamedTuple):
    """The function of a Partial and all it binds but arrays, which are its first argument.

    Equal where these are, as what tells programs apart. structure: of the Partial. rest:
    (type, value) of each of its leaves, None for arrays.
    """

    structure: Any
    rest: tuple[Any, ...]

    def __call__(self, arrays: list[Shaped[AnyArray, "..."]], *args: Any) -> Any:
        left = iter(arrays)
        leaves = [next(left) if leaf is None else leaf[1] for leaf in self.rest]
        return jax.tree.unflatten(self.structure, leaves)(*args)


def as_partial(function: LogitsFn) -> jax.tree_util.Partial:
    """The function as a Partial whose leaves are arrays on the device: an argument of
    jitted programs.

    What else a given Partial binds, such as train=False, goes into its function: as a
    leaf it would be traced, and a network could not decide by it.
    """
    if not isinstance(function, jax.tree_util.Partial):
        return jax.tree_util.Partial(function)
    leaves, structure = jax.tree.flatten(function)
    arrays = [isinstance(leaf, jax.Array | np.ndarray | np.number) for leaf in leaves]
    if all(arrays):
        return jax.tree.map(jnp.asarray, function)
    pairs = list(zip(leaves, arrays, strict=True))
    rest = tuple(None if array else (type(leaf), leaf) for leaf, array in pairs)
    weights = [jnp.asarray(leaf) for leaf, array in pairs if array]
    return jax.tree_util.Partial(Bound(structure, rest), weights)


def programs_of(logits_fn: LogitsFn) -> dict:
    """The dict for what is compiled of a network, a Partial, see Attacker."""
    return PROGRAMS if jax.tree.leaves(logits_fn) else {}


def forward(
    judges: int,
    logits_fn: LogitsFn,
    images: Images | Bytes,
    labels: Classes,
    keys: PRNGKeys,
) -> Logits:
    """Logits [B, L] float32 of one batch."""
    draw = (rng.fold(keys[0], "clean"),) if judges else ()
    return checks.rows_of(logits_fn(to_float(images), *draw), len(labels))


def judge(
    judges: int,
    logits_fn: LogitsFn,
    images: Images | Bytes,
    labels: Classes,
    keys: PRNGKeys,
) -> tuple[PerImage, Marks]:
    """(share float32 [B] of draws that are right, bool [B]: some logits not finite)."""
    points = to_float(images)

    def look(*draw: PRNGKey) -> tuple[PerImage, Marks]:
        logits = logits_fn(points, *draw)
        right = ~losses.misclassified(logits, labels)
        return right.astype(jnp.float32), ~jnp.isfinite(logits).all(axis=1)

    if not judges:
        return look()

    def add(
        total: tuple[PerImage, Marks], draw: PRNGKey
    ) -> tuple[tuple[PerImage, Marks], None]:
        right, lost = look(draw)
        return (total[0] + right, total[1] | lost), None

    none = (jnp.zeros(labels.shape, jnp.float32), jnp.zeros(labels.shape, bool))
    draws = jax.random.split(rng.fold(keys[0], "judge"), judges)
    (right, lost), _ = jax.lax.scan(add, none, draws)
    return right / judges, lost


def nearest_batch(
    targets: int,
    candidates: int,
    norm: str,
    logits_fn: LogitsFn,
    images: Images,
    labels: Classes,
) -> Int[Array, "B targets"]:
    """MALT's targets int32 [B, targets] of one batch."""
    return nearest_classes(
        logits_fn, images, labels, nearest=targets, candidates=candidates, norm=norm
    ).T


class Task(NamedTuple):
    """What an attack is to do on one batch: the rows of its program.

    targets: what a targeted attack goes for. active: whether a row counts; others pad.
    """

    images: Images | Bytes
    labels: Classes
    keys: PRNGKeys
    targets: Classes
    active: Marks


def attack_batch(
    stage: tuple[Callable[..., Outcome], tuple, bool],
    norm: str,
    judges: int,
    logits_fn: LogitsFn,
    task: Task,
    eps: Number,
) -> tuple[Images, PerImage, Marks, Marks, Int[Array, ""]]:
    """One batch on the device: the arrays of Batch, passes; the attack's word is checked.

    stage: see `Stage.fixed`. A random network is judged on draws that the attack has not
    seen.
    """
    run, pairs, targeted = stage
    images, settings = jnp.asarray(to_float(task.images)), dict(pairs)
    if targeted:
        settings["targets"] = task.targets
    labels, keys, active = task.labels, task.keys, task.active
    problem = problem_of(logits_fn, images, labels, keys, norm=norm, eps=eps, active=active)
    outcome = run(problem, **settings)
    whole = jnp.isfinite(outcome.points).all(axis=(1, 2, 3))
    points = rows_where(whole, outcome.points, images)
    share, lost = judge(judges, logits_fn, points, labels, keys)
    passes = settings.get("expectation", 1) * outcome.forwards + max(judges, 1)
    return points, share, lost, ~whole & active, passes
