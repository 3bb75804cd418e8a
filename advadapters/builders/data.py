"""config.data -> splits and how their images are prepared."""

from collections.abc import Callable
from typing import Any, NamedTuple

from advadapters.data import imaging, pipeline, randaugment, sources, splits
from advadapters.data.augment import make_augment
from advadapters.data.randaugment import make_randaugment
from advadapters.errors import UsageError


class Data(NamedTuple):
    """Splits and how their images are prepared."""

    source: splits.Source  # whole, before images were held out
    train: Any
    validation: Any
    test: Any
    image_size: int
    channels: int
    crop: str
    crop_ratio: float
    interpolation: str
    threads: int
    workers: int
    augment: Callable


def read_data(c, classes, mesh, source=None):
    """config.data -> Data, for batches over a mesh; classes: 0 if they do not matter.

    source: to be taken instead of opening what the config names.
    """
    channels = c.take("channels", int, low=1)
    spec, options = (
        c.take("source", str),
        dict(
            skip_corrupt=c.take("skip_corrupt", bool),
            data_dir=c.take("data_dir", str),
            test_split=c.take("test_split", str),
        ),
    )
    chosen = c.take("classes", tuple, of=int)
    if source is None:
        source = splits.only(sources.load(spec, channels=channels, **options), chosen)
        splits.check(source, classes, channels)
    fraction = c.take("validation", float, low=0.0, high=0.5)
    train, validation = splits.hold_out(source.train, fraction)
    tests = {"test": source.test, "validation": validation}
    judged = tests[c.choice("judged_on", tests)]
    return Data(
        source=source,
        train=splits.few(train, c.take("train_images", int, low=0)),
        validation=validation,
        test=splits.few(judged, c.take("test_images", int, low=0)),
        image_size=c.take("image_size", int, low=1),
        channels=channels,
        crop=c.choice("crop", pipeline.TRAIN_CROPS),
        crop_ratio=c.take("crop_ratio", float, above=0, high=1),
        interpolation=c.choice("interpolation", imaging.INTERPOLATIONS),
        threads=c.take("threads", int, low=1),
        workers=c.take("workers", int, low=0),
        augment=make_augment(
            classes,
            flip_horizontal=c.take("flip", bool),
            pad=c.take("pad", int, low=0),
            mixup_alpha=c.take("mixup", float, low=0.0),
            cutmix_alpha=c.take("cutmix", float, low=0.0),
            mix_probability=c.take("mix_probability", float, low=0.0, high=1.0),
            label_smoothing=c.take("label_smoothing", float, low=0.0, high=1.0),
            randaugment=read_randaugment(c.section("randaugment"), channels, mesh),
            erasing=read_erasing(c.section("random_erasing"), channels),
        ),
    )


def read_randaugment(c, channels, mesh):
    """config.data.randaugment -> see `make_randaugment`."""
    with c:
        fill = read_colour(c, "fill", channels)
        return make_randaugment(
            mesh,
            layers=c.take("layers", int, low=0),
            magnitude=c.take("magnitude", float, low=0.0, high=randaugment.MOST),
            std=c.take("std", float, low=0.0),
            fill=fill,
        )


def read_erasing(c, channels):
    """config.data.random_erasing -> see `augment.make_augment`."""
    with c:
        probability = c.take("probability", float, low=0.0, high=1.0)
        found = {key: read_colour(c, key, channels) for key in ("mean", "std")}
    return dict(probability=probability, **found) if probability else None


def read_colour(c, key, channels):
    """A tuple of one value for all channels or one for each, from 0 to 1."""
    values = c.take(key, tuple, of=float)
    if len(values) not in (1, channels) or not all(0 <= value <= 1 for value in values):
        raise UsageError(
            f"{c.name}.{key} must be one value or {channels}, one per channel, from 0 "
            f"to 1, got {values}"
        )
    return values


def need_divisible(name, size, accumulate, mesh):
    """Raises UsageError if a batch does not split over devices (and parts)."""
    if size % (mesh.size * accumulate):
        raise UsageError(
            f"{name}={size} is not divisible by {mesh.size} devices"
            + (f" x {accumulate} accumulated parts" if accumulate > 1 else "")
            + f"; the nearest that is: {nearest(size, mesh.size * accumulate)}"
        )


def nearest(size, factor):
    """The multiple of `factor` nearest to `size`, at least one."""
    return max(1, round(size / factor)) * factor
