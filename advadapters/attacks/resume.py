"""The journal of a cascade: one small file per batch, so that a kill loses one batch."""

import json
import os
import pathlib
import zipfile
import zlib

import numpy as np

from advadapters.errors import UsageError


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

    Raises UsageError if the folder holds a run of another network, data or setting.
    """

    def __init__(self, folder, images, labels, logits, settings):
        self.folder = pathlib.Path(folder)
        manifest = settings | {
            "images": checksum(images),
            "labels": checksum(labels),
            "shape": list(images.shape),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / "manifest.json"
            if file.exists():
                self.compare(json.loads(file.read_text()), manifest, logits)
            else:
                write_atomically(self.folder / "logits.npz", logits=logits)
                file.write_text(json.dumps(manifest, indent=1))
        except (OSError, json.JSONDecodeError) as error:
            raise UsageError(f"cannot use {folder} to resume: {error}") from None

    def compare(self, old, new, logits):
        """Raises UsageError if the run there is another one."""
        differ = [key for key in new if old.get(key) != new[key]]
        if differ:
            raise UsageError(
                f"{self.folder} holds a run with another {', '.join(differ)}: "
                "name another folder to resume from"
            )
        with np.load(self.folder / "logits.npz", allow_pickle=False) as file:
            before = file["logits"]
        if before.shape != logits.shape or not np.allclose(before, logits, 1e-3, 1e-3):
            raise UsageError(
                f"{self.folder} holds a run of another network (its clean logits "
                "differ): name another folder to resume from"
            )

    def files(self):
        """The batches recorded so far, in order."""
        return sorted(self.folder.glob("batch-" + "[0-9]" * 6 + ".npz"))

    def replay(self, state):
        """Takes in the recorded batches; a damaged file is passed over."""
        for file in self.files():
            try:
                with file.open("rb") as raw, np.load(raw, allow_pickle=False) as data:
                    row = {name: data[name] for name in data.files}
            except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile):
                continue
            broken = row["broken"]
            points = np.zeros((len(broken), *state.images.shape[1:]), np.float32)
            points[broken] = row["points"]
            state.update(
                int(row["number"]),
                int(row["round"]),
                str(row["name"]),
                row["index"],
                points,
                broken,
                json.loads(str(row["cost"])),
            )

    def write(self, state, number, round_, name, index, points, broken, cost):
        """Records one batch; only broken images are stored."""
        # Past the last name, so that no record is written over.
        names = [int(file.stem.removeprefix("batch-")) for file in self.files()]
        number_of_file = max(names, default=-1) + 1
        write_atomically(
            self.folder / f"batch-{number_of_file:06d}.npz",
            number=number,
            round=round_,
            name=name,
            index=index,
            points=points[broken],
            broken=broken,
            cost=json.dumps(cost),
        )


def write_atomically(path, **arrays):
    """An .npz file that is there whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def checksum(array):
    """A number that tells arrays apart."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())
