"""Checks around a cascade: bad input in one line, and warnings as data.

A warning is {"check": name, "message": one line, ...numbers}. What they look for is
gradient masking: attacks that fail for a reason other than robustness.
"""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses
from advadapters.balls import BALLS
from advadapters.errors import UsageError, pick

SAMPLE = 64  # images that gradients are looked at on


def radius(norm, eps):
    """eps, any kind of number, as a float; raises UsageError unless it fits the norm."""
    pick(BALLS, norm, "norm")
    number = isinstance(eps, int | float | np.number | np.ndarray | jax.Array)
    if not (number and np.ndim(eps) == 0 and 0 < eps < math.inf) or (
        norm == "linf" and eps > 1
    ):
        allowed = "at most 1" if norm == "linf" else "finite"
        raise UsageError(f"eps must be above 0 and {allowed} for {norm}, got {told(eps)}")
    return float(eps)


def told(value):
    """repr on one line."""
    return " ".join(repr(value).split())


def random_key(key):
    """The key, an old one (uint32) as a new one; raises UsageError if it is neither."""
    if isinstance(key, jax.Array | np.ndarray):
        if key.dtype == np.uint32 and key.ndim == 1:
            return jax.random.wrap_key_data(key)
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and not key.ndim:
            return key
    raise UsageError(f"key must be one key like jax.random.key(0), got {told(key)}")


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
    if images.dtype != np.float32 or images.ndim != 4 or not len(images):
        raise UsageError(
            "images must be float32 [N, H, W, C] with N > 0, got "
            f"{images.dtype} {list(images.shape)}"
        )
    if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise UsageError(
            f"images must lie in [0, 1], got {images.min():g} to {images.max():g}: "
            "divide by 255, and normalise inside logits_fn"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UsageError(
            f"labels must be whole numbers [{len(images)}], got "
            f"{labels.dtype} {list(labels.shape)}"
        )
    return images, labels.astype(np.int32)


def rows_of(logits, rows):
    """Logits as numpy float32; raises UsageError unless they are [rows, L] with L >= 2."""
    if logits.ndim != 2 or logits.shape[0] != rows or logits.shape[1] < 2:
        raise UsageError(
            f"logits_fn must return [{rows}, classes] for {rows} images, with at least "
            f"two classes, got {list(logits.shape)}"
        )
    return np.asarray(logits, np.float32)


def outputs(logits, labels):
    """Raises UsageError for logits with NaN and labels out of range."""
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        raise UsageError(f"logits_fn gives NaN or infinity on {bad.sum()} clean images")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise UsageError(
            f"labels run from {labels.min()} to {labels.max()}, but logits_fn has "
            f"{logits.shape[1]} classes"
        )


def warning(check, message, **numbers):
    """One warning."""
    return {"check": check, "message": message, **numbers}


def before(attacker, images, labels, logits, stages, key):
    """Warnings that need no attack."""
    found = []
    sums = logits.sum(axis=1)
    if logits.min() >= 0 and np.abs(sums - 1).max() < 1e-3:
        found.append(
            warning("softmax", "outputs look like probabilities: give logits instead")
        )
    needed = {"apgd-dlr": ("DLR", 3), "apgd-t": ("targeted DLR", 4)}
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
    if attacker.randomised:
        return found
    return (
        found
        + randomised(attacker, images, key)
        + gradients(attacker, images, labels, logits)
    )


def randomised(attacker, images, key):
    """Whether repeated calls, outside and inside jit, give different outputs."""
    sample = jnp.asarray(images[: min(SAMPLE, attacker.batch_size)])
    calls = [attacker.logits_fn(sample) for _ in range(2)]
    calls.append(attacker.forward(attacker.logits_fn, sample, key))
    calls = [np.asarray(call, np.float32) for call in calls]
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


def gradients(attacker, images, labels, logits):
    """Gradients on rightly classified images: not finite, zero, lost in cross-entropy."""
    right = np.flatnonzero(logits.argmax(1) == labels)
    right = right[: min(SAMPLE, attacker.batch_size)]
    if not len(right):
        return []
    sample, own = jnp.asarray(images[right]), jnp.asarray(labels[right])

    @jax.jit
    def sizes(function, points):
        def largest(loss):
            slope = jax.grad(lambda x: jnp.sum(loss(function(x), own)))(points)
            return BALLS["linf"].norm(slope)

        return largest(losses.cross_entropy), largest(losses.margin)

    entropy, margin = (np.asarray(s) for s in sizes(attacker.logits_fn, sample))
    total, found = len(right), []
    wild = int((~np.isfinite(entropy) | ~np.isfinite(margin)).sum())
    if wild:
        found.append(
            warning(
                "not-finite-gradient",
                f"{wild} of {total} sampled images have gradients with NaN or infinity: "
                "white-box attacks are blind there, trust Square more",
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


def after(accuracies):
    """Warnings that compare the attacks of a cascade."""
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

    def slope(function):
        return jax.jit(
            jax.grad(lambda x: jnp.sum(losses.margin(function(x), jnp.asarray(labels))))
        )(jnp.asarray(images))

    one, two = slope(logits_fn), slope(reference_fn)
    seen = two != 0
    same = jnp.sum((jnp.sign(one) == jnp.sign(two)) & seen)
    return float(same / jnp.maximum(jnp.sum(seen), 1))
