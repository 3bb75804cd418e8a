"""Checks around attacks: bad input in one line, and warnings of cascades as data.

What is traced has a type and a shape, but no values that could be checked. A warning
is {"check": name, "message": one line, ...numbers}. What they look for is gradient
masking: attacks that fail for a reason other than robustness.
"""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from advadapters import losses, rng, trees
from advadapters.balls import BALLS
from advadapters.errors import UsageError, check_word
from advadapters.intervals import wilson
from advadapters.pixels import to_float

SAMPLE = 64  # images that gradients are looked at on
BLACK_BOX = ("square",)  # attacks without gradients


def concrete(value):
    """Whether this process can read the value: it is not traced, and all of it is here."""
    return not isinstance(value, Tracer) and getattr(value, "is_fully_addressable", True)


def radius(norm, eps, shape=()):
    """eps, any kind of number, as a float; raises UsageError unless it fits the norm.

    shape: of an image [H, W, C], where it is known: no radius is larger than the box.
    """
    check_word(BALLS, norm, "norm")
    most, number = largest(norm, shape), as_float(eps)
    if not (0 <= number <= most and number < math.inf):
        allowed = f"at most {most:g}" if most < math.inf else "finite"
        box = f", the {norm} norm of the whole box [0, 1]^{math.prod(shape)}"
        box = box if shape else ""
        raise UsageError(
            f"eps must be at least 0 and {allowed} for {norm}{box}, got {told(eps)}"
        )
    return number


def largest(norm, shape=()):
    """The norm of the whole box of images [H, W, C]: no radius goes further."""
    size = math.prod(shape) if shape else math.inf
    return {"linf": 1.0, "l2": math.sqrt(size), "l1": size}[norm]


def as_float(value):
    """The value as a float, NaN if it is no number."""
    number = isinstance(value, int | float | np.number | np.ndarray | jax.Array)
    return float(value) if number and np.ndim(value) == 0 else math.nan


def count(value, what):
    """A whole number of at least 1, as an int; raises UsageError if it is none."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{what} must be a whole number of at least 1, got {told(value)}")
    return int(value)


def numbers(values, count, random):
    """Numbers [N] of so many images, 0 to N - 1 for None; raises UsageError for others.

    random: whether the network is, whose draws belong to batches and not to images.
    """
    if values is None:
        return np.arange(count)
    values = np.asarray(values)
    whole = values.dtype.kind in "iu" and values.shape == (count,)
    if not whole or values.min() < 0 or len(np.unique(values)) < count:
        raise UsageError(
            f"numbers must be {count} different whole numbers of at least 0, one for each "
            f"image, got {told(values)}"
        )
    if random:
        raise UsageError("numbers go without version 'rand', whose draws are a batch's")
    return values


def told(value):
    """repr on one line."""
    return " ".join(repr(value).split())


def random_key(key):
    """The key, an old one (uint32) as a new one; raises UsageError if it is not one."""
    try:
        key = rng.typed(key)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if key.ndim:
        raise UsageError(f"key must be one key like jax.random.key(0), got {told(key)}")
    return key


def network(logits_fn, randomised):
    """Raises UsageError if logits_fn does not take (images), or (images, key)."""
    wanted = ("images", "key") if randomised else ("images",)
    try:
        inspect.signature(logits_fn).bind(*wanted)
    except TypeError:
        version = "'rand'" if randomised else "other than 'rand'"
        raise UsageError(
            f"a version {version} calls logits_fn({', '.join(wanted)}), but it takes "
            f"{inspect.signature(logits_fn)}"
        ) from None
    except ValueError:
        pass  # It does not tell what it takes.


def inputs(images, labels):
    """(images, labels) as numpy arrays; raises UsageError unless they fit the contract."""
    images, labels = np.asarray(images), np.asarray(labels)
    check_images(images)
    if labels.ndim != 1:
        raise UsageError(
            f"labels must be whole numbers [{len(images)}], got {kind(labels)}"
        )
    check_labels(labels, len(images))
    check_classes(labels)
    return images, labels.astype(np.int32)


def kind(array):
    """Type and shape in words."""
    return f"{array.dtype} {list(array.shape)}"


def check_images(images):
    """Raises UsageError unless these are [N, H, W, C], float32 in [0, 1] or uint8."""
    if not isinstance(images, np.ndarray | jax.Array):
        raise UsageError(f"images must be an array, got {type(images).__name__}")
    known = images.dtype in (np.float32, np.uint8)
    if not known or images.ndim != 4 or not len(images):
        raise UsageError(
            f"images must be float32 or uint8 [N, H, W, C] with N > 0, got {kind(images)}"
        )
    _, rows, columns, channels = images.shape
    if rows == 3 and min(columns, channels) > 4 or rows == 1 and columns == channels > 4:
        raise UsageError(
            f"images must be [N, H, W, C], got {list(images.shape)}, which has channels "
            "first: give images.transpose(0, 2, 3, 1), and turn them back in logits_fn"
        )
    if images.dtype == np.uint8 or not concrete(images):
        return
    images = np.asarray(images)
    bad = sum(not np.isfinite(image).all() for image in images)  # no copy of them all
    if bad:
        raise UsageError(f"{bad} of {len(images)} images have pixels of NaN or infinity")
    if images.min() < 0 or images.max() > 1:
        raise UsageError(
            f"images must lie in [0, 1], got {images.min():g} to {images.max():g}: "
            "divide by 255, and normalise inside logits_fn"
        )


def check_labels(labels, size, what="labels"):
    """Raises UsageError unless these are classes [size], or probabilities [size, L]."""
    if not isinstance(labels, np.ndarray | jax.Array):
        raise UsageError(f"{what} must be an array, got {type(labels).__name__}")
    whole = labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer)
    shares = labels.ndim == 2 and jnp.issubdtype(labels.dtype, jnp.floating)
    if not (whole or shares) or len(labels) != size:
        raise UsageError(
            f"{what} must be whole numbers [{size}], or probabilities [{size}, classes] "
            f"for an attack called by hand, got {kind(labels)}"
        )


def check_classes(labels, classes=None, what="labels"):
    """Raises UsageError for labels that are no class of so many, or of any network.

    To be called before they are cast: what does not fit into int32 would wrap.
    """
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise UsageError(
            f"{what} have {labels.shape[1]} classes, but logits_fn has {classes}"
        )
    if labels.ndim == 1 and concrete(labels):
        values = np.asarray(labels)  # in numpy, as jnp would be traced within a trace
        least, most = int(values.min()), int(values.max())
        if least < 0 or most >= (classes or 2**31):
            there = (
                f"logits_fn has {classes} classes"
                if classes
                else "classes are numbers from 0 on that int32 holds"
            )
            raise UsageError(f"{what} run from {least} to {most}, but {there}")


def check_logits(logits, rows):
    """Raises UsageError unless these are an array [rows, L] with L >= 2."""
    array = isinstance(logits, np.ndarray | jax.Array)
    if array and logits.ndim == 2 and logits.shape[0] == rows and logits.shape[1] > 1:
        return
    found = list(logits.shape) if array else f"a {type(logits).__name__}"
    hint = ": choose its logits" if isinstance(logits, tuple | list | dict) else ""
    raise UsageError(
        f"logits_fn must return [{rows}, classes] for {rows} images, with at least two "
        f"classes, got {found}{hint}"
    )


def rows_of(logits, rows):
    """Logits as float32; raises UsageError unless they are [rows, L] with L >= 2."""
    check_logits(logits, rows)
    return jnp.asarray(logits, jnp.float32)


def outputs(logits, labels):
    """Raises UsageError for logits with NaN on all images and labels out of range."""
    if not np.isfinite(logits).all(axis=1).any():
        raise UsageError(f"logits_fn gives NaN or infinity on all {len(logits)} images")
    check_classes(labels, logits.shape[1])


def warning(check, message, **numbers):
    """One warning."""
    return {"check": check, "message": message, **numbers}


def before(attacker, images, labels, logits, stages, key):
    """Warnings that need no attack."""
    found = probabilities(logits) + chance(logits, labels)
    four = ("targeted DLR", 4)
    needed = {"apgd-dlr": ("DLR", 3), "apgd-t": four, "malt": four}
    for loss, least in (needed[s.name] for s in stages if s.name in needed):
        if logits.shape[1] < least:
            found.append(
                warning(
                    "few-classes",
                    f"{logits.shape[1]} classes: the {loss} loss needs {least}, so its "
                    "divisor falls back to the logits that there are",
                    classes=logits.shape[1],
                )
            )
    if attacker.judges:
        return found
    random = randomised(attacker, images, labels, key)
    found += random or company(attacker, images, labels, key)
    if all(stage.name in BLACK_BOX for stage in stages):
        return found
    return found + gradients(attacker, images, labels, logits)


def probabilities(logits):
    """Whether the outputs are those of a softmax or sigmoid."""
    if logits.min() < 0 or logits.max() > 1 or not logits.any():
        return []
    name = "softmax" if np.abs(logits.sum(axis=1) - 1).max() < 1e-3 else "sigmoid"
    return [
        warning(
            name,
            f"outputs look like probabilities (those of a {name}), on which losses lose "
            "their gradients: give logits instead",
        )
    ]


def chance(logits, labels):
    """Whether the labels are hit no more often than by guessing."""
    right, total, classes = int((logits.argmax(1) == labels).sum()), *logits.shape
    if right == total or wilson(right, total)[0] > 1 / classes:
        return []
    return [
        warning(
            "chance",
            f"{right} of {total} clean images are right, which is no better than guessing "
            f"among {classes} classes: check the order of labels and channels, and "
            "whether logits_fn normalises images of [0, 1]",
            right=right,
            total=total,
        )
    ]


def randomised(attacker, images, labels, key):
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
        warning(
            "randomised",
            f"outputs differ by {gap:.2g} between calls: use version='rand' with "
            "logits_fn(images, key)",
            largest_difference=gap,
        )
    ]


def company(attacker, images, labels, key):
    """Whether an image's outputs depend on the other images of its batch, and its place."""
    half = attacker.rows(-(-min(SAMPLE, attacker.batch_size) // 2))
    sample = images[np.resize(np.arange(len(images)), half)]
    others = (255 if sample.dtype == np.uint8 else 1) - sample
    own = np.tile(np.resize(labels, half), 2)
    both = (np.concatenate([part, sample]) for part in (sample, others))
    first, second = (attacker.one_batch(batch, own, key) for batch in both)
    one, two = np.nan_to_num(first[:half]), np.nan_to_num(second[half:])
    gaps = np.abs(one - two).max(axis=1)
    apart = int((gaps > 1e-2 * np.abs(one).max(axis=1)).sum())
    if not apart:
        return []
    return [
        warning(
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


def gradients(attacker, images, labels, logits):
    """Gradients on rightly classified images: not finite, zero, lost in cross-entropy."""
    finite = np.isfinite(logits).all(axis=1)
    right = np.flatnonzero(finite & (logits.argmax(1) == labels))
    right = right[: min(SAMPLE, attacker.batch_size)]
    if not len(right):
        return []
    rows = attacker.rows(min(SAMPLE, attacker.batch_size, len(images)))
    sample = np.resize(right, rows)  # of one shape, however many are right
    parts, _ = attacker.call(slopes, (), (images[sample], labels[sample]))
    entropy, first, margin, second = (part[: len(right)] for part in parts)
    total, found = len(right), []
    wild = int((~first | ~second).sum())
    if wild:
        found.append(
            warning(
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
        found.append(
            warning(
                "zero-gradient",
                f"{dead} of {total} sampled images have no gradient: white-box attacks "
                "are blind there, trust Square more",
                images=dead,
                sample=total,
            )
        )
    lost = int(((entropy < 1e-6 * margin) & (margin >= 1e-12)).sum())
    if lost:
        found.append(
            warning(
                "saturated-cross-entropy",
                f"cross-entropy has vanishing gradients on {lost} of {total} sampled "
                "images although the logits do not: APGD-CE is blind there, DLR is not",
                images=lost,
                sample=total,
            )
        )
    return found


def slopes(logits_fn, images, labels):
    """Largest entries [B] of cross-entropy's gradient, bool [B] whether all of it is
    finite, and both of the margin's.
    """
    images = to_float(images)

    def largest(loss):
        slope = jax.grad(lambda x: jnp.sum(loss(logits_fn(x), labels)))(images)
        whole = jnp.all(jnp.isfinite(slope), axis=(1, 2, 3))
        return BALLS["linf"].norm(trees.finite(slope)), whole

    return *largest(losses.cross_entropy), *largest(losses.margin)


def after(state):
    """Warnings of what a cascade met: no numbers, and attacks that beat others."""
    found, total = [], len(state.labels)
    if lost := int(state.not_finite.sum()):
        clean = int((~np.isfinite(state.logits).all(axis=1)).sum())
        found.append(
            warning(
                "not-finite",
                f"the logits are not finite on {lost} of {total} images ({clean} of them "
                "clean), which count as wrong: look for an overflow, or a division by "
                "zero, in the network",
                images=lost,
                clean=clean,
            )
        )
    if kept := int(state.not_attacked.sum()):
        found.append(
            warning(
                "not-attacked",
                f"an attack returned images that are not finite for {kept} of {total} "
                "images, which counts as nothing found: the accuracy may be too high",
                images=kept,
            )
        )
    return found + square(state.accuracies)


def square(accuracies):
    """Whether the attack without gradients finds more than those with."""
    names = list(accuracies)
    if "square" not in names or names.index("square") < 2:
        return []
    previous = accuracies[names[names.index("square") - 1]]
    gain = previous - accuracies["square"]
    if gain <= 0.002:
        return []
    return [
        warning(
            "square-beats-white-box",
            f"Square, which sees no gradients, breaks {100 * gain:.1f} points more than "
            "the white-box attacks: gradients are probably masked",
            points=gain,
        )
    ]


def monotone(reports):
    """A warning for each pair where a smaller eps of one norm breaks more images."""
    found = []
    for norm in dict.fromkeys(report.norm for report in reports):
        rows = sorted((r for r in reports if r.norm == norm), key=lambda r: r.eps)
        for small, large in zip(rows, rows[1:], strict=False):
            if small.robust_accuracy < large.robust_accuracy:
                found.append(
                    warning(
                        "not-monotone",
                        f"{norm} accuracy is {100 * small.robust_accuracy:.1f}% at eps "
                        f"{small.eps:g} but {100 * large.robust_accuracy:.1f}% at "
                        f"{large.eps:g}: an attack fails at the larger",
                        norm=norm,
                    )
                )
    return found


def sign_agreement(logits_fn, reference_fn, images, labels):
    """Share of pixels where two networks' margin gradients have the same sign.

    For a bfloat16 network against its float32 twin: below about 0.9 its gradients
    mislead sign-based attacks. Pixels without a gradient in the reference are left out.
    """
    functions = [
        f if isinstance(f, jax.tree_util.Partial) else jax.tree_util.Partial(f)
        for f in (logits_fn, reference_fn)
    ]
    one, two = (margin_slope(f, jnp.asarray(images), labels) for f in functions)
    seen = two != 0
    same = jnp.sum((jnp.sign(one) == jnp.sign(two)) & seen)
    return float(same / jnp.maximum(jnp.sum(seen), 1))


@jax.jit
def margin_slope(function, images, labels):
    """The margin's gradient [B, H, W, C]; function: a Partial, compiled once for all soups
    of one network.
    """
    return jax.grad(lambda x: jnp.sum(losses.margin(function(x), labels)))(images)
