"""What a cascade found: a table to print, files to keep, images to count again."""

import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from advadapters.attacks.resume import load_arrays, save_arrays
from advadapters.balls import BALLS
from advadapters.errors import UsageError
from advadapters.files import write_whole
from advadapters.intervals import wilson
from advadapters.markdown import markdown_table
from advadapters.pixels import to_float
from advadapters.shapes import Bool, Float, Int, Num, Shaped, UInt8

# The parts of a Report that are arrays; all others are plain values.
ARRAYS = ("robust", "share", "broken_by", "norms", "index", "points")


def merge(
    reports: Sequence["Report"], numbers: Sequence[Sequence[int] | Int[np.ndarray, " _"]]
) -> "Report":
    """The Report on a set, of those on its parts.

    numbers: of the images of each part, as `autoattack` was given them; the rows of what
    comes out are in their order. Forward passes and CPU seconds add up, other seconds are
    those of the slowest part. It has no images: each part keeps its own.
    """
    counts, first = np.array([len(part) for part in numbers]), reports[0]
    order = np.argsort(np.concatenate(numbers))
    rows = {
        name: np.concatenate([getattr(report, name) for report in reports])[order]
        for name in ("robust", "share", "broken_by", "norms")
    }

    def mean(values: Iterable[float]) -> float:
        return float(np.dot(counts, list(values)) / counts.sum())

    stages = {name: mean(r.stages[name] for r in reports) for name in first.stages}
    costs = {
        stage: {
            kind: (max if kind in SLOWEST else sum)(r.costs[stage][kind] for r in reports)
            for kind in cost
        }
        for stage, cost in first.costs.items()
    }
    clean, robust = (mean(getattr(r, f"{k}_accuracy") for r in reports) for k in KINDS)
    total = int(counts.sum())
    warnings = {}  # one of each check, from the first part that has it
    for report in reports:
        warnings = {warning["check"]: warning for warning in report.warnings} | warnings
    return first._replace(
        clean_accuracy=clean,
        robust_accuracy=robust,
        intervals={
            kind: wilson(value * total, total)
            for kind, value in zip(KINDS, (clean, robust), strict=True)
        },
        stages=stages,
        costs=costs,
        warnings=list(warnings.values()),
        not_finite=sum(report.not_finite for report in reports),
        **rows,
        **NO_IMAGES,
    )


KINDS = ("clean", "robust")
SLOWEST = ("seconds", "compile_seconds")
NO_IMAGES = dict(index=np.zeros(0, int), points=np.zeros((0, 0, 0, 0)), given=None)


def to_plain(report: "Report") -> dict[str, Any]:
    """A Report without its images as plain values of JSON, for `from_plain`."""
    plain = report._replace(**NO_IMAGES)._asdict()
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in plain.items()
    }


def from_plain(plain: dict[str, Any]) -> "Report":
    """The Report of which `to_plain` made these values."""
    plain = plain | {"intervals": {k: tuple(v) for k, v in plain["intervals"].items()}}
    types = dict(robust=bool, share=float, broken_by="U32", norms=np.float32)
    arrays = {name: np.array(plain[name], dtype) for name, dtype in types.items()}
    values: dict[str, Any] = plain | arrays | NO_IMAGES
    return Report(**values)


# Warnings that gradients are masked: the accuracy may then be too high.
MASKED = ("zero-gradient", "square-beats-white-box", "randomised", "not-finite-gradient")
NEAR = 1 + 1e-5  # rounding of float32 in norms


class Report(NamedTuple):
    """What a cascade found; arrays are numpy, over the N images given.

    version: its name or attacks. stages: {name: accuracy after it}, "clean" first. robust:
    bool [N]. broken_by: name of the attack, "" for robust, "clean" for images that are
    misclassified before any. norms: of the perturbations. costs: {name: {"forwards",
    "padding", "seconds", "cpu_seconds", "compile_seconds"}}; forwards and padding count
    images, both seconds leave out compilation. intervals: {"clean" or "robust": 95% (low,
    high)}. warnings: see `masking`. not_finite: on how many images the logits are not
    finite, which count as wrong.

    draws: 1, or for version "rand" on how many draws, none of which an attack saw, each
    image was judged. Accuracies are then mean shares of draws that are right, share
    [N] is each image's, robust says that it is above one half, and broken_by names the
    attack whose image is the worst on draws of its own.

    index, points: places [M] in [N] of the images that were moved, and float32 [M, H, W, C]
    where to; given: the images as they were given, or None in a report from a file.
    """

    version: str
    norm: str
    eps: float
    draws: int
    clean_accuracy: float
    robust_accuracy: float
    intervals: dict[str, tuple[float, float]]
    stages: dict[str, float]
    costs: dict[str, dict[str, Any]]
    warnings: list[dict[str, Any]]
    not_finite: int
    robust: Bool[np.ndarray, " N"]
    share: Float[np.ndarray, " N"]
    broken_by: Shaped[np.ndarray, " N"]
    norms: Float[np.ndarray, " N"]
    index: Int[np.ndarray, " M"]
    points: Float[np.ndarray, "M H W C"]
    given: Num[np.ndarray, "N H W C"] | None

    @property
    def images(self) -> Float[np.ndarray, "N H W C"]:
        """Adversarial images float32 [N, H, W, C], those given where none was found.

        They are put together anew at each call: 4 bytes a value.
        """
        images = np.array(to_float(self.clean_images()))
        images[self.index] = self.points
        return images

    def clean_images(self) -> Num[np.ndarray, "N H W C"]:
        """The images as they were given; raises UsageError where they are not there."""
        if self.given is None:
            raise UsageError(
                "this report is without the images that were attacked: read one from a "
                "file by Report.load(path, images=...)"
            )
        return self.given

    def images8(self) -> UInt8[np.ndarray, "N H W C"]:
        """Adversarial images as uint8 [N, H, W, C], all still inside the ball.

        Every value goes to the nearest of 0 to 255, or towards the given image where that
        is further than the radius; images that would still leave the ball are rounded
        towards the given ones throughout. What that undoes is only known by counting
        again. Raises UsageError for images that were no 8-bit images.
        """
        images, norm = self.clean_images().copy(), BALLS[self.norm].norm
        if images.dtype != np.uint8:
            levels = np.rint(images * np.float32(255))
            if np.abs(levels - images * np.float32(255)).max() > 1e-2:
                raise UsageError("the images given are no 8-bit images: use `images`")
            images = levels.astype(np.uint8)
        for number, points in zip(self.index, self.points, strict=True):
            level = images[number].astype(np.float32)
            change = points * np.float32(255) - level
            nearest = np.rint(change)
            # No pixel goes further than the radius in any norm; in Linf that is all.
            far = np.abs(nearest) > 255 * self.eps * NEAR
            nearest = np.where(far, np.trunc(change), nearest)
            if float(norm(jnp.asarray(nearest[None] / 255))[0]) > self.eps * NEAR:
                nearest = np.trunc(change + 1e-4 * np.sign(change))  # 1.99999 levels are 2
            images[number] = (level + nearest).astype(np.uint8)
        return images

    def __str__(self) -> str:
        count = len(self.robust)
        lines = [
            f"AutoAttack {self.version}, {self.norm} {written(self.eps)}, {count} images"
            + (f", mean of {self.draws} fresh draws" if self.draws > 1 else ""),
            "",
        ]
        rows = []
        for name, value in self.stages.items():
            cost = self.costs.get(name)
            spent = ("", "")
            if cost:
                spent = f"{cost['forwards']:,}", f"{cost['seconds']:.1f}"
            broken = int((self.broken_by == name).sum())
            rows.append((name, f"{100 * value:.2f}", str(broken), *spent))
        titles = "after", "accuracy, %", "images found", "forward passes", "seconds"
        lines.append(markdown_table(titles, rows))
        low, high = self.intervals["robust"]
        lines += [
            "",
            f"robust accuracy {100 * self.robust_accuracy:.2f}% "
            f"(95% interval {100 * low:.1f} to {100 * high:.1f})",
        ]
        lines += [f"warning: {warning['message']}" for warning in self.warnings]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike) -> None:
        """Writes PATH.json and PATH.npz, which `Report.load` reads.

        The images that were given are not written, only what was moved.
        """
        file, plain = pathlib.Path(path), self._asdict()
        del plain["given"]
        arrays = {name: plain.pop(name) for name in ARRAYS}
        text = json.dumps(plain, indent=1) + "\n"
        save_arrays(file.with_name(file.name + ".npz"), **arrays)
        write_whole(file.with_name(file.name + ".json"), lambda f: f.write(text.encode()))

    @classmethod
    def load(
        cls, path: str | os.PathLike, images: Num[np.ndarray, "N H W C"] | None = None
    ) -> "Report":
        """The Report that `save` wrote there; raises UsageError where there is none.

        images: those that were attacked, without which `images` is not known.
        """
        file = pathlib.Path(path)
        try:
            plain = json.loads(file.with_name(file.name + ".json").read_text())
            arrays = load_arrays(file.with_name(file.name + ".npz"))
            plain["intervals"] = {k: tuple(v) for k, v in plain["intervals"].items()}
            report = cls(**plain | arrays | {"given": images})
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise UsageError(f"cannot read a report from {path}: {error}") from None
        if images is not None and len(images) != len(report.robust):
            raise UsageError(
                f"{path} is a report on {len(report.robust)} images, got {len(images)}"
            )
        return report

    def model_info(self, **fields: Any) -> dict[str, Any]:
        """The fields of an entry in RobustBench's model_info, a dict for json.dump.

        fields: what a report does not know: dataset, architecture, additional_data (bool)
        and, as far as they are known, name, authors, venue, link, number_forward_passes
        (1). Raises UsageError for another version than "standard", which RobustBench asks
        for, and for a field that is missing or that it does not have.
        """
        if self.version != "standard":
            raise UsageError(
                f"RobustBench asks for version 'standard', this one is {self.version!r}"
            )
        needed = ("dataset", "architecture", "additional_data")
        known = ("link", "name", "authors", "venue", "number_forward_passes", "footnote")
        missing = [name for name in needed if name not in fields]
        odd = [name for name in fields if name not in needed + known]
        if missing or odd:
            wrong = f"needs {', '.join(missing)}" if missing else f"has no {', '.join(odd)}"
            raise UsageError(f"model_info {wrong}; it takes {', '.join(needed + known)}")
        blank = dict.fromkeys(("link", "name", "authors", "venue"), "")
        accuracy = f"{100 * self.robust_accuracy:.2f}"
        return (
            blank
            | {"number_forward_passes": 1}
            | fields
            | {
                "eps": written(self.eps),
                "clean_acc": f"{100 * self.clean_accuracy:.2f}",
                "reported": accuracy,
                "autoattack_acc": accuracy,
                "unreliable": any(w["check"] in MASKED for w in self.warnings),
            }
        )


def written(eps: float) -> str:
    """A radius as people write it: "8/255", or plainly where it is no such fraction."""
    levels = round(255 * eps)
    fraction = 0 < levels <= 32 and abs(levels / 255 / eps - 1) < 1e-6
    return f"{levels}/255" if fraction else f"{eps:.6g}"
