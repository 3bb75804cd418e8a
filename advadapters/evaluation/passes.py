"""One pass over a split: batches on the devices, calls in their queue, results in order."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from advadapters import meshes
from advadapters.shapes import Int

# Calls that the devices have in hand: one runs, the next is there when it ends. The
# results of more would only fill their memory.
IN_FLIGHT = 2
FIELDS = ("labels", "index", "mask")  # of a batch, besides its images


def placed(
    batches: Iterable[dict[str, Any]], rows: int, *, mesh: Mesh, parts: list[dict]
) -> Iterator[dict[str, Any]]:
    """Iterates over batches on the devices, in parts of so many rows on each.

    batches: of `pipeline.eval_batches`, this process's rows. parts: a list, to which the
    FIELDS of each part are appended, see `in_order`.
    """
    for batch in batches:
        size = rows * len(mesh.local_devices)
        for start in range(0, len(batch["index"]), size):
            part = {key: value[start : start + size] for key, value in batch.items()}
            there = meshes.global_batch(mesh, part)
            about = meshes.everywhere({key: there[key] for key in FIELDS})
            yield there
            parts.append(jax.tree.map(np.asarray, about))


def in_order(
    parts: list[dict],
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, "N ..."], Int[np.ndarray, " N"]]:
    """(order, labels, index): the columns of real examples by their numbers.

    order: int [N], where they are among those of all parts put one after the other.
    """
    labels, index, mask = (np.concatenate([part[key] for part in parts]) for key in FIELDS)
    real = np.flatnonzero(mask)
    order = real[np.argsort(index[real])]
    return order, labels[order], index[order]


class Queue:
    """Calls whose results are not fetched yet, so that no device waits for the host.

    work: of all calls, in any unit. progress(share of it) is called after each.
    """

    def __init__(
        self,
        work: float = 1.0,
        progress: Callable[[float], object] = lambda share: None,
    ) -> None:
        self.work, self.done, self.progress = work, 0.0, progress
        self.waiting: collections.deque = collections.deque()

    def put(self, answer: Any, column: list, work: float = 0.0) -> None:
        """Has the result of a call, a tree of arrays, appended to a list as numpy."""
        self.waiting.append((meshes.everywhere(answer), column, work))
        self.settle(IN_FLIGHT - 1)

    def settle(self, most: int = 0) -> None:
        """Fetches results until so many are left."""
        while len(self.waiting) > most:
            answer, column, work = self.waiting.popleft()
            column.append(jax.tree.map(np.asarray, answer))
            self.done += work
            self.progress(min(1.0, self.done / self.work))
