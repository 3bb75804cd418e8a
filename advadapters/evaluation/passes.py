"""One pass over a split: batches on the devices, calls in their queue, results in order."""

import collections

import jax
import numpy as np

from advadapters import meshes

# Calls that the devices have in hand: one runs, the next is there when it ends. The
# results of more would only fill their memory.
IN_FLIGHT = 2
TOLD = ("labels", "index", "mask")


def placed(batches, rows, *, mesh, told):
    """Iterates over batches on the devices, in parts of so many rows on each.

    batches: of `pipeline.eval_batches`, this process's rows. told: a list, to which what
    the parts are told of besides their images is appended, see `in_order`.
    """
    for batch in batches:
        size = rows * len(mesh.local_devices)
        for start in range(0, len(batch["index"]), size):
            part = {key: value[start : start + size] for key, value in batch.items()}
            there = meshes.global_batch(mesh, part)
            about = meshes.everywhere({key: there[key] for key in TOLD})
            yield there
            told.append(jax.tree.map(np.asarray, about))


def in_order(told):
    """(order, labels, index): the columns of real examples by their numbers.

    order: int [N], where they are among those of all parts put one after the other.
    """
    labels, index, mask = (np.concatenate([part[key] for part in told]) for key in TOLD)
    real = np.flatnonzero(mask)
    order = real[np.argsort(index[real])]
    return order, labels[order], index[order]


class Queue:
    """Calls whose results are not fetched yet, so that no device waits for the host.

    work: of all calls, in any unit. progress(share of it) is called after each.
    """

    def __init__(self, work=1.0, progress=lambda share: None):
        self.work, self.done, self.progress = work, 0.0, progress
        self.waiting = collections.deque()

    def put(self, answer, column, work=0.0):
        """Has the result of a call, a tree of arrays, appended to a list as numpy."""
        self.waiting.append((meshes.everywhere(answer), column, work))
        self.settle(IN_FLIGHT - 1)

    def settle(self, most=0):
        """Fetches results until so many are left."""
        while len(self.waiting) > most:
            answer, column, work = self.waiting.popleft()
            column.append(jax.tree.map(np.asarray, answer))
            self.done += work
            self.progress(min(1.0, self.done / self.work))
