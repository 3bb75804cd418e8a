"""The journal of a cascade: one small file per batch, so that a kill loses one batch."""

import contextlib
import functools
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import losses, rng
from advadapters.attacks import checks
from advadapters.attacks.attacker import Attacker
from advadapters.attacks.programs import forward
from advadapters.attacks.state import Batch, State
from advadapters.errors import UsageError
from advadapters.files import write_whole
from advadapters.pixels import to_float
from advadapters.shapes import (
    AnyArray,
    Classes,
    Float,
    HostImages,
    Images,
    Int,
    LogitsFn,
    PRNGKeys,
    Shaped,
)

SIZES = (1 / 1020, 1 / 100, 1 / 10)  # of the noise that images are moved by
# What reading a file raises that is cut short or not what it should be.
DAMAGED = (ValueError, LookupError, TypeError, EOFError, zlib.error, zipfile.BadZipFile)

Rows = Float[np.ndarray, "_ ..."]  # what tells a network


class NoJournal:
    """Where nothing is recorded."""

    def __enter__(self) -> "NoJournal":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def replay(self, state: State, number: int) -> None:
        """Nothing to replay."""

    def write(
        self, state: State, number: int, round_: int, name: str, batch: Batch
    ) -> None:
        """Nothing to write."""


class Journal(NoJournal):
    """A folder with manifest.json, what tells the network, and numbered batches.

    network: {name: rows of numbers}, see `fingerprint`. writes: whether this process does,
    or another one for it. Raises UsageError if the folder
    holds a run of another network, data or setting, or batches of nobody knows which.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        images: HostImages,
        labels: Int[np.ndarray, " B"],
        network: dict[str, Rows],
        settings: dict[str, Any],
        writes: bool = True,
    ) -> None:
        self.folder, self.writes = pathlib.Path(folder), writes
        manifest = settings | {
            "images": checksum(images),
            "labels": checksum(labels),
            "shape": list(images.shape),
        }
        try:
            file = self.folder / "manifest.json"
            if file.exists():
                self._compare(json.loads(file.read_text()), manifest, network)
            elif self._files():
                raise UsageError(
                    f"{folder} holds batches but no manifest.json, so nobody knows of "
                    "which run: name another folder to resume from"
                )
            elif writes:
                self.folder.mkdir(parents=True, exist_ok=True)
                save_arrays(self.folder / "network.npz", **network)
                text = json.dumps(manifest, indent=1)
                write_whole(file, lambda raw: raw.write(text.encode()))
        except UsageError:
            raise
        except (OSError, *DAMAGED) as error:
            raise UsageError(f"cannot use {folder} to resume: {error}") from None

    def _compare(self, old: Any, new: dict[str, Any], network: dict[str, Rows]) -> None:
        """Raises UsageError if the run there is another one."""
        if not isinstance(old, dict):
            raise ValueError("manifest.json holds no settings")
        differ = [key for key in new if old.get(key) != new[key]]
        if differ:
            raise UsageError(
                f"{self.folder} holds a run with another {', '.join(differ)}: "
                "name another folder to resume from"
            )
        before = load_arrays(self.folder / "network.npz")
        for name in dict.fromkeys([*network, *before]):
            both = name in network and name in before
            if not both or not _alike(name, before[name], network[name]):
                raise UsageError(
                    f"{self.folder} holds a run of another network (its {name} differ): "
                    "name another folder to resume from"
                )

    def _files(self) -> list[pathlib.Path]:
        """The batches recorded so far, in order."""
        return sorted(self.folder.glob("batch-" + "[0-9]" * 6 + ".npz"))

    def replay(self, state: State, number: int) -> None:
        """Takes in a stage's recorded batches; passes over damaged and foreign files."""
        for file in self._by_stage.get(number, ()):
            try:
                batch = self._read(file, state)
            except (OSError, *DAMAGED):
                continue
            state.update(number, *batch)

    @functools.cached_property
    def _by_stage(self) -> dict[int, list[pathlib.Path]]:
        """{number of a stage: files of its batches, in order}, of those there at first."""
        files = {}
        for file in self._files():
            with contextlib.suppress(OSError, *DAMAGED):
                number = int(load_arrays(file, ["number"])["number"])
                files.setdefault(number, []).append(file)
        return files

    def _read(self, file: pathlib.Path, state: State) -> tuple[int, str, Batch]:
        """What State.update takes; raises one of DAMAGED for what is no batch."""
        row = load_arrays(file)
        name, hit = str(row["name"]), row["hit"]
        points = np.zeros((len(hit), *state.images.shape[1:]), np.float32)
        points[hit] = row["points"]
        cost = json.loads(str(row["cost"]))
        if cost.keys() != state.costs[name].keys():
            raise ValueError(f"other costs: {list(cost)}")
        state.labels[row["index"]]  # IndexError where there are no such images
        share, odd, kept = (row[key] for key in ("share", "not_finite", "not_attacked"))
        return int(row["round"]), name, Batch(row["index"], points, share, odd, kept, cost)

    def write(
        self, state: State, number: int, round_: int, name: str, batch: Batch
    ) -> None:
        """Records one batch, with the images that are worse than before."""
        if not self.writes:
            return
        # Past the last name, so that no record is written over.
        names = [int(file.stem.removeprefix("batch-")) for file in self._files()]
        number_of_file = max(names, default=-1) + 1
        save_arrays(
            self.folder / f"batch-{number_of_file:06d}.npz",
            number=number,
            round=round_,
            name=name,
            hit=state.hits(batch),
            **batch._asdict()
            | dict(points=batch.points[state.hits(batch)], cost=json.dumps(batch.cost)),
        )


def fingerprint(
    attacker: Attacker,
    images: HostImages,
    labels: Int[np.ndarray, " B"],
    logits: Float[np.ndarray, "B L"],
) -> dict[str, Rows]:
    """{name: rows of numbers} that tell a network, for a Journal.

    Clean logits are not enough: a defence that rounds its input has those of the network
    behind it. So there are logits and a gradient (none for a black box) on a sample of
    images that are moved by noise of several sizes, always the same.
    """
    rows = attacker.rows(min(checks.SAMPLE, attacker.batch_size))
    numbers = np.linspace(0, len(labels) - 1, rows).astype(int)
    noise = np.random.default_rng(0).uniform(-1, 1, (rows, *images.shape[1:]))
    noise *= np.resize(SIZES, (rows, 1, 1, 1))
    moved = np.clip(to_float(images[numbers]) + noise.astype(np.float32), 0, 1)
    keys = rng.by_index(jax.random.key(0), jnp.asarray(numbers))
    inputs, rows_by_name = (moved, labels[numbers], keys), {"clean logits": logits}
    for name, function in (("logits", forward), ("gradients", _slope)):
        try:
            part, _ = attacker.call(function, (attacker.judges,), inputs)
        except (ValueError, TypeError, NotImplementedError):
            break  # A black box has no gradient.
        rows_by_name[f"{name} near the images"] = part
    return rows_by_name


def _slope(
    judges: int, logits_fn: LogitsFn, images: Images, labels: Classes, keys: PRNGKeys
) -> Images:
    """The gradient [B, H, W, C] of the margin; of one draw of a random network."""

    def total(images: Images) -> Float[AnyArray, ""]:
        return jnp.sum(
            losses.margin(forward(judges, logits_fn, images, labels, keys), labels)
        )

    return jax.grad(total)(images)


def _alike(name: str, old: Rows, new: Rows) -> bool:
    """Whether rows of numbers [N, ...] are the same up to what machines differ by.

    Clean logits by 1e-3 of each row's largest, gradients by 1e-2; away from the images one
    row in ten may be further off, as there may be a kink between two roundings.
    """
    if old.shape != new.shape:
        return False
    old, new = (rows.reshape(len(rows), -1) for rows in (old, new))
    largest = np.maximum(np.abs(old).max(axis=1), np.abs(new).max(axis=1))
    limit = 1e-2 if "gradients" in name else 1e-3
    near = np.abs(old - new).max(axis=1) <= limit * largest
    same = near | np.all((old == new) | (np.isnan(old) & np.isnan(new)), axis=1)
    return bool(same.mean() >= (1.0 if "clean" in name else 0.9))


def load_arrays(
    path: pathlib.Path, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """{name: array} of an .npz file, or some of it; raises OSError or one of DAMAGED."""
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as data:
        return {name: data[name] for name in names or data.files}


def save_arrays(path: pathlib.Path, **arrays: Any) -> None:
    """Writes an .npz file."""
    write_whole(path, lambda raw: np.savez(raw, **arrays))


def checksum(array: Shaped[np.ndarray, "N ..."]) -> int:
    """A number that tells arrays [N, ...] apart; at most a row at a time is copied."""
    total = 0
    for row in array:
        total = zlib.crc32(np.ascontiguousarray(row).data.cast("B"), total)
    return total
