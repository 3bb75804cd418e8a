"""The step-addressed pipeline: batch s is a function of (seed, s), on any host count.

The global batch of step s holds positions s * G ... s * G + G - 1 of an endless
shuffled stream; each host loads its own contiguous part of them. Resuming at a
step is asking for that step: there is no iterator state to save.
"""

import grain
import numpy as np

from advadapters.data import images as codecs
from advadapters.errors import UsageError

TRAIN_CROPS = ("central", "random_resized")


def train_batches(
    split, *, size, crop, batch_size, seed, start, stop, process=(0, 1), threads=2
):
    """Iterates over this process's rows of the batches of steps start ... stop - 1.

    A batch is {"images": uint8 [b, H, W, C], "labels": int32 [b], "index": int32 [b]},
    index being the row in the global batch of G = batch_size rows.
    """
    stream = grain.MapDataset.range(len(split)).shuffle(seed=seed).repeat()
    first, rows = host_rows(batch_size, process)

    def example(position):
        rng = np.random.default_rng((seed, position))
        image, label = readable(split, stream[position])
        if crop == "random_resized":
            return codecs.random_resized_crop(image, size, rng), label
        return codecs.central_crop(image, size, 1.0), label

    def batch(step):
        base = step * batch_size + first
        examples = [example(base + row) for row in range(rows)]
        index = np.arange(first, first + rows, dtype=np.int32)
        return stack_examples(examples) | {"index": index}

    steps = grain.MapDataset.range(start, stop).map(batch)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    return iter(steps.to_iter_dataset(options))


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


def stack_examples(examples):
    """[(image, label), ...] -> {"images": [b, H, W, C], "labels": [b]}."""
    images, labels = zip(*examples, strict=True)
    return {"images": np.stack(images), "labels": np.array(labels, np.int32)}


def eval_batches(split, *, size, crop_ratio, batch_size, process=(0, 1), threads=2):
    """Iterates once over a split in order: every batch full, padding masked.

    Adds "mask" bool [b] (False for padding and for corrupt images that may be
    skipped) to the batch of `train_batches`; index is the number of the example.
    """
    first, rows = host_rows(batch_size, process)
    channels = readable(split, 0)[0].shape[2]
    filler = (np.zeros((size, size, channels), np.uint8), 0)

    def example(i):
        found = split[i] if i < len(split) else None
        if found is None:
            return None
        return codecs.central_crop(found[0], size, crop_ratio), found[1]

    def batch(step):
        base = step * batch_size + first
        found = [example(base + row) for row in range(rows)]
        stacked = stack_examples([e or filler for e in found])
        mask = np.array([e is not None for e in found])
        index = np.arange(base, base + rows, dtype=np.int32)
        return stacked | {"mask": mask, "index": index}

    steps = grain.MapDataset.range(-(-len(split) // batch_size)).map(batch)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    return iter(steps.to_iter_dataset(options))
