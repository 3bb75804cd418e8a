"""AutoAttack and other cascades on whole data sets, and what they report."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import hosts
from advadapters.attacks import checks, masking
from advadapters.attacks.attacker import JUDGES, Attacker
from advadapters.attacks.cascade import Progress, Telling, run_stages
from advadapters.attacks.programs import as_partial, programs_of
from advadapters.attacks.report import Report, written
from advadapters.attacks.resume import Journal, NoJournal, checksum, fingerprint
from advadapters.attacks.state import State
from advadapters.attacks.versions import stages
from advadapters.balls import BALLS
from advadapters.errors import UsageError
from advadapters.intervals import wilson
from advadapters.pixels import to_float
from advadapters.precision import in_precision
from advadapters.shapes import Bool, LogitsFn


def autoattack(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    key: Any,
    *,
    norm: Any,
    eps: Any,
    version: Any = "standard",
    steps: Any = None,
    restarts: Any = None,
    targets: Any = None,
    queries: Any = None,
    batch_size: Any = 250,
    mesh: jax.sharding.Mesh | None = None,
    numbers: Any = None,
    resume: str | os.PathLike = "",
    programs: dict | None = None,
    progress: Progress = lambda **news: None,
    quiet: bool = False,
    precision: str = "highest",
) -> Report:
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
        what that leaves), or a tuple of attack names (see `versions.parts`) or of (name,
        settings) pairs, such as (("apgd-t", {"steps": 50}), "square").
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
    is_part = numbers is not None
    numbers = checks.numbers(numbers, len(labels), random)
    with in_precision(precision):
        attacker = Attacker(
            as_partial(logits_fn), norm, eps, batch_size, mesh, random * JUDGES, programs
        )
        logits = attacker.logits(images, labels, key)
        checks.outputs(logits, labels)
        todo = stages(version, norm, logits.shape[1], **settings) if eps else []
        warnings = masking.before(attacker, images, labels, logits, todo, key)
        share = attacker.right(images, labels, logits, key)
        state = State.before(images, labels, logits, share, todo, numbers)
        plan = dict(norm=norm, eps=eps, key=str(jax.random.key_data(key)))
        plan |= dict(precision=precision, stages=[stage.plan for stage in todo])
        if random:  # There alone the batches matter.
            plan["batch_size"] = attacker.rows(batch_size)
        log = NoJournal()
        if resume:
            network = fingerprint(attacker, images, labels, logits)
            if is_part:
                plan["numbers"] = checksum(numbers)
            writes = is_part or hosts.first()
            log = Journal(resume, images, labels, network, plan, writes)
        tell = (lambda *_: None) if quiet else Telling(norm, eps)
        flops = attacker.flops(images.shape[1:]) if todo else 0
        run_stages(attacker, state, todo, key, log, progress, tell, flops)
        name = version if isinstance(version, str) else ", ".join(s.name for s in todo)
        return _report_of(attacker, state, name, warnings + masking.after(state))


def _report_of(
    attacker: Attacker, state: State, version: str, warnings: list[dict[str, Any]]
) -> Report:
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

    reports: list[Report]
    union_accuracy: float
    robust: Bool[np.ndarray, " N"]
    warnings: list[dict[str, Any]]

    def __str__(self) -> str:
        lines = [str(report) for report in self.reports]
        threats = ", ".join(f"{r.norm} {written(r.eps)}" for r in self.reports)
        low, high = wilson(int(self.robust.sum()), len(self.robust))
        lines.append(
            f"union of {threats}: robust accuracy {100 * self.union_accuracy:.2f}% "
            f"(95% interval {100 * low:.1f} to {100 * high:.1f})"
        )
        lines += [f"warning: {warning['message']}" for warning in self.warnings]
        return "\n\n".join(lines)


def sweep(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    key: Any,
    *,
    threats: Any,
    **settings: Any,
) -> Sweep:
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
    return Sweep(reports, float(robust.mean()), robust, masking.monotone(reports))
