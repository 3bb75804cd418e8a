"""What runs a cascade: batches of the images that are left, and what was found on them.

Images are gathered on the host between the rounds of an attack; on the device every
round is one program. Which rows it has follows from the images given, the batch size and
the network alone, never from what happens to be compiled: equal calls do equal things.
"""

import collections
import functools
import inspect
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import costs, losses, meshes, rng
from advadapters.attacks import checks
from advadapters.attacks.contract import rows_where
from advadapters.attacks.malt import nearest_classes
from advadapters.pixels import to_float

JUDGES = 100  # draws of a random network that an image found is judged on
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
# About how many floating-point operations take as long as compiling an attack does: 4.5 s
# at 20 to 30 GFLOP/s were measured on a CPU.
COMPILING = {"cpu": 1e11, "other": 1e15}


class Stage(NamedTuple):
    """One attack of a cascade, run `rounds` times, each on what is left.

    targets: 0, or for how many of the most likely other classes of the clean image the
    attack goes, one a round. restarts: how often all that is done, from other draws.
    takes: which of its settings can be set from outside. candidates: 0, or of how many of
    the most likely classes MALT chooses the targets.
    """

    name: str
    run: Callable
    restarts: int
    targets: int
    settings: dict
    takes: tuple
    candidates: int = 0

    @property
    def rounds(self):
        """How often it is run."""
        return self.restarts * max(self.targets, 1)

    @property
    def passes(self):
        """What a round costs in forward passes, about: a step goes backward, too."""
        known = inspect.signature(self.run).parameters
        known = {name: one.default for name, one in known.items()} | self.settings
        steps = known["queries"] if "queries" in known else 3 * known["steps"]
        return steps * known.get("expectation", 1)

    @property
    def fixed(self):
        """What its program is made for, hashable: the first arguments of `attack_batch`."""
        return self.run, tuple(sorted(self.settings.items())), self.targets > 0

    @property
    def plan(self):
        """All that its result depends on, as plain values."""
        settings = [f"{key}={value}" for key, value in sorted(self.settings.items())]
        if self.candidates:
            settings.append(f"candidates={self.candidates}")
        return [self.name, self.restarts, self.targets, settings]


class Batch(NamedTuple):
    """What one call of an attack found for the images with the numbers `index` [B].

    points: float32 [B, H, W, C]. share: float32 [B], of the draws in which the network
    is right there; 0 or 1 where it is not random. not_finite: bool [B], the logits there.
    not_attacked: bool [B], the attack's own points were not finite, these are the images.
    (A refusal would end a long evaluation, and such points break nothing.)
    """

    index: np.ndarray
    points: np.ndarray
    share: np.ndarray
    not_finite: np.ndarray
    not_attacked: np.ndarray
    cost: dict


class State:
    """Progress of a cascade on the host: a row for every image.

    share: as in Batch, the lowest so far, and moved {number: points} where it is. Nothing
    else is kept of images: 4 bytes a value for each that an attack moved. fresh: the same
    as share, on draws that chose nothing; None for a network that is not random.
    """

    def __init__(self, images, labels, logits, share, stages, numbers):
        self.images, self.labels, self.logits = images, labels, logits
        self.numbers = numbers  # [N], by which what is drawn for an image goes
        self.share, self.moved, self.fresh = share.astype(float), {}, None
        self.broken_by = np.where(share > 0, "", "clean").astype("U32")
        self.not_finite = ~np.isfinite(logits).all(axis=1)
        self.not_attacked = np.zeros(len(images), bool)
        self.done = {}  # (stage number, round): numbers of the images that are through
        self.accuracies = {}
        blank = dict(forwards=0, padding=0)
        blank |= dict(seconds=0.0, cpu_seconds=0.0, compile_seconds=0.0)
        self.costs = {stage.name: dict(blank) for stage in stages}

    def hits(self, batch):
        """bool [B]: where a batch found images that are worse than those so far."""
        return batch.share < self.share[batch.index]

    def update(self, number, round_, name, batch):
        """Takes in one batch of a round of stage `number`."""
        self.done.setdefault((number, round_), set()).update(batch.index.tolist())
        better = self.hits(batch)
        hit = batch.index[better]
        self.moved |= dict(zip(hit.tolist(), batch.points[better], strict=True))
        self.share[hit] = batch.share[better]
        self.broken_by[hit] = name
        self.not_finite[hit] = batch.not_finite[better]
        self.not_attacked[batch.index] |= batch.not_attacked
        for kind, value in batch.cost.items():
            self.costs[name][kind] += value

    def left(self, number, round_):
        """Numbers of the images that a round of a stage has still to attack."""
        through = self.done.get((number, round_), set())
        return np.array([i for i in np.flatnonzero(self.share) if i not in through], int)

    def rows(self, numbers):
        """The images with these numbers, moved where they are, float32."""
        rows = to_float(self.images[numbers])  # a copy, as numbers is an array
        for row, number in enumerate(np.asarray(numbers).tolist()):
            if number in self.moved:
                rows[row] = self.moved[number]
        return rows


def run_stage(attacker, state, number, stage, key, log, progress, flops):
    """All rounds of one attack; flops: of a forward pass on one image, 0 if not known."""
    goals, choosing = targets_of(attacker, state, number, stage, flops)
    sizes = {attacker.shape(len(state.labels))}
    for round_ in range(stage.rounds):
        left = state.left(number, round_)
        total = len(left)
        work = flops * stage.passes * (stage.rounds - round_)  # for each row, if it stays
        for index, rows in attacker.batches(left, sizes, work):
            targets = goals[index, round_ % max(stage.targets, 1)]
            batch = attacker.attack(stage, state, index, rows, targets, key, round_)
            # So that a journal, which holds batches, has what choosing them cost.
            for kind, value in choosing.items():
                batch.cost[kind] += value
            choosing = {}
            log.write(state, number, round_, stage.name, batch)
            state.update(number, round_, stage.name, batch)
            left = left[len(index) :]
            progress(
                stage=stage.name,
                round=round_ + 1,
                rounds=stage.rounds,
                done=total - len(left),
                total=total,
                robust=float(state.share.mean()),
            )


def targets_of(attacker, state, number, stage, flops):
    """(classes int32 [N, targets] that an attack goes for, one a round, cost of choosing).

    Zeros for an attack without targets.
    """
    if not stage.targets:
        return np.zeros((len(state.labels), 1), np.int32), {}
    order = np.argsort(-state.logits, axis=1, kind="stable")  # most likely first
    others = order[order != state.labels[:, None]].reshape(len(order), -1)
    goals = others[:, : stage.targets].astype(np.int32)
    left = np.unique([i for r in range(stage.rounds) for i in state.left(number, r)])
    cost = {}
    if stage.candidates and len(left):
        goals[left], cost = attacker.nearest(stage, state, left, flops)
    return goals, cost


class Attacker:
    """Runs attacks on batches of few shapes, each compiled once.

    judges: on how many draws of a random network an image is judged, 0 for a network that
    is not random. programs: a dict of what is compiled, which may serve several of them;
    None for PROGRAMS, or for one of its own where the network has no arrays: those that it
    closes over are constants of its programs, and may be others at the next call.
    """

    def __init__(
        self, logits_fn, norm, eps, batch_size, mesh=None, judges=0, programs=None
    ):
        self.logits_fn, self.norm, self.eps = logits_fn, norm, np.float32(eps)
        self.batch_size, self.mesh, self.judges = batch_size, mesh, judges
        self.programs = programs_of(logits_fn) if programs is None else programs
        backend = jax.default_backend()
        self.compiling = COMPILING.get(backend, COMPILING["other"])
        # Accelerators compute eight rows at once.
        self.unit = (1 if backend == "cpu" else 8) * (1 if mesh is None else mesh.size)

    def place(self, tree):
        """Rows over the mesh, if there is one."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        there = meshes.batched(self.mesh)
        return jax.tree.map(  # device_put takes no keys to other hosts
            lambda rows: jax.make_array_from_callback(rows.shape, there, rows.__getitem__),
            tree,
        )

    def rows(self, count):
        """Rows of a batch for `count` images, rounded up for few shapes and all devices."""
        return -(-count // self.unit) * self.unit

    def shape(self, count):
        """Rows of even batches that take `count` images."""
        calls = max(1, -(-count // self.batch_size))
        return self.rows(-(-count // calls))

    def batches(self, left, sizes, work):
        """(numbers, rows of the program) of each call on the numbers `left`.

        sizes: a set of rows, of the programs of this attack, to which new ones are added.
        A program is taken that is larger than need be unless its padding costs more than
        compiling another one. work: FLOPs that a row costs, 0 if they are not known: then
        nothing is padded.
        """
        while len(left):
            even = self.shape(len(left))
            rows = min((size for size in sizes if size >= even), default=even)
            wasted = rows * -(-len(left) // rows) - even * -(-len(left) // even)
            if not work or wasted * work > self.compiling:
                rows = even
            sizes.add(rows)
            yield left[:rows], rows
            left = left[rows:]

    def call(self, function, fixed, rows, *scalars):
        """(what a function makes of network, rows and scalars, {kind of seconds: number}).

        fixed: its first arguments, hashable; for each value there is another program.
        """
        arguments = (self.logits_fn, *self.place(rows), *scalars)
        leaves, structure = jax.tree.flatten(arguments)
        told = tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)
        context = tuple(getattr(jax.config, name, None) for name in CONTEXT)
        name, started = (function, fixed, structure, told, context), time.monotonic()
        program = self.programs.pop(name, None)
        compiled = program is None
        if compiled:
            jitted = jax.jit(functools.partial(function, *fixed))
            program = jitted.lower(*arguments).compile()
        self.programs[name] = program  # behind all that was used before
        while len(self.programs) > KEPT:
            del self.programs[next(iter(self.programs))]
        wall, busy = time.monotonic(), time.process_time()
        found = jax.tree.map(meshes.gather, program(*arguments))
        return found, dict(
            seconds=time.monotonic() - wall,
            cpu_seconds=time.process_time() - busy,
            compile_seconds=wall - started if compiled else 0.0,
        )

    def attack(self, stage, state, index, rows, targets, key, round_):
        """The Batch of one call, of a program for so many rows."""
        count = len(index)
        padded = np.concatenate([index, np.full(rows - count, index[0])])
        numbers = jnp.asarray(state.numbers[padded])
        keys = rng.by_index(rng.fold(key, stage.name, round_), numbers)
        inputs = (
            state.images[padded],
            state.labels[padded],
            keys,
            np.concatenate([targets, np.full(rows - count, targets[0])]),
            np.arange(rows) < count,
        )
        fixed = (*stage.fixed, self.norm, self.judges)
        found, cost = self.call(attack_batch, fixed, inputs, self.eps)
        *parts, passes = found
        cost |= dict(forwards=int(passes) * count, padding=int(passes) * (rows - count))
        points, share, odd, kept = (part[:count] for part in parts)
        return Batch(index, points, share, odd, kept, cost)

    def nearest(self, stage, state, left, flops):
        """(MALT's targets int32 [n, targets] for the images numbered `left` [n], cost)."""
        passes = min(stage.candidates, state.logits.shape[1] - 1)
        sizes, found = {self.shape(len(state.labels))}, []
        total = collections.Counter()
        for index, rows in self.batches(left, sizes, 3 * passes * flops):
            padded = np.resize(index, rows)
            inputs = (to_float(state.images[padded]), state.labels[padded])
            fixed = (stage.targets, stage.candidates, self.norm)
            classes, cost = self.call(nearest_batch, fixed, inputs)
            found.append(classes[: len(index)])
            # Each gradient counts as a pass, as in attacks.
            total.update(cost, forwards=passes * len(index))
            total.update(padding=passes * (rows - len(index)))
        return np.concatenate(found), dict(total)

    def over(self, function, images, labels, key):
        """What a function of rows makes of all images, labels and keys: arrays [N, ...].

        images: a function of their numbers. All batches have one shape.
        """
        found, size = [], self.shape(len(labels))
        for start in range(0, len(labels), size):
            numbers = np.arange(start, min(start + size, len(labels)))
            padded = np.resize(numbers, size)
            parts = self.one(function, images(padded), labels[padded], key, start)
            last = slice(len(numbers))
            found.append(jax.tree.map(lambda rows, last=last: rows[last], parts))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def one(self, function, images, labels, key, start=0):
        """What a function of rows makes of one batch, whose numbers begin at `start`."""
        keys = rng.by_index(key, jnp.arange(start, start + len(images)))
        return self.call(function, (self.judges,), (images, labels, keys))[0]

    def logits(self, images, labels, key):
        """Logits [N, L] float32 of the images as they are; of one draw each batch."""
        return self.over(forward, images.__getitem__, labels, key)

    def one_batch(self, images, labels, key):
        """The same for images that are one whole batch."""
        return self.one(forward, images, labels, key)

    def flops(self, shape):
        """FLOPs of a forward pass on an image [H, W, C], 0 if no products are seen."""
        images = jax.ShapeDtypeStruct((self.unit, *shape), jnp.float32)
        labels = jax.ShapeDtypeStruct((self.unit,), jnp.int32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.unit))
        function = functools.partial(forward, self.judges)
        traced = jax.make_jaxpr(function)(self.logits_fn, images, labels, keys)
        return costs.products(traced.jaxpr) / self.unit

    def right(self, images, labels, logits, key):
        """Share [N] of draws that are right on clean images, of which the logits are."""
        if self.judges:
            return self.judged(images.__getitem__, labels, rng.fold(key, "clean"))
        finite = np.isfinite(logits).all(axis=1)
        return (finite & (logits.argmax(axis=1) == labels)).astype(np.float32)

    def judged(self, images, labels, key):
        """Share [N] of draws that are right; images: a function of their numbers."""
        return self.over(judge, images, labels, key)[0]


def programs_of(logits_fn):
    """The dict for what is compiled of a network, a Partial, see Attacker."""
    return PROGRAMS if jax.tree.leaves(logits_fn) else {}


def forward(judges, logits_fn, images, labels, keys):
    """Logits [B, L] float32 of one batch."""
    draw = (rng.fold(keys[0], "clean"),) if judges else ()
    return checks.rows_of(logits_fn(to_float(images), *draw), len(labels))


def judge(judges, logits_fn, images, labels, keys):
    """(share float32 [B] of draws that are right, bool [B]: some logits not finite)."""
    images = to_float(images)

    def look(*draw):
        logits = logits_fn(images, *draw)
        right = ~losses.misclassified(logits, labels)
        return right.astype(jnp.float32), ~jnp.isfinite(logits).all(axis=1)

    if not judges:
        return look()

    def add(total, draw):
        right, lost = look(draw)
        return (total[0] + right, total[1] | lost), None

    none = (jnp.zeros(labels.shape, jnp.float32), jnp.zeros(labels.shape, bool))
    draws = jax.random.split(rng.fold(keys[0], "judge"), judges)
    (right, lost), _ = jax.lax.scan(add, none, draws)
    return right / judges, lost


def nearest_batch(targets, candidates, norm, logits_fn, images, labels):
    """MALT's targets int32 [B, targets] of one batch."""
    settings = dict(nearest=targets, candidates=candidates, norm=norm)
    return nearest_classes(logits_fn, images, labels, **settings).T


def attack_batch(
    run, settings, targeted, norm, judges,
    logits_fn, images, labels, keys, targets, active, eps,
):  # fmt: skip
    """One batch on the device: the arrays of Batch, passes; the attack's word is checked.

    run, settings, targeted: see `Stage.fixed`. A random network is judged on draws that
    the attack has not seen.
    """
    images, settings = to_float(images), dict(settings)
    if targeted:
        settings["targets"] = targets
    found = run(
        logits_fn, images, labels, keys, norm=norm, eps=eps, active=active, **settings
    )
    whole = jnp.isfinite(found.points).all(axis=(1, 2, 3))
    points = rows_where(whole, found.points, images)
    share, lost = judge(judges, logits_fn, points, labels, keys)
    passes = settings.get("expectation", 1) * found.forwards + max(judges, 1)
    return points, share, lost, ~whole & active, passes
