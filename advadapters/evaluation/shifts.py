"""Accuracy on corrupted images: which images, and what their counts are summed up to."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from advadapters import rng
from advadapters.data.corruptions import COMMON, CORRUPTIONS, SEVERITIES, corrupt
from advadapters.evaluation import tables
from advadapters.evaluation.accuracy import Table
from advadapters.evaluation.rows import Row, by_network
from advadapters.intervals import wilson
from advadapters.markdown import markdown_table
from advadapters.networks import Identity
from advadapters.pixels import to_float
from advadapters.shapes import Bytes

# AlexNet's errors on the published ImageNet-C, means over the severities (Hendrycks and
# Dietterich 2019), by which mCE divides.
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def make_corrupt(
    name: str, severity: int, *, mesh: jax.sharding.Mesh
) -> Callable[[dict], dict]:
    """A function: batch of uint8 images on the devices -> the same, corrupted.

    What is drawn depends on the batch's seed, the corruption, the severity and the image's
    number.
    """

    def corrupt_local(batch: dict[str, Any]) -> Bytes:
        images, keys = to_float(batch["images"]), rng.by_image(batch, "corruption")
        moved = corrupt(images, keys, name=name, severity=severity)
        return jnp.round(255 * moved).astype(batch["images"].dtype)

    rows = P("data")
    moved = jax.jit(
        jax.shard_map(
            corrupt_local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
        )
    )
    return lambda batch: batch | {"images": moved(batch)}


def suite_of(name: str, severity: int) -> str:
    """ "fog-3"."""
    return f"{name}-{severity}"


def corruption_of(suite: str) -> tuple[str, int] | None:
    """(name, severity) of a suite of corrupted images, None of others."""
    name, _, severity = suite.rpartition("-")
    if name in CORRUPTIONS and severity.isdecimal():
        return name, int(severity)
    return None


def parts_of_set(name: str) -> list[tuple[str, str, dict[str, str | int]]]:
    """[(suite, name of a test set, fields of its rows)] of what --data names.

    "imagenet_c" is 75 sets of TFDS, and "imagenet_c:DIR" as many folders of its archives,
    DIR/fog/3 and so on. Any other name is one set.
    """
    kind, colon, path = name.partition(":")
    if kind != "imagenet_c":
        return [(name, name, {})]
    listed = []
    for corruption, severity in itertools.product(COMMON, SEVERITIES):
        place = f"imagenet2012_corrupted/{corruption}_{severity}"
        if colon:
            place = f"folder:{path}/{corruption}/{severity}"
        fields = {"corruption": corruption, "severity": severity}
        listed.append((f"imagenet_c/{suite_of(corruption, severity)}", place, fields))
    return listed


def about(
    names: Sequence[str], severities: Sequence[int]
) -> dict[str, dict[str, str | int]]:
    """{suite: {"corruption", "severity"}} of the suites made of these."""
    return {
        suite_of(name, severity): {"corruption": name, "severity": severity}
        for name, severity in itertools.product(names, severities)
    }


def mean_row(rows: Sequence[Row], name: str = "corruptions mean") -> Row:
    """One network's rows -> the row of their mean accuracy, a suite of this name.

    The interval is Wilson's for as many images as one corruption has: copies of an image
    are not independent, so it is rather too wide than too narrow.
    """
    correct, copies = sum(row.correct or 0 for row in rows), sum(row.n for row in rows)
    images = rows[0].n
    share = correct / copies if copies else 0.0
    low, high = wilson(share * images, images)
    mean = dataclasses.replace(
        rows[0],
        suite=name,
        value=share,
        low=low,
        high=high,
        correct=correct,
        n=copies,
        corruption=None,
        severity=None,
    )
    return mean.with_more(
        images=images,
        corruptions=list(dict.fromkeys(row.corruption for row in rows)),
        severities=list(dict.fromkeys(row.severity for row in rows)),
    )


def mce_row(rows: Sequence[Row], name: str = "mCE") -> Row | None:
    """One network's rows on ImageNet -> a row of its mCE, or None if some are missing.

    Mean over the fifteen corruptions of the network's error by AlexNet's; AlexNet's are on
    the published images, whose frost is another.
    """
    values = {(row.corruption, row.severity): row.value for row in rows}
    if any((name, s) not in values for name in COMMON for s in SEVERITIES):
        return None
    ratios = [
        sum(1 - values[name, s] for s in SEVERITIES) / len(SEVERITIES) / ALEXNET[name]
        for name in COMMON
    ]
    return dataclasses.replace(
        rows[0],
        suite=name,
        metric="mCE",
        value=sum(ratios) / len(ratios),
        low=None,
        high=None,
        correct=None,
        corruption=None,
        severity=None,
    )


def shape_bias_rows(
    networks: Sequence[Identity], shape: Table, texture: Table, step: int
) -> list[Row]:
    """A row for each network: the share of its decisions by shape.

    Of the decisions for an image's shape or its texture (Geirhos et al. 2019); images
    whose shape and texture agree say nothing of it and are left out. shape, texture: one
    Table with either labels.
    """
    conflict = shape.labels != texture.labels
    rows = []
    for network, *both in zip(networks, shape.right, texture.right, strict=True):
        by_shape, by_texture = (int(right[conflict].sum()) for right in both)
        counts = (by_shape, by_shape + by_texture, step)
        rows.append(Row.of_counts(network, "shape bias", *counts, metric="shape_bias"))
    return rows


def summary(rows: Sequence[Row], imagenet: bool) -> list[Row]:
    """Rows made of all networks' rows: means over corruptions, and mCE's if `imagenet`
    (1,000 classes).
    """
    sums = []
    for by_suite in by_network(rows).values():
        places: dict[str, list[Row]] = {}  # imagenet_c/ or what is made on the fly
        for row in by_suite.values():
            if row.corruption:
                places.setdefault(row.suite.rpartition("/")[0], []).append(row)
        for place, moved in places.items():
            sums.append(mean_row(moved, place or "corruptions mean"))
            mce = mce_row(moved, f"{place} mCE".strip()) if imagenet else None
            sums += [mce] if mce else []
    return sums


def corruption_table(rows: Sequence[Row]) -> str:
    """A markdown table: a line per corruption, a column per network, percent.

    Cells are means over the severities; clean, mean and mCE have lines of their own.
    """
    networks = by_network(rows)
    severities = dict.fromkeys(str(row.severity) for row in rows if row.severity)
    lines = []
    for kind in dict.fromkeys(row.corruption or row.suite for row in rows):
        cells = []
        for suites in networks.values():
            same = [r for r in suites.values() if (r.corruption or r.suite) == kind]
            # A mean over several severities has no interval of its own.
            if len(same) == 1 and same[0].low is not None:
                cells.append(tables.percent(same[0]))
            else:
                cells.append(f"{100 * sum(row.value for row in same) / len(same):.1f}")
        lines.append([kind, *cells])
    text = markdown_table(["accuracy, %", *map(str, networks)], lines)
    return f"{text}\ncorruptions are means over severities {', '.join(severities)}"
