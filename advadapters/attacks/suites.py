"""AutoAttack and other cascades: each attack runs on what is still robust.

The parts and their settings are those of Croce and Hein's AutoAttack.
"""

import os
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import hosts, losses, rng
from advadapters.attacks import checks
from advadapters.attacks.apgd import Found, run_apgd
from advadapters.attacks.cascade import (
    JUDGES,
    Attacker,
    Stage,
    State,
    programs_of,
    run_stage,
)
from advadapters.attacks.fab import run_fab
from advadapters.attacks.malt import CANDIDATES
from advadapters.attacks.pgd import pgd
from advadapters.attacks.pma import run_pma
from advadapters.attacks.report import Report, told
from advadapters.attacks.resume import Journal, NoJournal, checksum, fingerprint
from advadapters.attacks.square import run_square
from advadapters.balls import BALLS
from advadapters.errors import UsageError, pick
from advadapters.intervals import wilson
from advadapters.pixels import to_float
from advadapters.precision import in_precision

SETTINGS = ("steps", "restarts", "targets", "queries")

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
PLUS = (
    ("apgd-ce", dict(restarts=5)),
    ("apgd-dlr", dict(restarts=5)),
    *("fab", "fab-random", "square"),
    ("apgd-t", dict(targets=9)),
    "fab-t",
)
# In the order of images broken per forward pass, each attack on what those before it left,
# on the networks of tests/benchmarks/fast_suite.py, which prints that order. What it finds
# and costs beside "standard" is in docs/autoattack.md. No part works without gradients.
FAST = (
    ("pma-rival", dict(steps=20)),
    ("pma-own", dict(steps=100)),
    ("malt", dict(steps=50)),
    ("fab-malt", dict(targets=3)),
)
# In L1 the probability margin finds little, and cross-entropy from several starts most.
FAST_L1 = ("apgd-ce", "malt")


def versions(norm):
    """{name: attacks of the version, names or (name, settings)} for a norm."""
    fast = FAST_L1 if norm == "l1" else FAST
    return {
        "standard": STANDARD,
        "plus": PLUS,
        "rand": ("apgd-ce", "apgd-dlr"),
        "fast": fast,
        "fast+standard": fast + tuple(part for part in STANDARD if part not in fast),
    }


def run_multitargeted(
    logits_fn, images, labels, key, *, norm, eps, targets, steps=20, active=None
):
    """PGD on one target's logit difference (Gowal et al. 2019) -> Found."""
    points = pgd(
        logits_fn, images, labels, key, norm=norm, eps=eps, steps=steps,
        loss="logit_difference", targets=targets, keep="best",
    )  # fmt: skip
    broken = losses.misclassified(logits_fn(points), labels)
    return Found(points, broken, jnp.int32(steps + 2))


def stages(version, norm, classes, **settings):
    """The stages of a version in `versions`, or of attacks that are named.

    version: else a tuple of names from `parts`, or of (name, settings) pairs. settings: of
    all attacks that take them, see `autoattack`. Raises UsageError.
    """
    listed = pick(versions(norm), version, "suite") if isinstance(version, str) else version
    pairs = [(part, {}) if isinstance(part, str) else tuple(part) for part in listed]
    names = [pair[0] for pair in pairs]
    if not names or len(set(names)) != len(names):
        raise UsageError(f"version must be different attack names, got {version!r}")
    table = parts(norm, classes)
    chosen = [pick(table, name, "attack") for name in names]
    if version == "rand":
        draws = dict(expectation=20)
        chosen = [s._replace(restarts=1, settings=s.settings | draws) for s in chosen]
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if not any(name in stage.takes for stage in chosen):
            raise UsageError(f"none of the attacks {', '.join(names)} takes {name}")
    for number, (stage, (_, own)) in enumerate(zip(chosen, pairs, strict=True)):
        common = {name: value for name, value in given.items() if name in stage.takes}
        # What is given for all changes a version's own settings, but not those of a pair.
        both = own | common if isinstance(version, str) else common | own
        chosen[number] = configured(stage, both, classes)
    return chosen


def configured(stage, settings, classes):
    """The stage with other settings; raises UsageError for what it does not take."""
    for name in settings:
        if name not in stage.takes:
            raise UsageError(
                f"{stage.name} takes no {name!r}; there are: {', '.join(stage.takes)}"
            )
    settings = {name: checks.count(value, name) for name, value in settings.items()}
    fields = ("restarts", "targets", "candidates")
    counts = {k: v for k, v in settings.items() if k in fields}
    if "targets" in counts:
        counts["targets"] = min(counts["targets"], classes - 1)
    rest = {k: v for k, v in settings.items() if k not in counts}
    stage = stage._replace(settings=stage.settings | rest, **counts)
    if stage.candidates and stage.candidates < stage.targets:
        raise UsageError(
            f"{stage.name} chooses {stage.targets} targets of {stage.candidates} "
            "candidates: give more candidates, or fewer targets"
        )
    return stage


def parts(norm, classes):
    """{name: Stage} with the settings of the standard version for this norm."""
    others = classes - 1
    restarts, targets = (5, min(5, others)) if norm == "l1" else (1, min(9, others))
    nine = min(9, others)
    untargeted, aimed = ("steps", "restarts"), ("steps", "targets", "candidates")
    targeted = (*aimed, "restarts")
    rows = (
        Stage("apgd-ce", run_apgd, restarts, 0, dict(loss="cross_entropy"), untargeted),
        Stage("apgd-dlr", run_apgd, restarts, 0, dict(loss="dlr"), untargeted),
        Stage("apgd-t", run_apgd, 1, targets, dict(loss="dlr"), targeted),
        # FAB begins at the image and draws nothing: a restart would be the same again.
        Stage("fab", run_fab, 1, 0, {}, ("steps",)),
        Stage("fab-random", run_fab, 4, 0, dict(random_start=True), untargeted),
        Stage("fab-t", run_fab, 1, nine, {}, aimed),
        Stage("fab-malt", run_fab, 1, nine, {}, aimed, CANDIDATES),
        Stage("square", run_square, 1, 0, {}, ("queries", "restarts")),
        Stage("multitargeted", run_multitargeted, 1, nine, {}, targeted),
        Stage("malt", run_apgd, 1, targets, dict(loss="dlr"), targeted, CANDIDATES),
        Stage("pma-own", run_pma, 1, 0, dict(first="own"), untargeted),
        Stage("pma-rival", run_pma, 1, 0, dict(first="rival"), untargeted),
    )
    return {stage.name: stage for stage in rows}


def autoattack(
    logits_fn,
    images,
    labels,
    key,
    *,
    norm,
    eps,
    version="standard",
    steps=None,
    restarts=None,
    targets=None,
    queries=None,
    batch_size=250,
    mesh=None,
    numbers=None,
    resume="",
    programs=None,
    progress=lambda **news: None,
    quiet=False,
    precision="highest",
):
    """Robust accuracy under a cascade of attacks -> Report.

    Args:
      logits_fn: images [B, H, W, C] float32 in [0, 1] -> logits [B, L]. Give
        jax.tree_util.Partial(apply, params) for large networks, so that parameters are
        arguments of the compiled programs. For version "rand": (images, key) -> logits.
      images: [N, H, W, C] float32 in [0, 1], or uint8, which go to the device as they
        are; labels: [N] int. No copy is made; for each image that is broken 4 bytes a
        value are kept. A numpy.memmap is read part by part.
      key: random key (an old uint32 one, too), the seed of all that is drawn; an image's
        draws depend on its number, not on its batch.
      norm, eps: the threat model, e.g. "linf", 8 / 255. With eps 0 nothing is attacked.
      version: "standard", "plus", "rand", "fast" (the verdict of "standard" on most
        images, for a fifth of its passes at most), "fast+standard" (then "standard" on
        what that leaves), or a tuple of attack names (see `parts`) or of (name, settings)
        pairs, such as (("apgd-t", {"steps": 50}), "square").
      steps, restarts, targets, queries: of every attack that takes them; None is the
        version's own. restarts are runs from other draws, targets the most likely other
        classes that targeted attacks go for, as many as there are at most.
      batch_size: most images a call, rounded up to a multiple of the devices, on
        accelerators of 8 times as many.
      mesh: spreads every batch over the devices of this mesh.
      numbers: [N] different whole numbers of the images in a set of which these are a part,
        which draws go by; not for "rand". So each of several processes can attack its own
        part on its own devices, with a journal of its own; `report.merge` puts the
        reports together, and they are those of the whole set.
      resume: a folder that records every batch; a later call with the same network,
        data and settings goes on where it was cut off.
      programs: a dict that keeps what is compiled, for calls that share it. Without one,
        calls with a Partial that binds arrays share what this process keeps, whatever
        the arrays and the radius; its function must be pure, as under jax.jit. A network
        that closes over its parameters is compiled at every call, as they are constants
        of the program and may have changed.
      progress: called with stage=, round=, rounds=, done=, total=, robust=.
      quiet: without the line on stderr that tells of each stage.
      precision: of the network's products of float32, unless it names its own. "highest"
        is float32; "default" is jax's, bfloat16 on TPUs and TF32 on recent GPUs.

    Logits that are not finite are wrong, on clean and on attacked images; the report
    counts them. Raises UsageError for input that cannot be right.
    """
    images, labels = checks.inputs(images, labels)
    eps, key = checks.radius(norm, eps, images.shape[1:]), checks.random_key(key)
    random = version == "rand"
    checks.network(logits_fn, random)
    batch_size = checks.count(batch_size, "batch_size")
    settings = dict(steps=steps, restarts=restarts, targets=targets, queries=queries)
    own = numbers is not None
    numbers = checks.numbers(numbers, len(labels), random)
    with in_precision(precision):
        attacker = Attacker(
            as_partial(logits_fn), norm, eps, batch_size, mesh, random * JUDGES, programs
        )
        logits = attacker.logits(images, labels, key)
        checks.outputs(logits, labels)
        todo = stages(version, norm, logits.shape[1], **settings) if eps else []
        warnings = checks.before(attacker, images, labels, logits, todo, key)
        share = attacker.right(images, labels, logits, key)
        state = State(images, labels, logits, share, todo, numbers)
        plan = dict(norm=norm, eps=eps, key=str(jax.random.key_data(key)))
        plan |= dict(precision=precision, stages=[stage.plan for stage in todo])
        if random:  # There alone the batches matter.
            plan["batch_size"] = attacker.rows(batch_size)
        log = NoJournal()
        if resume:
            network = fingerprint(attacker, images, labels, logits)
            if own:
                plan["numbers"] = checksum(numbers)
            writes = own or hosts.first()
            log = Journal(resume, images, labels, network, plan, writes)
        tell = (lambda *_: None) if quiet else Telling(norm, eps)
        flops = attacker.flops(images.shape[1:]) if todo else 0
        run_stages(attacker, state, todo, key, log, progress, tell, flops)
        name = version if isinstance(version, str) else ", ".join(s.name for s in todo)
        return report_of(attacker, state, name, warnings + checks.after(state))


class Bound(NamedTuple):
    """The function of a Partial and all it binds but arrays, which are its first argument.

    Equal where these are, as what tells programs apart. structure: of the Partial. rest:
    (type, value) of each of its leaves, None for arrays.
    """

    structure: Any
    rest: tuple

    def __call__(self, arrays, *args):
        arrays = iter(arrays)
        leaves = [next(arrays) if leaf is None else leaf[1] for leaf in self.rest]
        return jax.tree.unflatten(self.structure, leaves)(*args)


def as_partial(function):
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


def run_stages(attacker, state, todo, key, log, progress, tell, flops):
    """The whole cascade; accuracies of a random network are those on fresh draws.

    flops: see `run_stage`.
    """

    def accuracy():
        if not attacker.judges:
            return float(state.share.mean())
        fresh = rng.fold(key, "fresh")  # never seen by an attack, nor used to choose
        state.fresh = attacker.judged(state.rows, state.labels, fresh).astype(float)
        return float(state.fresh.mean())

    state.accuracies["clean"] = accuracy()
    tell("clean", state)
    for number, stage in enumerate(todo):
        log.replay(state, number)
        run_stage(attacker, state, number, stage, key, log, progress, flops)
        state.accuracies[stage.name] = accuracy()
        tell(stage.name, state)


class Telling:
    """Called after each stage, says on stderr what is left and how long it took."""

    def __init__(self, norm, eps):
        self.threat, self.since = f"{norm} {told(eps)}", time.monotonic()

    def __call__(self, name, state):
        if not hosts.first():
            return
        now, value = time.monotonic(), state.accuracies[name]
        print(
            f"AutoAttack {self.threat}, after {name}: accuracy {100 * value:.2f}% of "
            f"{len(state.labels)} images, {now - self.since:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        self.since = now


def report_of(attacker, state, version, warnings):
    """The Report of a finished cascade."""
    values, count = list(state.accuracies.values()), len(state.labels)
    share = state.share if state.fresh is None else state.fresh
    index = np.array(sorted(state.moved), int)
    points = np.zeros((len(index), *state.images.shape[1:]), np.float32)
    for row, number in enumerate(index.tolist()):
        points[row] = state.moved.pop(number)  # so that no image is held twice
    norms, size = np.zeros(count, np.float32), attacker.shape(count)
    for start in range(0, len(index), size):
        rows = np.resize(np.arange(start, min(start + size, len(index))), size)
        moved = points[rows] - to_float(state.images[index[rows]])
        norms[index[rows]] = BALLS[attacker.norm].norm(jnp.asarray(moved))
    return Report(
        version=version,
        norm=attacker.norm,
        eps=float(attacker.eps),
        draws=max(attacker.judges, 1),
        clean_accuracy=values[0],
        robust_accuracy=values[-1],
        intervals={
            "clean": wilson(values[0] * count, count),
            "robust": wilson(values[-1] * count, count),
        },
        stages=dict(state.accuracies),
        costs=state.costs,
        warnings=warnings,
        not_finite=int(state.not_finite.sum()),
        robust=share > 0.5,
        share=share,
        broken_by=state.broken_by,
        norms=norms,
        index=index,
        points=points,
        given=state.images,
    )


class Sweep(NamedTuple):
    """Several threat models: reports in the order given, and their union."""

    reports: list
    union_accuracy: float
    robust: Any
    warnings: list

    def __str__(self):
        lines = [str(report) for report in self.reports]
        threats = ", ".join(f"{r.norm} {told(r.eps)}" for r in self.reports)
        low, high = wilson(int(self.robust.sum()), len(self.robust))
        lines.append(
            f"union of {threats}: robust accuracy {100 * self.union_accuracy:.2f}% "
            f"(95% interval {100 * low:.1f} to {100 * high:.1f})"
        )
        lines += [f"warning: {warning['message']}" for warning in self.warnings]
        return "\n\n".join(lines)


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
    shared: dict[str, Any] = {"programs": programs_of(as_partial(logits_fn))} | settings
    reports = [
        autoattack(
            logits_fn, images, labels, key, norm=norm, eps=eps, **shared,
            resume=os.path.join(folder, f"{norm}-{eps}") if folder else "",
        )
        for norm, eps in threats
    ]  # fmt: skip
    robust = np.all([report.robust for report in reports], axis=0)
    return Sweep(reports, float(robust.mean()), robust, checks.monotone(reports))
