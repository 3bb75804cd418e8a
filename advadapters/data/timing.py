"""How long the stages of the pipeline take, by one thread and all together."""

import time

from advadapters.data import images as codecs
from advadapters.data import pipeline
from advadapters.data.encoded import Encoded
from advadapters.data.sources import Subset

BATCH = 64


def stages(split, positions, size, crop, interpolation="area"):
    """{stage: seconds of CPU per image} of these training images, by this thread.

    "waiting" are seconds on the clock that reading takes beyond its own. Where images are
    not encoded, reading is all that there is to decoding.
    """
    spent = dict.fromkeys(("read", "waiting", "decode", "crop", "batch"), 0.0)
    cut = pipeline.make_crop(size, crop, 0, interpolation)
    batch = []
    for number, position in enumerate(positions, 1):
        start, (data, label, decode) = tick(), fetch(split, int(position))
        spent["read"] += (read := took(start))[0]
        spent["waiting"] += max(read[1] - read[0], 0)
        start, image = tick(), decode(data)
        spent["decode"] += took(start)[0]
        if image is None:
            continue
        start = tick()
        batch.append((cut(image, number), label))
        spent["crop"] += took(start)[0]
        if len(batch) == BATCH or number == len(positions):
            start = tick()
            pipeline.stack_examples(batch)
            spent["batch"], batch = spent["batch"] + took(start)[0], []
    return {stage: seconds / len(positions) for stage, seconds in spent.items()}


def tick():
    """Now: by this thread's CPU, and on the clock."""
    return time.thread_time(), time.perf_counter()


def took(start):
    """Seconds since then, likewise."""
    return tuple(now - then for now, then in zip(tick(), start, strict=True))


def fetch(split, i):
    """(data, label, function from data to an image or None) of example i."""
    while isinstance(split, Subset):
        split, i = split.split, int(split.positions[i])
    if isinstance(split, Encoded):
        data, label = split.reader.read(i)
        return data, label, lambda data: codecs.decode(data, split.channels)
    image, label = split[i]
    return image, label, lambda image: image


def together(split, count, rounds, *, threads, workers, **how):
    """Images per second on the clock, a number for each round of `count` images.

    The pipeline runs until its buffers hold what they can before the clock starts, and
    what they held is taken out before it. how: size, crop and interpolation of
    `pipeline.train_batches`.
    """
    batches = -(-count // BATCH)
    ahead = 4 * (workers or 1)
    made = pipeline.train_batches(
        split, batch_size=BATCH, seed=0, start=0, stop=ahead + rounds * batches,
        threads=threads, workers=workers, **how,
    )  # fmt: skip
    for _ in range(ahead):
        next(made)
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(batches):
            next(made)
        found.append(batches * BATCH / (time.perf_counter() - start))
    list(made)  # ends the worker processes
    return found
