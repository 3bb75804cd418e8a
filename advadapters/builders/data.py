"""config.data -> splits and how their images are prepared."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from advadapters.data import imaging, pipeline, randaugment, sources, splits
from advadapters.data.augment import Batch, make_augment
from advadapters.data.randaugment import make_randaugment
from advadapters.errors import UsageError
from advadapters.sections import Section
from advadapters.shapes import Bytes, PRNGKey, PRNGKeys


class Data(NamedTuple):
    """Splits and how their images are prepared."""

    source: splits.Source  # whole, before images were held out
    train: splits.Split
    validation: splits.Split
    test: splits.Split
    image_size: int
    channels: int
    crop: str
    crop_ratio: float
    interpolation: str
    threads: int
    workers: int
    augment: Callable[[Batch, PRNGKey], Batch]


def read_data(
    c: Section, classes: int, mesh: Mesh, source: splits.Source | None = None
) -> Data:
    """Reads config.data and opens the source that it names.

    Args:
      c: the section.
      classes: of the model; 0 if any number will do.
      mesh: the devices that batches are split over.
      source: taken instead of the one that the section names, which is not opened then.

    Raises:
      UsageError: the source cannot be read or does not fit the model.
    """
    channels = c.take("channels", int, low=1)
    spec = c.take("source", str)
    options: dict[str, Any] = dict(
        skip_corrupt=c.take("skip_corrupt", bool),
        data_dir=c.take("data_dir", str),
        test_split=c.take("test_split", str),
    )
    subset = c.take("classes", tuple, of=int)
    if source is None:
        source = splits.only(sources.load(spec, channels=channels, **options), subset)
        splits.check(source, classes, channels)
    fraction = c.take("validation", float, low=0.0, high=0.5)
    train, validation = splits.hold_out(source.train, fraction)
    tests = {"test": source.test, "validation": validation}
    evaluated = tests[c.choice("judged_on", tests)]
    return Data(
        source=source,
        train=splits.few(train, c.take("train_images", int, low=0)),
        validation=validation,
        test=splits.few(evaluated, c.take("test_images", int, low=0)),
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
            randaugment=_read_randaugment(c.section("randaugment"), channels, mesh),
            erasing=_read_erasing(c.section("random_erasing"), channels),
        ),
    )


def _read_randaugment(
    c: Section, channels: int, mesh: Mesh
) -> Callable[[PRNGKeys, Bytes], Bytes] | None:
    """Reads config.data.randaugment, see `make_randaugment`."""
    with c:
        fill = _read_colour(c, "fill", channels)
        return make_randaugment(
            mesh,
            layers=c.take("layers", int, low=0),
            magnitude=c.take("magnitude", float, low=0.0, high=randaugment.MOST),
            std=c.take("std", float, low=0.0),
            fill=fill,
        )


def _read_erasing(c: Section, channels: int) -> dict[str, Any] | None:
    """Reads config.data.random_erasing as `augment.make_augment` takes it."""
    with c:
        probability = c.take("probability", float, low=0.0, high=1.0)
        colours = {key: _read_colour(c, key, channels) for key in ("mean", "std")}
    return dict(probability=probability, **colours) if probability else None


def _read_colour(c: Section, key: str, channels: int) -> tuple[float, ...]:
    """Reads one value for all channels or one for each, from 0 to 1."""
    values = c.take(key, tuple, of=float)
    if len(values) not in (1, channels) or not all(0 <= value <= 1 for value in values):
        raise UsageError(
            f"{c.name}.{key} must be one value or {channels}, one per channel, from 0 "
            f"to 1, got {values}"
        )
    return values


def need_divisible(name: str, size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises UsageError if a batch cannot be split evenly.

    Args:
      name: the key of the config that holds the size.
      size: images of the batch.
      accumulate: parts that each device goes through one after the other.
      mesh: the devices.
    """
    if size % (mesh.size * accumulate):
        raise UsageError(
            f"{name}={size} is not divisible by {mesh.size} devices"
            + (f" x {accumulate} accumulated parts" if accumulate > 1 else "")
            + f"; the nearest that is: {_nearest(size, mesh.size * accumulate)}"
        )


def _nearest(size: int, factor: int) -> int:
    """The multiple of `factor`, 0 excepted, that is nearest to `size`."""
    return max(1, round(size / factor)) * factor
