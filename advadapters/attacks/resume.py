"""The journal of a cascade: one small file per batch, so that a kill loses one batch."""

import json
import os
import pathlib
import zipfile
import zlib

import numpy as np

from advadapters import hosts
from advadapters.errors import UsageError

# What reading a file raises that is cut short or not what it should be.
DAMAGED = (ValueError, LookupError, TypeError, EOFError, zlib.error, zipfile.BadZipFile)


class NoJournal:
    """Where nothing is recorded."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def replay(self, state):
        """Nothing to replay."""

    def write(self, *_):
        """Nothing to write."""


class Journal(NoJournal):
    """A folder with manifest.json, clean logits, and numbered batches.

    Raises UsageError if the folder holds a run of another network, data or setting, or
    batches of nobody knows which.
    """

    def __init__(self, folder, images, labels, logits, settings):
        self.folder = pathlib.Path(folder)
        manifest = settings | {
            "images": checksum(images),
            "labels": checksum(labels),
            "shape": list(images.shape),
        }
        try:
            file = self.folder / "manifest.json"
            if file.exists():
                self.compare(json.loads(file.read_text()), manifest, logits)
            elif self.files():
                raise UsageError(
                    f"{folder} holds batches but no manifest.json, so nobody knows of "
                    "which run: name another folder to resume from"
                )
            elif hosts.first():
                self.folder.mkdir(parents=True, exist_ok=True)
                save_arrays(self.folder / "logits.npz", logits=logits)
                text = json.dumps(manifest, indent=1)
                write_atomically(file, lambda raw: raw.write(text.encode()))
        except (OSError, *DAMAGED) as error:
            raise UsageError(f"cannot use {folder} to resume: {error}") from None

    def compare(self, old, new, logits):
        """Raises UsageError if the run there is another one."""
        if not isinstance(old, dict):
            raise ValueError("manifest.json holds no settings")
        differ = [key for key in new if old.get(key) != new[key]]
        if differ:
            raise UsageError(
                f"{self.folder} holds a run with another {', '.join(differ)}: "
                "name another folder to resume from"
            )
        before = load_arrays(self.folder / "logits.npz")["logits"]
        if before.shape != logits.shape or not np.allclose(before, logits, 1e-3, 1e-3):
            raise UsageError(
                f"{self.folder} holds a run of another network (its clean logits "
                "differ): name another folder to resume from"
            )

    def files(self):
        """The batches recorded so far, in order."""
        return sorted(self.folder.glob("batch-" + "[0-9]" * 6 + ".npz"))

    def replay(self, state):
        """Takes in the recorded batches; damaged and foreign files are passed over."""
        for file in self.files():
            try:
                batch = self.read(file, state)
            except (OSError, *DAMAGED):
                continue
            state.update(*batch)

    def read(self, file, state):
        """The arguments of State.update; raises one of DAMAGED for what is no batch."""
        row = load_arrays(file)
        name, index, broken = str(row["name"]), row["index"], row["broken"]
        points = np.zeros((len(index), *state.images.shape[1:]), np.float32)
        points[broken] = row["points"]
        cost = json.loads(str(row["cost"]))
        if cost.keys() != state.costs[name].keys():
            raise ValueError(f"other costs: {list(cost)}")
        state.labels[index]  # IndexError where there are no such images
        return int(row["number"]), int(row["round"]), name, index, points, broken, cost

    def write(self, state, number, round_, name, index, points, broken, cost):
        """Records one batch, in process 0; only broken images are stored."""
        if not hosts.first():
            return
        # Past the last name, so that no record is written over.
        names = [int(file.stem.removeprefix("batch-")) for file in self.files()]
        number_of_file = max(names, default=-1) + 1
        save_arrays(
            self.folder / f"batch-{number_of_file:06d}.npz",
            number=number,
            round=round_,
            name=name,
            index=index,
            points=points[broken],
            broken=broken,
            cost=json.dumps(cost),
        )


def load_arrays(path):
    """{name: array} of an .npz file; raises OSError or one of DAMAGED."""
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def save_arrays(path, **arrays):
    """Writes an .npz file."""
    write_atomically(path, lambda raw: np.savez(raw, **arrays))


def write_atomically(path, write):
    """A file that is there whole or not at all; write: called with the open file."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def checksum(array):
    """A number that tells arrays apart."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())
