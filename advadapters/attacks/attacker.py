"""What runs attacks on batches of images, with one program for all of a shape.

Images are gathered on the host between the rounds of an attack; on the device every
round is one program. Which rows it has follows from the images given, the batch size and
the network alone, never from what happens to be compiled: equal calls do equal things.
"""

import collections
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import costs, meshes, rng
from advadapters.attacks.programs import (
    Task,
    attack_batch,
    forward,
    judge,
    nearest_batch,
    program_of,
    programs_of,
)
from advadapters.attacks.state import Batch, Cost, State
from advadapters.attacks.versions import Stage
from advadapters.pixels import to_float
from advadapters.shapes import (
    Classes,
    Float,
    HostImages,
    Int,
    LogitsFn,
    Number,
    PRNGKey,
)

JUDGES = 100  # draws of a random network that an image is judged on
# About how many floating-point operations take as long as compiling an attack does: 4.5 s
# at 20 to 30 GFLOP/s were measured on a CPU.
COMPILING = {"cpu": 1e11, "other": 1e15}


class Attacker:
    """Runs attacks on batches of few shapes, each compiled once.

    judges: on how many draws of a random network an image is judged, 0 for a network that
    is not random. programs: a dict of what is compiled, which may serve several of them;
    None for PROGRAMS, or for one of its own where the network has no arrays: those that it
    closes over are constants of its programs, and may be others at the next call.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        norm: str,
        eps: Number,
        batch_size: int,
        mesh: jax.sharding.Mesh | None = None,
        judges: int = 0,
        programs: dict | None = None,
    ) -> None:
        self.logits_fn, self.norm, self.eps = logits_fn, norm, np.float32(eps)
        self.batch_size, self.mesh, self.judges = batch_size, mesh, judges
        self.programs = programs_of(logits_fn) if programs is None else programs
        backend = jax.default_backend()
        self.compiling = COMPILING.get(backend, COMPILING["other"])
        # Accelerators compute eight rows at once.
        self.unit = (1 if backend == "cpu" else 8) * (1 if mesh is None else mesh.size)

    def place(self, tree: Any) -> Any:
        """Rows over the mesh, if there is one."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        there = meshes.batched(self.mesh)
        return jax.tree.map(  # device_put takes no keys to other hosts
            lambda rows: jax.make_array_from_callback(rows.shape, there, rows.__getitem__),
            tree,
        )

    def rows(self, count: int) -> int:
        """Rows of a batch for `count` images, rounded up for few shapes and all devices."""
        return -(-count // self.unit) * self.unit

    def shape(self, count: int) -> int:
        """Rows of even batches that take `count` images."""
        calls = max(1, -(-count // self.batch_size))
        return self.rows(-(-count // calls))

    def batches(
        self, left: Int[np.ndarray, " left"], sizes: set[int], work: float
    ) -> Iterator[tuple[Int[np.ndarray, " _"], int]]:
        """(numbers, rows of the program) of each call on the numbers `left`.

        sizes: a set of rows, of the programs of this attack, to which new ones are added.
        A program is taken that is larger than need be unless its padding costs more than
        compiling another one. work: FLOPs that a row costs, 0 if they are not known: then
        nothing is padded.
        """
        while len(left):
            even = self.shape(len(left))
            rows = min((size for size in sizes if size >= even), default=even)
            wasted = rows * -(-len(left) // rows) - even * -(-len(left) // even)
            if not work or wasted * work > self.compiling:
                rows = even
            sizes.add(rows)
            yield left[:rows], rows
            left = left[rows:]

    def call(
        self, function: Callable, fixed: tuple, rows: tuple, *scalars: Number
    ) -> tuple[Any, Cost]:
        """(what a function makes of network, rows and scalars, {kind of seconds: number}).

        fixed: its first arguments, hashable; for each value there is another program.
        """
        arguments = (self.logits_fn, *self.place(rows), *scalars)
        started = time.monotonic()
        program, is_new = program_of(self.programs, function, fixed, arguments)
        wall, busy = time.monotonic(), time.process_time()
        result = jax.tree.map(meshes.gather, program(*arguments))
        return result, dict(
            seconds=time.monotonic() - wall,
            cpu_seconds=time.process_time() - busy,
            compile_seconds=wall - started if is_new else 0.0,
        )

    def attack(
        self,
        stage: Stage,
        state: State,
        index: Int[np.ndarray, " B"],
        rows: int,
        targets: Int[np.ndarray, " B"],
        key: PRNGKey,
        round_: int,
    ) -> Batch:
        """The Batch of one call, of a program for so many rows."""
        count = len(index)
        padded = np.concatenate([index, np.full(rows - count, index[0])])
        numbers = jnp.asarray(state.numbers[padded])
        keys = rng.by_index(rng.fold(key, stage.name, round_), numbers)
        task = Task(
            state.images[padded],
            state.labels[padded],
            keys,
            np.concatenate([targets, np.full(rows - count, targets[0])]),
            np.arange(rows) < count,
        )
        fixed = (stage.fixed, self.norm, self.judges)
        (*parts, passes), cost = self.call(attack_batch, fixed, (task,), self.eps)
        cost |= dict(forwards=int(passes) * count, padding=int(passes) * (rows - count))
        points, share, lost, unmoved = (part[:count] for part in parts)
        return Batch(index, points, share, lost, unmoved, cost)

    def nearest(
        self, stage: Stage, state: State, left: Int[np.ndarray, " left"], flops: float
    ) -> tuple[Int[np.ndarray, "left _"], Cost]:
        """(MALT's targets int32 [n, targets] for the images numbered `left` [n], cost)."""
        passes = min(stage.candidates, state.logits.shape[1] - 1)
        sizes, parts = {self.shape(len(state.labels))}, []
        total = collections.Counter()
        for index, rows in self.batches(left, sizes, 3 * passes * flops):
            padded = np.resize(index, rows)
            inputs = (to_float(state.images[padded]), state.labels[padded])
            fixed = (stage.targets, stage.candidates, self.norm)
            classes, cost = self.call(nearest_batch, fixed, inputs)
            parts.append(classes[: len(index)])
            # Each gradient counts as a pass, as in attacks.
            total.update(cost, forwards=passes * len(index))
            total.update(padding=passes * (rows - len(index)))
        return np.concatenate(parts), dict(total)

    def over(
        self,
        function: Callable,
        images: Callable[[Int[np.ndarray, " rows"]], HostImages],
        labels: Int[np.ndarray, " N"],
        key: PRNGKey,
    ) -> Any:
        """What a function of rows makes of all images, labels and keys: arrays [N, ...].

        images: a function of their numbers. All batches have one shape.
        """
        batches, size = [], self.shape(len(labels))
        for start in range(0, len(labels), size):
            numbers = np.arange(start, min(start + size, len(labels)))
            padded = np.resize(numbers, size)
            parts = self._one(function, images(padded), labels[padded], key, start)
            last = slice(len(numbers))
            batches.append(jax.tree.map(lambda rows, last=last: rows[last], parts))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)

    def _one(
        self,
        function: Callable,
        images: HostImages,
        labels: Classes,
        key: PRNGKey,
        start: int = 0,
    ) -> Any:
        """What a function of rows makes of one batch, whose numbers begin at `start`."""
        keys = rng.by_index(key, jnp.arange(start, start + len(images)))
        return self.call(function, (self.judges,), (images, labels, keys))[0]

    def logits(
        self, images: HostImages, labels: Int[np.ndarray, " B"], key: PRNGKey
    ) -> Float[np.ndarray, "B L"]:
        """Logits [N, L] float32 of the images as they are; of one draw each batch."""
        return self.over(forward, images.__getitem__, labels, key)

    def one_batch(
        self, images: HostImages, labels: Classes, key: PRNGKey
    ) -> Float[np.ndarray, "B L"]:
        """The same for images that are one whole batch."""
        return self._one(forward, images, labels, key)

    def flops(self, shape: tuple[int, ...]) -> float:
        """FLOPs of a forward pass on an image [H, W, C], 0 if no products are seen."""
        images = jax.ShapeDtypeStruct((self.unit, *shape), jnp.float32)
        labels = jax.ShapeDtypeStruct((self.unit,), jnp.int32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.unit))
        function = functools.partial(forward, self.judges)
        traced = jax.make_jaxpr(function)(self.logits_fn, images, labels, keys)
        return costs.products(traced.jaxpr) / self.unit

    def right(
        self,
        images: HostImages,
        labels: Int[np.ndarray, " B"],
        logits: Float[np.ndarray, "B L"],
        key: PRNGKey | None,
    ) -> Float[np.ndarray, " B"]:
        """Share [N] of draws that are right on clean images, of which the logits are."""
        if self.judges and key is not None:
            return self.judged(images.__getitem__, labels, rng.fold(key, "clean"))
        finite = np.isfinite(logits).all(axis=1)
        return (finite & (logits.argmax(axis=1) == labels)).astype(np.float32)

    def judged(
        self,
        images: Callable[[Int[np.ndarray, " rows"]], HostImages],
        labels: Int[np.ndarray, " N"],
        key: PRNGKey,
    ) -> Float[np.ndarray, " N"]:
        """Share [N] of draws that are right; images: a function of their numbers."""
        return self.over(judge, images, labels, key)[0]
