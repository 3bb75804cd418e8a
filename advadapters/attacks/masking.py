"""Warnings of a cascade: signs that attacks fail for a reason other than robustness.

What is looked for is gradient masking, and networks that are not what a cascade takes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses, trees
from advadapters.attacks.attacker import Attacker
from advadapters.attacks.checks import SAMPLE
from advadapters.attacks.report import Report
from advadapters.attacks.state import State
from advadapters.attacks.versions import Stage
from advadapters.balls import BALLS
from advadapters.intervals import wilson
from advadapters.pixels import to_float
from advadapters.shapes import (
    AnyArray,
    Bytes,
    Classes,
    Float,
    HostImages,
    Images,
    Int,
    LogitsFn,
    Marks,
    PerImage,
    PRNGKey,
)

BLACK_BOX = ("square",)  # attacks without gradients
Advice = dict[str, Any]  # {"check": name, "message": one line, ...numbers}


def _warning(check: str, message: str, **numbers: Any) -> Advice:
    """One warning."""
    return {"check": check, "message": message, **numbers}


def before(
    attacker: Attacker,
    images: HostImages,
    labels: Int[np.ndarray, " B"],
    logits: Float[np.ndarray, "B L"],
    stages: list[Stage],
    key: PRNGKey,
) -> list[Advice]:
    """Warnings that need no attack."""
    warnings = probabilities(logits) + chance(logits, labels)
    four = ("targeted DLR", 4)
    needed = {"apgd-dlr": ("DLR", 3), "apgd-t": four, "malt": four}
    for loss, least in (needed[s.name] for s in stages if s.name in needed):
        if logits.shape[1] < least:
            warnings.append(
                _warning(
                    "few-classes",
                    f"{logits.shape[1]} classes: the {loss} loss needs {least}, so its "
                    "divisor falls back to the logits that there are",
                    classes=logits.shape[1],
                )
            )
    if attacker.judges:
        return warnings
    random = _randomised(attacker, images, labels, key)
    warnings += random or company(attacker, images, labels, key)
    if all(stage.name in BLACK_BOX for stage in stages):
        return warnings
    return warnings + _gradients(attacker, images, labels, logits)


def probabilities(logits: Float[AnyArray, "B L"]) -> list[Advice]:
    """Whether the outputs are those of a softmax or sigmoid."""
    if logits.min() < 0 or logits.max() > 1 or not logits.any():
        return []
    name = "softmax" if np.abs(logits.sum(axis=1) - 1).max() < 1e-3 else "sigmoid"
    return [
        _warning(
            name,
            f"outputs look like probabilities (those of a {name}), on which losses lose "
            "their gradients: give logits instead",
        )
    ]


def chance(logits: Float[AnyArray, "B L"], labels: Int[AnyArray, " B"]) -> list[Advice]:
    """Whether the labels are hit no more often than by guessing."""
    right, total, classes = int((logits.argmax(1) == labels).sum()), *logits.shape
    if right == total or wilson(right, total)[0] > 1 / classes:
        return []
    return [
        _warning(
            "chance",
            f"{right} of {total} clean images are right, which is no better than guessing "
            f"among {classes} classes: check the order of labels and channels, and "
            "whether logits_fn normalises images of [0, 1]",
            right=right,
            total=total,
        )
    ]


def _randomised(
    attacker: Attacker,
    images: HostImages,
    labels: Int[np.ndarray, " B"],
    key: PRNGKey,
) -> list[Advice]:
    """Whether repeated calls, outside and inside jit, give different outputs."""
    sample = images[: min(SAMPLE, attacker.batch_size)]
    points = jnp.asarray(to_float(sample))
    calls = [np.asarray(attacker.logits_fn(points), np.float32) for _ in range(2)]
    calls.append(attacker.logits(sample, labels[: len(sample)], key))
    calls = [np.nan_to_num(call) for call in calls]  # not finite is told apart
    gap = max(float(np.abs(call - calls[0]).max()) for call in calls[1:])
    if gap <= 1e-2 * max(1.0, float(np.abs(calls[0]).max())):
        return []
    return [
        _warning(
            "randomised",
            f"outputs differ by {gap:.2g} between calls: use version='rand' with "
            "logits_fn(images, key)",
            largest_difference=gap,
        )
    ]


def company(
    attacker: Attacker,
    images: HostImages,
    labels: Int[np.ndarray, " B"],
    key: PRNGKey,
) -> list[Advice]:
    """Whether an image's outputs depend on the other images of its batch, and its place."""
    half = attacker.rows(-(-min(SAMPLE, attacker.batch_size) // 2))
    sample = images[np.resize(np.arange(len(images)), half)]
    others = (255 if sample.dtype == np.uint8 else 1) - sample
    doubled = np.tile(np.resize(labels, half), 2)
    both = (np.concatenate([part, sample]) for part in (sample, others))
    first, second = (attacker.one_batch(batch, doubled, key) for batch in both)
    before, behind = np.nan_to_num(first[:half]), np.nan_to_num(second[half:])
    gaps = np.abs(before - behind).max(axis=1)
    apart = int((gaps > 1e-2 * np.abs(before).max(axis=1)).sum())
    if not apart:
        return []
    return [
        _warning(
            "batch-dependent",
            f"outputs for {apart} of {half} sampled images change (by up to "
            f"{gaps.max():.2g}) with the other images of the batch, so every number here "
            "depends on batch_size: call the network with train=False, batch norm with "
            "use_running_average=True",
            images=apart,
            sample=half,
            largest_difference=float(gaps.max()),
        )
    ]


def _gradients(
    attacker: Attacker,
    images: HostImages,
    labels: Int[np.ndarray, " B"],
    logits: Float[np.ndarray, "B L"],
) -> list[Advice]:
    """Gradients on rightly classified images: not finite, zero, lost in cross-entropy."""
    finite = np.isfinite(logits).all(axis=1)
    right = np.flatnonzero(finite & (logits.argmax(1) == labels))
    right = right[: min(SAMPLE, attacker.batch_size)]
    if not len(right):
        return []
    rows = attacker.rows(min(SAMPLE, attacker.batch_size, len(images)))
    sample = np.resize(right, rows)  # of one shape, however many are right
    parts, _ = attacker.call(_slopes, (), (images[sample], labels[sample]))
    entropy, first, margin, second = (part[: len(right)] for part in parts)
    total, warnings = len(right), []
    wild = int((~first | ~second).sum())
    if wild:
        warnings.append(
            _warning(
                "not-finite-gradient",
                f"{wild} of {total} sampled images have gradients with NaN or infinity: "
                "attacks take zeros for those entries, so white-box attacks see less; "
                "mend the network there (such as the root of 0), or trust Square more",
                images=wild,
                sample=total,
            )
        )
    dead = int((margin < 1e-12).sum())
    if dead:
        warnings.append(
            _warning(
                "zero-gradient",
                f"{dead} of {total} sampled images have no gradient: white-box attacks "
                "are blind there, trust Square more",
                images=dead,
                sample=total,
            )
        )
    lost = int(((entropy < 1e-6 * margin) & (margin >= 1e-12)).sum())
    if lost:
        warnings.append(
            _warning(
                "saturated-cross-entropy",
                f"cross-entropy has vanishing gradients on {lost} of {total} sampled "
                "images although the logits do not: APGD-CE is blind there, DLR is not",
                images=lost,
                sample=total,
            )
        )
    return warnings


def _slopes(
    logits_fn: LogitsFn, images: Images | Bytes, labels: Classes
) -> tuple[PerImage, Marks, PerImage, Marks]:
    """Largest entries [B] of cross-entropy's gradient, bool [B] whether all of it is
    finite, and both of the margin's.
    """
    points = to_float(images)

    def largest(loss: Callable) -> tuple[PerImage, Marks]:
        slope = jax.grad(lambda x: jnp.sum(loss(logits_fn(x), labels)))(points)
        whole = jnp.all(jnp.isfinite(slope), axis=(1, 2, 3))
        return BALLS["linf"].norm(trees.finite(slope)), whole

    return *largest(losses.cross_entropy), *largest(losses.margin)


def after(state: State) -> list[Advice]:
    """Warnings of what a cascade met: no numbers, and attacks that beat others."""
    warnings, total = [], len(state.labels)
    if lost := int(state.not_finite.sum()):
        clean = int((~np.isfinite(state.logits).all(axis=1)).sum())
        warnings.append(
            _warning(
                "not-finite",
                f"the logits are not finite on {lost} of {total} images ({clean} of them "
                "clean), which count as wrong: look for an overflow, or a division by "
                "zero, in the network",
                images=lost,
                clean=clean,
            )
        )
    if kept := int(state.not_attacked.sum()):
        warnings.append(
            _warning(
                "not-attacked",
                f"an attack returned images that are not finite for {kept} of {total} "
                "images, which counts as nothing found: the accuracy may be too high",
                images=kept,
            )
        )
    return warnings + square(state.accuracies)


def square(accuracies: dict[str, float]) -> list[Advice]:
    """Whether the attack without gradients finds more than those with."""
    names = list(accuracies)
    if "square" not in names or names.index("square") < 2:
        return []
    previous = accuracies[names[names.index("square") - 1]]
    gain = previous - accuracies["square"]
    if gain <= 0.002:
        return []
    return [
        _warning(
            "square-beats-white-box",
            f"Square, which sees no gradients, breaks {100 * gain:.1f} points more than "
            "the white-box attacks: gradients are probably masked",
            points=gain,
        )
    ]


def monotone(reports: list[Report]) -> list[Advice]:
    """A warning for each pair where a smaller eps of one norm breaks more images."""
    warnings = []
    for norm in dict.fromkeys(report.norm for report in reports):
        rows = sorted((r for r in reports if r.norm == norm), key=lambda r: r.eps)
        for small, large in zip(rows, rows[1:], strict=False):
            if small.robust_accuracy < large.robust_accuracy:
                warnings.append(
                    _warning(
                        "not-monotone",
                        f"{norm} accuracy is {100 * small.robust_accuracy:.1f}% at eps "
                        f"{small.eps:g} but {100 * large.robust_accuracy:.1f}% at "
                        f"{large.eps:g}: an attack fails at the larger",
                        norm=norm,
                    )
                )
    return warnings


def sign_agreement(
    logits_fn: LogitsFn, reference_fn: LogitsFn, images: Images, labels: Classes
) -> float:
    """Share of pixels where two networks' margin gradients have the same sign.

    For a bfloat16 network against its float32 twin: below about 0.9 its gradients
    mislead sign-based attacks. Pixels without a gradient in the reference are left out.
    """
    functions = [
        f if isinstance(f, jax.tree_util.Partial) else jax.tree_util.Partial(f)
        for f in (logits_fn, reference_fn)
    ]
    slope, exact = (_margin_slope(f, jnp.asarray(images), labels) for f in functions)
    counted = exact != 0
    same = jnp.sum((jnp.sign(slope) == jnp.sign(exact)) & counted)
    return float(same / jnp.maximum(jnp.sum(counted), 1))


@jax.jit
def _margin_slope(
    function: jax.tree_util.Partial, images: Images, labels: Classes
) -> Images:
    """The margin's gradient [B, H, W, C]; function: a Partial, compiled once for all soups
    of one network.
    """
    return jax.grad(lambda x: jnp.sum(losses.margin(function(x), labels)))(images)
