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
from concurrent import futures

import numpy as np
from absl import flags

from advadapters.data import images as codecs
from advadapters.errors import UsageError

TRAIN_CROPS = ("central", "random_resized")


def train_batches(
    split,
    *,
    size,
    crop,
    batch_size,
    seed,
    start,
    stop,
    interpolation="area",
    process=(0, 1),
    threads=2,
    workers=0,
):
    """Iterates over this process's rows of the batches of steps start ... stop - 1.

    A batch is {"images": uint8 [b, H, W, C], "labels": int32 [b], "index": int32 [b]},
    index being the row in the global batch of G = batch_size rows. threads: that decode
    and crop; workers: see `prefetched`.
    """
    import grain

    stream = grain.MapDataset.range(len(split)).shuffle(seed=seed).repeat()
    first, rows = host_rows(batch_size, process)

    cut = make_crop(size, crop, seed, interpolation)

    def example(position):
        image, label = readable(split, stream[position])
        return cut(image, position), label

    def batch(step):
        base = step * batch_size + first
        examples = at_once(example, range(base, base + rows), threads)
        index = np.arange(first, first + rows, dtype=np.int32)
        return stack_examples(examples) | {"index": index}

    return prefetched(range(start, stop), batch, workers)


def make_crop(size, crop, seed, interpolation="area"):
    """(image, position in the stream of training images) -> image [size, size, C]."""

    def cut(image, position):
        if crop == "central":
            return codecs.central_crop(image, size, 1.0, interpolation)
        rng = np.random.default_rng((seed, position))
        return codecs.random_resized_crop(image, size, rng, interpolation)

    return cut


def prefetched(steps, batch, workers):
    """Iterates over batch(step) of a range of steps; one is always in the making.

    With workers, so many processes of as many threads make the same batches in turn, for
    where Python itself is what holds the threads up. They end with the iterator.
    """
    import grain

    made = grain.MapDataset.range(steps.start, steps.stop).map(batch)
    made = made.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
    if not workers:
        return iter(made)
    if not flags.FLAGS.is_parsed():  # Grain asks for its own, and we parse no global ones
        flags.FLAGS.mark_as_parsed()
    processes = grain.MultiprocessingOptions(num_workers=workers)
    return iter(made.mp_prefetch(processes, worker_init_fn=settle_worker))


def settle_worker(number, count):
    """A worker leaves Ctrl-C to its parent, and ends when the parent has been killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow():
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def at_once(function, positions, threads):
    """[function(position), ...], in order, by so many threads of the process."""
    parts = np.array_split(positions, threads)
    work = pool(threads).map(lambda part: [function(int(i)) for i in part], parts)
    return [result for part in work for result in part]


@functools.cache
def pool(threads):
    """The process's threads."""
    return futures.ThreadPoolExecutor(threads)


def host_rows(batch_size, process):
    """(first row, number of rows) of a host's part of the global batch."""
    index, count = process
    if batch_size % count:
        raise UsageError(f"batch_size {batch_size} is not divisible by {count} hosts")
    rows = batch_size // count
    return index * rows, rows


def readable(split, i):
    """Example i, or the next one that is not corrupt."""
    for offset in range(len(split)):
        example = split[(i + offset) % len(split)]
        if example is not None:
            return example
    raise UsageError("every image of the split is corrupt")


def unreadable(split, threads, progress):
    """[number of each image that cannot be decoded]; every one is tried.

    progress: called with (tried, all) now and then. Raises UsageError for a label below 0.
    """
    found, part = [], 64 * threads
    for start in range(0, len(split), part):
        chosen = range(start, min(start + part, len(split)))
        decoded = at_once(lambda i: split.find(i)[0] is not None, chosen, threads)
        found += [i for i, good in zip(chosen, decoded, strict=True) if not good]
        progress(chosen.stop, len(split))
    return found


def stack_examples(examples):
    """[(image, label), ...] -> {"images": [b, H, W, C], "labels": [b]}."""
    images, labels = zip(*examples, strict=True)
    return {"images": np.stack(images), "labels": np.array(labels, np.int32)}


def eval_batches(
    split,
    *,
    size,
    crop_ratio,
    batch_size,
    seed=0,
    interpolation="area",
    process=(0, 1),
    threads=2,
    workers=0,
):
    """Iterates once over a split in order: every batch full, padding masked.

    Adds to the batch of `train_batches` "mask" bool [b] (False for padding and for corrupt
    images that may be skipped), and the seed, in every row, of what is drawn for the images
    ("seed" uint32 [b]); index is the number of the example.
    """
    first, rows = host_rows(batch_size, process)

    @functools.cache
    def blank():
        image, label = readable(split, 0)
        return np.zeros((size, size, image.shape[2]), np.uint8), np.zeros_like(label)

    def example(i):
        found = split[i] if i < len(split) else None
        if found is None:
            return None
        return codecs.central_crop(found[0], size, crop_ratio, interpolation), found[1]

    def batch(step):
        base = step * batch_size + first
        found = at_once(example, range(base, base + rows), threads)
        good = next((e for e in found if e), None) or blank()
        filler = tuple(map(np.zeros_like, good))
        stacked = stack_examples([e or filler for e in found])
        mask = np.array([e is not None for e in found])
        index = np.arange(base, base + rows, dtype=np.int32)
        seeds = np.full(rows, seed, np.uint32)
        return stacked | {"mask": mask, "index": index, "seed": seeds}

    count = -(-len(split) // batch_size)
    return prefetched(range(count), batch, workers)
