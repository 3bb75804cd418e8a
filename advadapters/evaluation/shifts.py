"""Accuracy on corrupted images: which images, and what their counts are summed up to."""

import itertools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from advadapters import rng
from advadapters.data.corruptions import COMMON, SEVERITIES, corrupt
from advadapters.evaluation import accuracy, tables
from advadapters.intervals import wilson
from advadapters.markdown import markdown_table
from advadapters.pixels import to_float

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


def make_corrupt(name, severity, *, mesh):
    """A function: batch of uint8 images on the devices -> the same, corrupted.

    What is drawn depends on the batch's seed, the corruption, the severity and the image's
    number.
    """

    def local(batch):
        images, keys = to_float(batch["images"]), rng.by_image(batch, "corruption")
        moved = corrupt(images, keys, name=name, severity=severity)
        return jnp.round(255 * moved).astype(batch["images"].dtype)

    rows = P("data")
    moved = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    )
    return lambda batch: batch | {"images": moved(batch)}


def suite_of(name, severity):
    """ "fog-3"."""
    return f"{name}-{severity}"


def about(names, severities):
    """{suite: {"corruption", "severity"}} of the suites made of these."""
    return {
        suite_of(name, severity): {"corruption": name, "severity": severity}
        for name, severity in itertools.product(names, severities)
    }


def mean_row(rows):
    """One network's rows -> the row of their mean accuracy.

    The interval is Wilson's for as many images as one corruption has: copies of an image
    are not independent, so it is rather too wide than too narrow.
    """
    correct, copies = (sum(row[key] for row in rows) for key in ("correct", "n"))
    images = rows[0]["n"]
    share = correct / copies if copies else 0.0
    low, high = wilson(share * images, images)
    of = {
        key: list(dict.fromkeys(r[key] for r in rows)) for key in ("corruption", "severity")
    }
    told = {k: v for k, v in rows[0].items() if k not in of}
    found = dict(value=share, low=low, high=high, correct=correct, n=copies, images=images)
    found |= {"corruptions": of["corruption"], "severities": of["severity"]}
    return told | found | {"suite": "corruptions mean"}


def mce_row(rows):
    """One network's rows on ImageNet -> a row of its mCE, or None if some are missing.

    Mean over the fifteen corruptions of the network's error by AlexNet's; AlexNet's are on
    the published images, whose frost is another.
    """
    values = {(r["corruption"], r["severity"]): r["value"] for r in rows}
    if any((name, s) not in values for name in COMMON for s in SEVERITIES):
        return None
    ratios = [
        sum(1 - values[name, s] for s in SEVERITIES) / len(SEVERITIES) / ALEXNET[name]
        for name in COMMON
    ]
    kept = {k: v for k, v in rows[0].items() if k not in ("low", "high", "correct")}
    kept = {k: v for k, v in kept.items() if k not in ("corruption", "severity")}
    return kept | {"suite": "mCE", "metric": "mCE", "value": sum(ratios) / len(ratios)}


def shape_bias_rows(told, shape, texture, step):
    """A row for each network: the share of its decisions by shape.

    Of the decisions for an image's shape or its texture (Geirhos et al. 2019); images
    whose shape and texture agree say nothing of it and are left out. told: what each
    network is told of; shape, texture: one Table with either labels.
    """
    conflict = shape.labels != texture.labels
    found = []
    for one, by_shape, by_texture in zip(told, shape.right, texture.right, strict=True):
        right = int(by_shape[conflict].sum())
        both = right + int(by_texture[conflict].sum())
        row = accuracy.row(one, "shape bias", right, both, step)
        found.append(row | {"metric": "shape_bias"})
    return found


def summary(rows, imagenet):
    """Rows made of all networks' rows: means over corruptions, and mCE's if `imagenet`
    (1,000 classes).
    """
    found = []
    for by_suite in tables.by_network(rows):
        moved = [row for row in by_suite.values() if "corruption" in row]
        if moved:
            found.append(mean_row(moved))
            mce = mce_row(moved) if imagenet else None
            found += [mce] if mce else []
    return found


def markdown(rows):
    """A markdown table: a line per corruption, a column per network, percent.

    Cells are means over the severities; clean, mean and mCE have lines of their own.
    """
    networks = tables.by_network(rows)
    severities = list(dict.fromkeys(r["severity"] for r in rows if "severity" in r))
    lines = []
    for kind in dict.fromkeys(row.get("corruption", row["suite"]) for row in rows):
        cells = []
        for found in networks:
            same = [r for r in found.values() if r.get("corruption", r["suite"]) == kind]
            # A mean over several severities has no interval of its own.
            if len(same) == 1 and "low" in same[0]:
                cells.append(tables.percent(same[0]))
            else:
                cells.append(f"{100 * sum(r['value'] for r in same) / len(same):.1f}")
        lines.append([kind, *cells])
    told = ", ".join(map(str, severities))
    text = markdown_table(["accuracy, %", *map(tables.name_of_all, networks)], lines)
    return f"{text}\ncorruptions are means over severities {told}"
