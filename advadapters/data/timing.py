"""How long the stages of the pipeline take, by one thread and all together."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from advadapters.data import imaging, pipeline
from advadapters.data.encoded import Encoded
from advadapters.data.splits import Image, Split, Subset

BATCH = 64


def stages(
    split: Split,
    positions: Sequence[int] | np.ndarray,
    size: int,
    crop: str,
    interpolation: str = "area",
) -> dict[str, float]:
    """How long each stage takes for an image of these training images, by this thread.

    Where images are not encoded, reading is all that there is to decoding.

    Returns:
      {stage: seconds of CPU per image}; "waiting" are the seconds on the clock that reading
      takes beyond its own.
    """
    seconds = dict.fromkeys(("read", "waiting", "decode", "crop", "batch"), 0.0)
    cut = pipeline.Crop(size, crop, 0, interpolation)
    batch = []
    for number, position in enumerate(positions, 1):
        start, (data, label, decode) = clocks(), _fetch(split, int(position))
        cpu, clock = _since(start)
        seconds["read"] += cpu
        seconds["waiting"] += max(clock - cpu, 0)
        start, image = clocks(), decode(data)
        seconds["decode"] += _since(start)[0]
        if image is None:
            continue
        start = clocks()
        batch.append((cut(image, number), label))
        seconds["crop"] += _since(start)[0]
        if len(batch) == BATCH or number == len(positions):
            start = clocks()
            pipeline.stack_examples(batch)
            seconds["batch"] += _since(start)[0]
            batch = []
    return {stage: total / len(positions) for stage, total in seconds.items()}


def clocks() -> tuple[float, float]:
    """The seconds of CPU of this thread, and those on the clock."""
    return time.thread_time(), time.perf_counter()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    """The seconds since `start`, of CPU and on the clock."""
    cpu, clock = clocks()
    return cpu - start[0], clock - start[1]


def _fetch(split: Any, i: int) -> tuple[Any, Any, Callable[[Any], Image | None]]:
    """The undecoded data of example i, its label, and the function that decodes it."""
    while isinstance(split, Subset):
        split, i = split.split, int(split.positions[i])
    if isinstance(split, Encoded):
        data, label = split.reader.read(i)
        return data, label, lambda data: imaging.decode(data, split.channels)
    image, label = split[i]
    return image, label, lambda image: image


def together(
    split: Split, count: int, rounds: int, *, threads: int, workers: int, **settings: Any
) -> list[float]:
    """Images per second on the clock of the whole pipeline.

    The pipeline runs until its buffers hold what they can before the clock starts, and
    what they held is taken out before it.

    Args:
      split: of training.
      count: images of a round, in whole batches.
      rounds: how many numbers to return.
      threads: of each process.
      workers: further processes, see `pipeline.prefetched`.
      **settings: size, crop and interpolation of `pipeline.train_batches`.
    """
    batches = -(-count // BATCH)
    ahead = 4 * (workers or 1)
    iterator = pipeline.train_batches(
        split, batch_size=BATCH, seed=0, start=0, stop=ahead + rounds * batches,
        threads=threads, workers=workers, **settings,
    )  # fmt: skip
    for _ in range(ahead):
        next(iterator)
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(batches):
            next(iterator)
        rates.append(batches * BATCH / (time.perf_counter() - start))
    list(iterator)  # ends the worker processes
    return rates
