"""config.data -> splits and how their images are prepared."""

from collections.abc import Callable
from typing import Any, NamedTuple

from advadapters.data import pipeline, sources
from advadapters.data.augment import make_augment
from advadapters.errors import UsageError


class Data(NamedTuple):
    """Splits and how their images are prepared."""

    train: Any
    validation: Any
    test: Any
    image_size: int
    channels: int
    crop: str
    crop_ratio: float
    threads: int
    augment: Callable


def read_data(c, classes):
    """config.data -> Data."""
    channels = c.take("channels", int, low=1)
    source = sources.load(
        c.take("source", str),
        channels=channels,
        skip_corrupt=c.take("skip_corrupt", bool),
        data_dir=c.take("data_dir", str),
    )
    sources.check(source, classes, channels)
    fraction = c.take("validation", float, low=0.0, high=0.5)
    train, validation = sources.hold_out(source.train, fraction)
    return Data(
        train=train,
        validation=validation,
        test=source.test,
        image_size=c.take("image_size", int, low=1),
        channels=channels,
        crop=c.choice("crop", pipeline.TRAIN_CROPS),
        crop_ratio=c.take("crop_ratio", float, above=0, high=1),
        threads=c.take("threads", int, low=1),
        augment=make_augment(
            classes,
            flip_horizontal=c.take("flip", bool),
            pad=c.take("pad", int, low=0),
            mixup_alpha=c.take("mixup", float, low=0.0),
            cutmix_alpha=c.take("cutmix", float, low=0.0),
            mix_probability=c.take("mix_probability", float, low=0.0, high=1.0),
            label_smoothing=c.take("label_smoothing", float, low=0.0, high=1.0),
        ),
    )


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
