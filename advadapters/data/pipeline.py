"""The step-addressed pipeline: batch s is a function of (seed, s), on any host count.

The global batch of step s holds positions s * G ... s * G + G - 1 of an endless
shuffled stream; each host loads its own contiguous part of them. Resuming at a
step is asking for that step: there is no iterator state to save.
"""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple, TypeVar

import numpy as np
from absl import flags

from advadapters.data import imaging
from advadapters.data.splits import Example, Image, Label, Number, SourceSplit, Split
from advadapters.errors import UsageError
from advadapters.shapes import UInt8

TRAIN_CROPS = ("central", "random_resized")

Batch = dict[str, np.ndarray]
Result = TypeVar("Result")


def train_batches(
    split: Split,
    *,
    size: int,
    crop: str,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    interpolation: str = "area",
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
    workers: int = 0,
) -> Iterator[Batch]:
    """Iterates over this process's rows of the batches of some steps.

    Args:
      split: the training images.
      size: the side of the images in a batch, in pixels.
      crop: one of TRAIN_CROPS.
      batch_size: G, the rows of a batch over all processes.
      seed: of the order of the images, and of random crops.
      start: the first step.
      stop: the step after the last.
      interpolation: one of `imaging.INTERPOLATIONS`.
      process: this process's number, and how many there are.
      threads: that decode and crop, in each process.
      workers: further processes, see `prefetched`.

    Returns:
      Batches {"images": uint8 [b, size, size, C], "labels": int32 [b], "index": int32 [b]};
      index is the row in the global batch.
    """
    import grain

    stream = grain.MapDataset.range(len(split)).shuffle(seed=seed).repeat()
    first, rows = _host_rows(batch_size, process)
    cut = Crop(size, crop, seed, interpolation)
    batch = _TrainBatch(split, stream, cut, batch_size, first, rows, threads)
    return prefetched(range(start, stop), batch, workers)


class Crop(NamedTuple):
    """The function that cuts training images."""

    size: int
    crop: str
    seed: int
    interpolation: str = "area"

    def __call__(self, image: Image, position: int) -> UInt8[np.ndarray, "size size C"]:
        """The image in its size; position: in the stream of training images."""
        if self.crop == "central":
            return imaging.central_crop(image, self.size, 1.0, self.interpolation)
        rng = np.random.default_rng((self.seed, position))
        return imaging.random_resized_crop(image, self.size, rng, self.interpolation)


# Classes, not functions inside of functions, as worker processes get a pickle of them.
class _TrainBatch(NamedTuple):
    """The function that makes this process's rows of the batch of a step."""

    split: Split
    stream: Any  # the endless list of numbers of images
    crop: Crop
    batch_size: int
    first: int
    rows: int
    threads: int

    def __call__(self, step: Number) -> Batch:
        base = int(step) * self.batch_size + self.first
        examples = _at_once(self.example, range(base, base + self.rows), self.threads)
        index = np.arange(self.first, self.first + self.rows, dtype=np.int32)
        return stack_examples(examples) | {"index": index}

    def example(self, position: int) -> tuple[Any, Label]:
        """The example at a position of the stream, its image cut."""
        image, label = _readable(self.split, self.stream[position])
        return self.crop(image, position), label


def prefetched(
    steps: range, batch: Callable[[Number], Batch], workers: int
) -> Iterator[Batch]:
    """Iterates over batch(step) of a range of steps, and makes one or two ahead.

    All threads of the pool share a batch. Grain's own threads would make a whole batch
    each, no more at once than it buffers: 64 threads would be 4, or 64 batches in memory.

    Args:
      steps: a range whose step is 1.
      batch: the function that makes the batch of a step.
      workers: further processes that make the batches in turn, for where Python itself is
        what holds threads up; 0 for none. They end with the iterator.
    """
    import grain

    batches = grain.MapDataset.range(steps.start, steps.stop).map(batch)
    reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    batches = batches.to_iter_dataset(reading)
    if not workers:
        return iter(batches)
    if not flags.FLAGS.is_parsed():  # Grain asks for its own, and we parse no global ones
        flags.FLAGS.mark_as_parsed()
    processes = grain.MultiprocessingOptions(num_workers=workers)
    return iter(batches.mp_prefetch(processes, worker_init_fn=_settle_worker))


def _settle_worker(number: int, count: int) -> None:
    """Has a worker leave Ctrl-C to its parent, and end when the parent has been killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _at_once(
    function: Callable[[int], Result], positions: range, threads: int
) -> list[Result]:
    """[function(position), ...] in order, by a number of threads of the process."""
    parts = np.array_split(positions, threads)
    work = _pool(threads).map(lambda part: [function(int(i)) for i in part], parts)
    return [result for part in work for result in part]


@functools.cache
def _pool(threads: int) -> futures.ThreadPoolExecutor:
    """The process's threads."""
    return futures.ThreadPoolExecutor(threads)


def _host_rows(batch_size: int, process: tuple[int, int]) -> tuple[int, int]:
    """The first row and the number of rows of a process's part of the global batch."""
    index, count = process
    if batch_size % count:
        raise UsageError(f"batch_size {batch_size} is not divisible by {count} hosts")
    rows = batch_size // count
    return index * rows, rows


def _readable(split: Split, i: Number) -> Example:
    """Example i, or the next one that is not corrupt."""
    for offset in range(len(split)):
        example = split[(i + offset) % len(split)]
        if example is not None:
            return example
    raise UsageError("every image of the split is corrupt")


def unreadable(
    split: SourceSplit, threads: int, progress: Callable[[int, int], object]
) -> list[int]:
    """The numbers of the images that cannot be decoded; all images are tried.

    Args:
      split: the images.
      threads: that decode.
      progress: is called now and then with how many were tried and how many there are.

    Raises:
      UsageError: a label is below 0.
    """
    corrupt, part = [], 64 * threads
    for start in range(0, len(split), part):
        chosen = range(start, min(start + part, len(split)))
        decoded = _at_once(lambda i: split.find(i)[0] is not None, chosen, threads)
        corrupt += [i for i, good in zip(chosen, decoded, strict=True) if not good]
        progress(chosen.stop, len(split))
    return corrupt


def stack_examples(examples: Sequence[tuple[Image, Any]]) -> Batch:
    """[(image, label), ...] -> {"images": [b, H, W, C], "labels": [b] or [b, R]}."""
    images, labels = zip(*examples, strict=True)
    return {"images": np.stack(images), "labels": np.array(labels, np.int32)}


def eval_batches(
    split: Split,
    *,
    size: int,
    crop_ratio: float,
    batch_size: int,
    seed: int = 0,
    interpolation: str = "area",
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
    workers: int = 0,
) -> Iterator[Batch]:
    """Iterates once over a split in order, in full batches, the last one padded.

    Args:
      split: the images.
      size: the side of the images in a batch, in pixels.
      crop_ratio: `size` as a share of the shorter side that images are resized to.
      batch_size: the rows of a batch over all processes.
      seed: of what is drawn for the images later on.
      interpolation: one of `imaging.INTERPOLATIONS`.
      process: this process's number, and how many there are.
      threads: that decode and crop, in each process.
      workers: further processes, see `prefetched`.

    Returns:
      Batches as of `train_batches` with two more entries: "mask" bool [b], which is False
      for padding and for corrupt images that may be skipped, and "seed" uint32 [b], the
      seed in every row. Here index is the number of the example.
    """
    first, rows = _host_rows(batch_size, process)
    crop = functools.partial(
        imaging.central_crop, size=size, ratio=crop_ratio, interpolation=interpolation
    )
    batch = _EvalBatch(split, crop, size, batch_size, first, rows, threads, seed)
    count = -(-len(split) // batch_size)
    return prefetched(range(count), batch, workers)


class _EvalBatch(NamedTuple):
    """The function that makes this process's rows of a batch of one pass over a split."""

    split: Split
    crop: Callable[[Image], Image]
    size: int
    batch_size: int
    first: int
    rows: int
    threads: int
    seed: int

    def __call__(self, step: Number) -> Batch:
        base = int(step) * self.batch_size + self.first
        examples = _at_once(self.example, range(base, base + self.rows), self.threads)
        whole = next((example for example in examples if example), None) or self.blank()
        padding = np.zeros_like(whole[0]), np.zeros_like(whole[1])
        stacked = stack_examples([example or padding for example in examples])
        mask = np.array([example is not None for example in examples])
        index = np.arange(base, base + self.rows, dtype=np.int32)
        seeds = np.full(self.rows, self.seed, np.uint32)
        return stacked | {"mask": mask, "index": index, "seed": seeds}

    def example(self, i: int) -> tuple[Image, Label] | None:
        """Example i, its image cut; None if it is corrupt or i is beyond the last one."""
        example = self.split[i] if i < len(self.split) else None
        return example and (self.crop(example[0]), example[1])

    def blank(self) -> tuple[Image, np.ndarray]:
        """An example of zeros, in the shapes of the split."""
        image, label = _readable(self.split, 0)
        return np.zeros((self.size, self.size, image.shape[2]), np.uint8), np.zeros_like(
            label
        )
