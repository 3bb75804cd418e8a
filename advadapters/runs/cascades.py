"""AutoAttack on a run's networks: what `evaluate --suite=autoattack` asks for and does."""

import functools
import json
import os
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from advadapters import hosts
from advadapters.errors import UsageError
from advadapters.shapes import Bool, Int, Num, UInt8

VERSIONS = {
    "autoattack": "standard",
    "autoattack-plus": "plus",
    "autoattack-fast": "fast",
    "autoattack-fast+standard": "fast+standard",
}
COUNTS = ("steps", "restarts", "targets", "queries")
FLAGS = ("norm", "eps", *COUNTS, "seed", "save_images")


class Cascade(NamedTuple):
    """What the flags ask for.

    threats: ((norm, eps), ...). version, settings: of `attacks.autoattack`. seed: or
    None for the run's. images: a file to write them to, or "", of so many bits.
    """

    threats: tuple[tuple[str, float], ...]
    version: str | tuple[str, ...]
    settings: dict[str, Any]
    seed: int | None
    images: str
    bits: str

    @property
    def label(self) -> str:
        """What tells the records of cascades of one threat apart."""
        version = self.version if isinstance(self.version, str) else "+".join(self.version)
        settings = "".join(f"-{name}{value}" for name, value in self.settings.items())
        return version + settings + (f"-seed{self.seed}" if self.seed is not None else "")


def suite_of(norm: str, eps: float) -> str:
    """The suite of AutoAttack under one threat."""
    return f"autoattack_{norm}_{eps:g}"


def need(kind: str) -> None:
    """Raises UsageError for a version of AutoAttack that is none of a run's."""
    if kind == "autoattack-rand":
        raise UsageError(
            "--suite=autoattack-rand: a run's networks are not random when they are "
            "evaluated, use autoattack; version='rand' of Python's autoattack is for others"
        )


def need_none(request: Any) -> None:
    """Raises UsageError for flags of AutoAttack, which is not asked for."""
    for name in FLAGS:
        if getattr(request, name) not in ((), None, ""):
            raise UsageError(
                f"--{name} is for --suite=autoattack; other suites have their settings "
                "in the config"
            )


def read(request: Any, kind: str, names: Sequence[str]) -> Cascade:
    """What is asked of AutoAttack; raises UsageError.

    kind: a key of VERSIONS. names: of its parts, if they are chosen.
    """
    norms, radii = request.norm or ("linf",), request.eps
    if len(norms) != len(radii) or len({*zip(norms, radii, strict=True)}) != len(norms):
        raise UsageError(
            "--norm and --eps must be as many, and no threat twice: got "
            f"{len(norms)} norms and {len(radii)} radii"
        )
    counts = {key: getattr(request, key) for key in COUNTS}
    return Cascade(
        threats=tuple(zip(norms, radii, strict=True)),
        version=tuple(names) if names else VERSIONS[kind],
        settings={key: count for key, count in counts.items() if count},
        seed=request.seed,
        images=os.path.expanduser(request.save_images),
        bits=request.bits,
    )


def run(
    opened: Any,
    variables: Any,
    split: Any,
    cases: Sequence[Any],
    step: int,
    cascade: Cascade,
    *,
    journal: str,
    compared: Sequence[dict[str, float]],
) -> tuple[list[Any], dict[str, Any]]:
    """(result rows, {suite: Table}): AutoAttack on each case alone, clean, after the
    cascade, and the union.

    Of several processes each has a part of the images, which it attacks on its own devices.
    compared: what `evaluating.signs` returns for the cases. journal: what the record's name
    ends with where the networks are not the run's own.
    """
    import jax

    from advadapters import attacks, meshes
    from advadapters.attacks.report import from_plain, merge, to_plain

    evaluation = opened.run.evaluation
    if cascade.images and len(cases) > 1:
        raise UsageError("--save_images writes those of one network: choose it")
    images, labels, numbers = _images_of_this_process(opened.run, split)
    devices = jax.local_devices()
    mesh = meshes.make(devices) if len(devices) > 1 else None
    seed = opened.run.seed if cascade.seed is None else cascade.seed
    rows, right, local = [], {}, {}
    for case, signs in zip(cases, compared, strict=True):
        network = opened.run.networks[case.network]
        plain = meshes.own_copy(network.at(variables, case.knob), mesh)
        logits_fn = jax.tree_util.Partial(network.evaluate, plain)
        local, reports = {}, {}
        for norm, eps in cascade.threats:
            folder = _journal_name(case, step, norm, eps, cascade.label, len(split))
            print(f"{case.identity}: {norm} {eps:g}", flush=True)
            report = attacks.autoattack(
                logits_fn,
                images,
                labels,
                jax.random.key(seed),
                norm=norm,
                eps=eps,
                version=cascade.version,
                **cascade.settings,
                batch_size=evaluation.batch_size,
                mesh=mesh,
                numbers=numbers,
                precision=evaluation.precision,
                resume=opened.folder / "autoattack" / (folder + journal + _part()),
                progress=functools.partial(_show, {}),
            )
            local[suite_of(norm, eps)] = report
            if jax.process_count() > 1:
                shared = hosts.share([to_plain(report), numbers.tolist()])
                parts, of = zip(*shared, strict=True)
                report = merge([from_plain(part) for part in parts], of)
            print(report, flush=True)
            reports[suite_of(norm, eps)] = report
        rows += _rows_of(reports, case.identity, step, signs)
        for suite, marks in _rights_of(reports).items():
            right.setdefault(suite, []).append(marks)
    if cascade.images:
        _save(cascade, local, labels)
    return rows, _tables_of(right, labels, numbers)


def _part() -> str:
    """What the names of this process's files end with; "" where it is alone."""
    import jax

    count = jax.process_count()
    return f"-part{jax.process_index()}of{count}" if count > 1 else ""


def _images_of_this_process(
    run: Any, split: Any
) -> tuple[UInt8[np.ndarray, "N H W C"], Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """(images uint8, labels, numbers in the split) of this process alone."""
    import jax

    from advadapters import builders
    from advadapters.data.splits import Subset

    count = jax.process_count()
    if len(split) < count:
        raise UsageError(
            f"AutoAttack gives each of {count} processes its own images, got {len(split)}"
        )
    numbers = np.arange(jax.process_index(), len(split), count)
    batches = list(builders.eval_batches(run, Subset(split, numbers), whole=True))
    images, labels, index = (
        np.concatenate([batch[key][batch["mask"]] for batch in batches])
        for key in ("images", "labels", "index")
    )
    return images, labels, numbers[index]


def _rights_of(reports: Mapping[str, Any]) -> dict[str, Bool[np.ndarray, " N"]]:
    """{suite: bool [N]}: who is right on clean images, under each threat and under all."""
    first = next(iter(reports.values()))
    right = {"clean": first.broken_by != "clean"}
    right |= {suite: report.robust for suite, report in reports.items()}
    if len(reports) > 1:
        right["union"] = np.all([report.robust for report in reports.values()], axis=0)
    return right


def _tables_of(
    right: Mapping[str, Sequence[Bool[np.ndarray, " N"]]],
    labels: Int[np.ndarray, " n"],
    numbers: Int[np.ndarray, " n"],
) -> dict[str, Any]:
    """{suite: `accuracy.Table`} of {suite: [bool [N] of each network]}.

    Which class a broken image has become is not kept. labels, numbers: of this process's
    images.
    """
    from advadapters.evaluation import accuracy

    shared = hosts.share([np.asarray(part).tolist() for part in (labels, numbers)])
    labels, index = (np.concatenate(parts) for parts in zip(*shared, strict=True))
    order = np.argsort(index)
    labels, index = labels[order].astype(np.int32), index[order].astype(np.int32)
    return {
        suite: accuracy.Table(np.where(rows, labels, accuracy.WRONG), labels, index)
        for suite, rows in right.items()
    }


def _rows_of(
    reports: Mapping[str, Any], network: Any, step: int, signs: dict[str, float]
) -> list[Any]:
    """The rows of {suite: Report} on one network: clean, robust of each threat, union.

    network: its `networks.Identity`.
    """
    from advadapters.evaluation.rows import Row

    right = {suite: int(marks.sum()) for suite, marks in _rights_of(reports).items()}
    count = len(next(iter(reports.values())).robust)
    rows = [Row.of_counts(network, "clean", right["clean"], count, step)]
    for suite, report in reports.items():
        lost = int(report.not_finite)
        row = Row.of_counts(network, suite, right[suite], count, step, lost)
        details = ("version", "stages", "costs", "warnings")
        more = {name: getattr(report, name) for name in details}
        rows.append(row.with_more(**more, **signs))
    if "union" in right:
        row = Row.of_counts(network, "union", right["union"], count, step)
        rows.append(row.with_more(**signs))
    return rows


def _save(
    cascade: Cascade, reports: Mapping[str, Any], labels: Int[np.ndarray, " N"]
) -> None:
    """Writes the adversarial images of all threats to one .npz file, see `load`.

    Of several processes each writes those of its own part, to a file of its own.
    """
    from etils import epath

    from advadapters.runs import workdir

    threats = np.array(json.dumps(list(reports)))
    arrays: dict[str, Any] = {"labels": labels, "threats": threats}
    for suite, report in reports.items():
        arrays[suite] = report.images8() if cascade.bits == "8" else report.images
    file = epath.Path(cascade.images)
    file = file.with_name(file.stem + _part() + file.suffix)
    workdir.write_whole(file, lambda raw: np.savez(raw, **arrays), everywhere=True)
    print(f"adversarial images ({cascade.bits}) written to {file}")


def load(
    path: str,
) -> tuple[dict[str, Num[np.ndarray, "N H W C"]], Int[np.ndarray, " N"]]:
    """({suite: images [N, H, W, C]}, labels [N]) of a file that --save_images wrote."""
    try:
        with (
            open(os.path.expanduser(path), "rb") as raw,
            np.load(raw, allow_pickle=False) as file,
        ):
            suites = json.loads(str(file["threats"]))
            return {suite: file[suite] for suite in suites}, file["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"--images={path} holds no adversarial images: {error}") from None


def count(
    opened: Any, variables: Any, cases: Sequence[Any], path: str, step: int
) -> list[Any]:
    """Result rows of cases on the images of a file: how many are still right."""
    import jax

    from advadapters.attacks import checks
    from advadapters.attacks.attacker import Attacker
    from advadapters.evaluation.rows import Row
    from advadapters.precision import in_precision

    suites, labels = load(path)
    data, evaluation, rows = opened.run.data, opened.run.evaluation, []
    mesh = opened.mesh if opened.mesh.size > 1 else None
    shape = (data.image_size, data.image_size, data.channels)
    for suite, images in suites.items():
        if images.shape[1:] != shape:
            raise UsageError(
                f"--images={path} has images of {list(images.shape[1:])}, the network "
                f"takes {list(shape)}"
            )
        checks.inputs(images, labels)
        for case in cases:
            network = opened.run.networks[case.network]
            plain = network.at(variables, case.knob)
            logits_fn = jax.tree_util.Partial(network.evaluate, plain)
            attacker = Attacker(logits_fn, "linf", 0.0, evaluation.batch_size, mesh)
            with in_precision(evaluation.precision):
                logits = attacker.logits(images, labels, jax.random.key(0))
            checks.outputs(logits, labels)
            lost = int((~np.isfinite(logits).all(axis=1)).sum())
            right = int(attacker.right(images, labels, logits, None).sum())
            rows.append(Row.of_counts(case.identity, suite, right, len(labels), step, lost))
    return rows


def _journal_name(
    case: Any, step: int, norm: str, eps: float, version: str, count: int
) -> str:
    """A folder name for one cascade."""
    network = case.identity
    weights = "_".join(f"{weight:.9g}" for weight in network.mixture.values())
    numbers = {"lambda": network.lambda_, "width": network.width}
    weights += "".join(f"-{k}{v:.9g}" for k, v in numbers.items() if v is not None)
    weights += "-ensemble" if network.kind == "ensemble" else ""
    return f"{version}-{norm}-{eps:.6g}-step{step}-{weights}-n{count}"


def _show(
    starts: dict[str, tuple[float, float]],
    *,
    stage: str,
    round: int,
    rounds: int,
    done: int,
    total: int,
    robust: float,
) -> None:
    """A progress line after a batch of AutoAttack.

    starts: {stage: (time, share) of its first news}; a resumed stage does not begin at 0.
    """
    if not hosts.first():
        return
    now = time.monotonic()
    share = (round - 1 + done / max(total, 1)) / rounds
    began, first = starts.setdefault(stage, (now, share))
    left = ""
    if share > first:
        left = f", ETA at most {(now - began) * (1 - share) / (share - first):.0f} s"
    print(
        f"{stage} {round}/{rounds}: {done}/{total} images, robust {100 * robust:.1f}%, "
        f"{100 * share:.0f}% of this attack{left}",
        file=sys.stderr,
        flush=True,
    )
