"""AutoAttack and other cascades: each attack runs on what is still robust.

The parts and their settings are those of Croce and Hein's AutoAttack. Still-robust
images are gathered on the host between the rounds of an attack; on the device every
round is one program, compiled once per attack and batch shape.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses, rng
from advadapters import mesh as meshes
from advadapters.attacks import checks
from advadapters.attacks.apgd import Found, run_apgd
from advadapters.attacks.fab import run_fab
from advadapters.attacks.pgd import pgd
from advadapters.attacks.resume import Journal, NoJournal
from advadapters.attacks.square import run_square
from advadapters.balls import BALLS
from advadapters.errors import UsageError, pick
from advadapters.intervals import wilson
from advadapters.precision import in_precision


class Stage(NamedTuple):
    """One attack of a cascade: `rounds` runs of `run`, each on what is left.

    targeted: round r goes for the r-th most likely other class of the clean image.
    """

    name: str
    run: Callable
    rounds: int
    targeted: bool
    settings: dict


def run_multitargeted(logits_fn, images, labels, key, *, norm, eps, targets, active=None):
    """PGD on one target's logit difference (Gowal et al. 2019) -> Found."""
    points = pgd(
        logits_fn, images, labels, key, norm=norm, eps=eps, steps=20,
        loss="logit_difference", targets=targets, keep="best",
    )  # fmt: skip
    broken = losses.misclassified(logits_fn(points), labels)
    return Found(points, broken, jnp.int32(22))


def stages(version, norm, classes):
    """The stages of "standard", "plus", "rand", or a tuple of names from `parts`."""
    named = {
        "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
        "plus": ("apgd-ce", "apgd-dlr", "fab", "fab-random", "square", "apgd-t", "fab-t"),
        "rand": ("apgd-ce", "apgd-dlr"),
    }
    names = pick(named, version, "suite") if isinstance(version, str) else version
    if not names or len(set(names)) != len(names):
        raise UsageError(f"version must be different attack names, got {version!r}")
    table = parts(norm, classes)
    chosen = [pick(table, name, "attack") for name in names]
    if version == "plus":
        more = {"apgd-ce": 5, "apgd-dlr": 5, "apgd-t": min(9, classes - 1)}
        chosen = [s._replace(rounds=more.get(s.name, s.rounds)) for s in chosen]
    if version == "rand":
        draws = dict(expectation=20)
        chosen = [s._replace(rounds=1, settings=s.settings | draws) for s in chosen]
    return chosen


def parts(norm, classes):
    """{name: Stage} with the settings of the standard version for this norm."""
    others = classes - 1
    restarts, targets = (5, 5) if norm == "l1" else (1, 9)
    rows = (
        Stage("apgd-ce", run_apgd, restarts, False, dict(loss="cross_entropy")),
        Stage("apgd-dlr", run_apgd, restarts, False, dict(loss="dlr")),
        Stage("apgd-t", run_apgd, min(targets, others), True, dict(loss="dlr")),
        Stage("fab", run_fab, 1, False, {}),
        Stage("fab-random", run_fab, 4, False, dict(random_start=True)),
        Stage("fab-t", run_fab, min(9, others), True, {}),
        Stage("square", run_square, 1, False, {}),
        Stage("multitargeted", run_multitargeted, others, True, {}),
    )
    return {stage.name: stage for stage in rows}


class Report(NamedTuple):
    """What a cascade found; arrays are numpy, over the N images given.

    stages: {name: accuracy after it}, "clean" first. broken_by: name of the attack, ""
    for robust, "clean" for images misclassified before any. norms: of the perturbations.
    costs: {name: {"forwards", "padding", "seconds", "cpu_seconds", "compile_seconds"}};
    forwards and padding count images, seconds leave out compilation.
    intervals: {"clean" or "robust": 95% (low, high)}. warnings: see `checks`.
    """

    norm: str
    eps: float
    clean_accuracy: float
    robust_accuracy: float
    intervals: dict
    stages: dict
    robust: np.ndarray
    broken_by: np.ndarray
    norms: np.ndarray
    images: np.ndarray
    costs: dict
    warnings: list


def autoattack(
    logits_fn,
    images,
    labels,
    key,
    *,
    norm,
    eps,
    version="standard",
    batch_size=250,
    mesh=None,
    resume="",
    progress=lambda **news: None,
    precision="highest",
):
    """Robust accuracy under a cascade of attacks -> Report.

    Args:
      logits_fn: images [B, H, W, C] float32 in [0, 1] -> logits [B, L]. Give
        jax.tree_util.Partial(apply, params) for large networks, so that parameters are
        arguments of the compiled programs. For version "rand": (images, key) -> logits.
      images: [N, H, W, C] float32 in [0, 1]; labels: [N] int.
      key: random key (an old uint32 one, too); an image's draws depend on its number,
        not on its batch.
      norm, eps: the threat model, e.g. "linf", 8 / 255.
      version: "standard", "plus", "rand", or a tuple of attack names.
      batch_size: most images a call, rounded up to a multiple of 8 (times the devices).
      mesh: spreads every batch over the devices of this mesh.
      resume: a folder that records every batch; a later call with the same network,
        data and settings goes on where it was cut off.
      progress: called with stage=, round=, rounds=, done=, total=, robust=.
      precision: of the network's products of float32, unless it names its own. "highest"
        is float32; "default" is jax's, bfloat16 on TPUs and TF32 on recent GPUs.

    Raises UsageError for input that cannot be right.
    """
    with in_precision(precision):
        return cascade(
            logits_fn, images, labels, key, norm, eps, version, batch_size, mesh, resume,
            progress, precision,
        )  # fmt: skip


def cascade(
    logits_fn, images, labels, key, norm, eps, version, batch_size, mesh, resume, progress,
    precision,
):  # fmt: skip
    """`autoattack` within the context of its precision."""
    images, labels = checks.inputs(images, labels)
    eps, key = checks.radius(norm, eps, images.shape[1:]), checks.random_key(key)
    checks.network(logits_fn, version == "rand")
    batch_size = checks.count(batch_size, "batch_size")
    attacker = Attacker(as_partial(logits_fn), batch_size, mesh, version == "rand")
    logits = attacker.all_logits(images, key)
    checks.outputs(logits, labels)
    todo = stages(version, norm, logits.shape[1])
    warnings = checks.before(attacker, images, labels, logits, todo, key)
    state = State.start(images, labels, logits, norm, eps, todo)
    settings = dict(
        norm=norm,
        eps=eps,
        version=str(version),
        key=str(jax.random.key_data(key)),
        precision=precision,
    )
    if version == "rand":  # There alone the batches matter.
        settings["batch_size"] = attacker.rows(batch_size)
    with (
        Journal(resume, images, labels, logits, settings) if resume else NoJournal()
    ) as log:
        log.replay(state)
        for number, stage in enumerate(todo):
            run_stage(attacker, state, number, stage, key, log, progress)
            # By name, because a journal may have told of later stages already.
            later = ["", *(other.name for other in todo[number + 1 :])]
            state.accuracies[stage.name] = float(np.isin(state.broken_by, later).mean())
    return state.report(warnings + checks.after(state.accuracies), batch_size)


def as_partial(function):
    """The function as a Partial whose leaves are arrays: an argument of jitted programs.

    What else a given Partial binds, such as train=False, goes into its function: as a
    leaf it would be traced, and a network could not decide by it.
    """
    if not isinstance(function, jax.tree_util.Partial):
        return jax.tree_util.Partial(function)
    leaves, structure = jax.tree.flatten(function)
    arrays = [isinstance(leaf, jax.Array | np.ndarray | np.number) for leaf in leaves]

    def call(weights, *args):
        weights = iter(weights)
        pairs = zip(leaves, arrays, strict=True)
        whole = [next(weights) if array else leaf for leaf, array in pairs]
        return jax.tree.unflatten(structure, whole)(*args)

    weights = [leaf for leaf, array in zip(leaves, arrays, strict=True) if array]
    return jax.tree_util.Partial(call, weights)


class State:
    """Progress of a cascade on the host: a row for every image."""

    @classmethod
    def start(cls, images, labels, logits, norm, eps, todo):
        """Before the first attack: robust is what is classified rightly."""
        self = cls()
        self.norm, self.eps = norm, eps
        self.images, self.labels, self.logits = images, labels, logits
        self.robust = logits.argmax(1) == labels
        self.adversarial = images.copy()
        self.broken_by = np.where(self.robust, "", "clean").astype("U32")
        self.done = {}  # (stage number, round): numbers of the images that are through
        self.accuracies = {"clean": float(self.robust.mean())}
        blank = dict(forwards=0, padding=0)
        blank |= dict(seconds=0.0, cpu_seconds=0.0, compile_seconds=0.0)
        self.costs = {stage.name: dict(blank) for stage in todo}
        return self

    def update(self, number, round_, name, index, points, broken, cost):
        """Takes in one batch."""
        self.done.setdefault((number, round_), set()).update(index.tolist())
        hit = index[broken]
        self.adversarial[hit] = points[broken]
        self.robust[hit] = False
        self.broken_by[hit] = name
        for kind, value in cost.items():
            self.costs[name][kind] += value

    def sizes(self, rows):
        """Norms [N] of the perturbations, of so many rows at a time."""
        norm = BALLS[self.norm].norm
        parts = [slice(i, i + rows) for i in range(0, len(self.images), rows)]
        moved = (self.adversarial[part] - self.images[part] for part in parts)
        return np.concatenate([np.asarray(norm(jnp.asarray(rows))) for rows in moved])

    def report(self, warnings, batch_size):
        """The Report."""
        clean, robust = self.broken_by != "clean", self.robust
        return Report(
            norm=self.norm,
            eps=float(self.eps),
            clean_accuracy=float(clean.mean()),
            robust_accuracy=float(robust.mean()),
            intervals={
                "clean": wilson(int(clean.sum()), len(clean)),
                "robust": wilson(int(robust.sum()), len(robust)),
            },
            stages=dict(self.accuracies),
            robust=robust,
            broken_by=self.broken_by,
            norms=self.sizes(batch_size),
            images=self.adversarial,
            costs=self.costs,
            warnings=warnings,
        )


def run_stage(attacker, state, number, stage, key, log, progress):
    """All rounds of one attack."""
    order = np.argsort(-state.logits, axis=1, kind="stable")
    for round_ in range(stage.rounds):
        through = state.done.get((number, round_), set())
        left = np.array([i for i in np.flatnonzero(state.robust) if i not in through], int)
        total = len(left)
        for index in attacker.batches(stage, left):
            # Ranks count the other classes, most likely first.
            targets = np.array(
                [[c for c in order[i] if c != state.labels[i]][round_] for i in index]
                if stage.targeted
                else np.zeros(len(index)),
                np.int32,
            )
            points, broken, cost = attacker.attack(
                stage, state, index, targets, key, round_
            )
            state.update(number, round_, stage.name, index, points, broken, cost)
            log.write(state, number, round_, stage.name, index, points, broken, cost)
            left = left[len(index) :]
            progress(
                stage=stage.name,
                round=round_ + 1,
                rounds=stage.rounds,
                done=total - len(left),
                total=total,
                robust=float(state.robust.mean()),
            )


class Attacker:
    """Runs attacks on batches of few shapes, each compiled once."""

    def __init__(self, logits_fn, batch_size, mesh, randomised):
        self.logits_fn, self.batch_size = logits_fn, batch_size
        self.mesh, self.randomised = mesh, randomised
        self.programs = {}
        self.unit = 8 if mesh is None else 8 * mesh.size

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

    def compiled(self, stage, count):
        """Rows of a compiled program that `count` images fill well, or 0."""
        shapes = [rows for name, rows in self.programs if name == stage.name]
        return min((rows for rows in shapes if count <= rows <= 1.3 * count), default=0)

    def batches(self, stage, left):
        """Parts of the numbers `left`, of shapes that are compiled already if they fit."""
        while len(left):
            even = self.shape(len(left))
            size = self.compiled(stage, even) or even
            yield left[:size]
            left = left[size:]

    def attack(self, stage, state, index, targets, key, round_):
        """(points, broken, cost) of one batch: numpy, only the rows asked for."""
        count = len(index)
        rows = self.compiled(stage, count) or self.rows(count)
        padded = np.concatenate([index, np.full(rows - count, index[0])])
        keys = rng.by_index(rng.fold(key, stage.name, round_), jnp.asarray(padded))
        inputs = self.place(
            (
                state.images[padded],
                state.labels[padded],
                keys,
                np.concatenate([targets, np.full(rows - count, targets[0])]),
                np.arange(rows) < count,
            )
        )
        arguments = (self.logits_fn, jnp.float32(state.eps), *inputs)
        compile_seconds = 0.0
        if (stage.name, rows) not in self.programs:
            started = time.monotonic()
            program = jax.jit(functools.partial(attack_batch, stage, state.norm))
            self.programs[stage.name, rows] = program.lower(*arguments).compile()
            compile_seconds = time.monotonic() - started
        wall, busy = time.monotonic(), time.process_time()
        program = self.programs[stage.name, rows]
        points, broken, passes = map(meshes.gather, program(*arguments))
        cost = dict(
            forwards=int(passes) * count,
            padding=int(passes) * (rows - count),
            seconds=time.monotonic() - wall,
            cpu_seconds=time.process_time() - busy,
            compile_seconds=compile_seconds,
        )
        return points[:count], broken[:count], cost

    @functools.cached_property
    def forward(self):
        """jit: (logits_fn, images, key) -> logits."""
        if self.randomised:
            return jax.jit(lambda function, images, key: function(images, key))
        return jax.jit(lambda function, images, key: function(images))

    def all_logits(self, images, key):
        """Logits [N, L] float32, numpy."""
        found = []
        size = self.shape(len(images))
        for i in range(0, len(images), size):
            part = images[i : i + size]
            padding = np.zeros((size - len(part), *part.shape[1:]), part.dtype)
            placed = self.place(np.concatenate([part, padding]))
            logits = self.forward(self.logits_fn, placed, rng.fold(key, "clean"))
            found.append(checks.rows_of(logits, size)[: len(part)])
        return np.concatenate(found)


def attack_batch(stage, norm, logits_fn, eps, images, labels, keys, targets, active):
    """One batch on the device: (points, broken, passes); the attack's word is checked."""
    settings = dict(stage.settings)
    if stage.targeted:
        settings["targets"] = targets
    found = stage.run(
        logits_fn, images, labels, keys, norm=norm, eps=eps, active=active, **settings
    )
    if settings.get("expectation", 1) > 1:
        return found.points, found.broken & active, settings["expectation"] * found.forwards
    wrong = losses.misclassified(logits_fn(found.points), labels)
    return found.points, wrong & active, found.forwards + 1


class Sweep(NamedTuple):
    """Several threat models: reports in the order given, and their union."""

    reports: list
    union_accuracy: float
    robust: Any
    warnings: list


def sweep(logits_fn, images, labels, key, *, threats, **settings):
    """AutoAttack for each (norm, eps) of `threats` -> Sweep.

    The union counts an image as robust only if no threat breaks it. Warns if accuracy
    falls when eps shrinks. settings: those of `autoattack`; with resume, every threat
    has its own folder in there, such as linf-0.03. Raises UsageError for input that
    cannot be right, before the first attack.
    """
    example = "give pairs like ('linf', 8 / 255)"
    if not threats:
        raise UsageError(f"threats is empty; {example}")
    if any(not isinstance(t, tuple | list) or len(t) != 2 for t in threats):
        raise UsageError(
            f"threats must be pairs of norm and eps, got {threats!r}; {example}"
        )
    threats = [(norm, checks.radius(norm, eps)) for norm, eps in threats]
    folder = settings.pop("resume", "")
    reports = [
        autoattack(
            logits_fn, images, labels, key, norm=norm, eps=eps, **settings,
            resume=os.path.join(folder, f"{norm}-{eps}") if folder else "",
        )
        for norm, eps in threats
    ]  # fmt: skip
    robust = np.all([report.robust for report in reports], axis=0)
    return Sweep(reports, float(robust.mean()), robust, checks.monotone(reports))
