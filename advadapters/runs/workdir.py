"""The files of one run's folder: process 0 writes and reads them, see `hosts.once`."""

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from etils import epath

from advadapters import defaults, files, hosts
from advadapters.errors import UsageError
from advadapters.evaluation.rows import Row, dump, load
from advadapters.evaluation.tables import draw_tradeoff, results_table
from advadapters.files import AnyPath

Config = dict[str, Any]  # of a run, nested plain values
_LOCKS: dict[str, int] = {}  # {folder that this process has locked: open file}


def open_workdir(path: str | os.PathLike, config: Config, data: Any = None) -> epath.Path:
    """The folder, made if need be, for exactly this config.

    data: what a new run remembers of its images, see `data.identity`. Raises UsageError if
    it cannot be written, holds a run of another config, or is not there for all hosts.
    """
    folder = epath.Path(make_workdir(path, config, data))
    if not folder.exists():
        raise UsageError(
            f"{folder} is not there on host {hosts.joined().process_id}: several hosts "
            "need a workdir on a file system that all of them share"
        )
    refuse_other(folder, read_config(folder), plain(config))
    return folder


@hosts.once
def need_writable(path: str | os.PathLike) -> None:
    """Raises UsageError where nothing can be written, before hours of work are in vain."""
    file = epath.Path(path) / ".writable"
    try:
        file.write_bytes(b"")
        file.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write to {path}, where the results go: {error.strerror or error}; "
            "make it writable, or copy it elsewhere"
        ) from None


@contextlib.contextmanager
def alone(path: str | os.PathLike) -> Iterator[None]:
    """Lets nobody else train in a folder meanwhile; raises UsageError if somebody does.

    The system takes the lock from a process that ends, however it ends. There is none on
    file systems that know no locks, such as buckets.
    """
    folder = os.path.abspath(os.path.expanduser(path))
    _lock(folder)
    try:
        yield
    finally:
        _unlock(folder)


@hosts.once
def _lock(folder: str) -> None:
    """What `alone` begins with in process 0."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        raise UsageError(
            f"another process is training in {folder}: wait until it ends, or name another "
            "workdir"
        ) from None
    except OSError:  # no locks here
        os.close(number)
        return
    _LOCKS[folder] = number


@hosts.once
def _unlock(folder: str) -> None:
    """What `alone` ends with in process 0."""
    if folder in _LOCKS:
        os.close(_LOCKS.pop(folder))


def plain(config: Config) -> Config:
    """A config as it is when it has been written and read again."""
    return retuple(json.loads(json.dumps(config)))


@hosts.once
def make_workdir(path: str | os.PathLike, config: Config, data: Any = None) -> str:
    """What `open_workdir` does in process 0; returns the folder's whole path."""
    folder = epath.Path(os.path.abspath(os.path.expanduser(path)))
    file = folder / "config.json"
    try:
        if file.exists():
            return os.fspath(folder)
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(
                f"{folder} is not empty and holds no run (no config.json): "
                "name an empty or a new folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if data is not None:
            write_json(folder / "data.json", data)
        write_json(file, config)  # last: it says that there is a run
    except OSError as error:
        raise UsageError(f"cannot use {folder} as a workdir: {error}") from None
    return os.fspath(folder)


@hosts.once
def record(
    path: str | os.PathLike,
    config: Config,
    data: Any,
    changed: Mapping[str, tuple[Any, Any]],
    again: bool,
) -> None:
    """Writes the config and the data that a run goes on with, and their history.

    changed: {key: (old value, new value)}; again: whether results are to be made again.
    """
    folder = epath.Path(os.path.expanduser(path))
    saved = folder / "checkpoints"
    steps = (
        [int(p.name) for p in saved.iterdir() if p.name.isdecimal()]
        if saved.exists()
        else []
    )
    try:
        write_json(folder / "data.json", data)
        if changed:
            file = folder / "history.json"
            rows = json.loads(file.read_text()) if file.exists() else []
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            row = {"time": when, "step": max(steps, default=0), "changed": changed}
            write_json(file, [*rows, row])
            if again:
                (folder / "results.json").unlink(missing_ok=True)
            write_json(folder / "config.json", config)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot change the config of {folder}: {error}") from None


@hosts.once
def read_data(path: str | os.PathLike) -> Any:
    """What a run remembers of its images, see `data.identity`; None if nothing."""
    file = epath.Path(os.path.expanduser(path)) / "data.json"
    try:
        return json.loads(file.read_text()) if file.exists() else None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file}: {error}") from None


@hosts.once
def holds_run(path: str | os.PathLike) -> bool:
    """Whether the folder has a config."""
    return (epath.Path(os.path.expanduser(path)) / "config.json").exists()


@hosts.once
def is_begun(path: str | os.PathLike) -> bool:
    """Whether a run that is put together, as by `soup`, was cut short.

    Its lineage.json is written last. A run that is trained has no such file, but a log.
    """
    folder = epath.Path(os.path.expanduser(path))
    last = ("lineage.json", "metrics.jsonl", "results.json")
    return not any((folder / name).exists() for name in last)


def refuse_other(folder: AnyPath, old: Config, new: Config) -> None:
    """Raises UsageError naming the keys that differ."""
    old, new = leaves(old), leaves(new)
    keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    if keys:
        first = ", ".join(f"{k}: {old.get(k)} there, {new.get(k)} now" for k in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise UsageError(
            f"{folder} holds a run of another config ({first}{more}): "
            "name another workdir, or use that config"
        )


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {"a.b": value}."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= leaves(value, name + ".") if isinstance(value, dict) else {name: value}
    return flat


def read_config(path: str | os.PathLike) -> Config:
    """The config of a run's folder; keys that came later have their defaults."""
    config = retuple(read_json(path))
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds no run: config.json is no config")
    return defaults.complete(config)


@hosts.once
def read_json(path: str | os.PathLike) -> Any:
    """What `read_config` reads in process 0."""
    file = epath.Path(os.path.expanduser(path)) / "config.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no run: {error}") from None


@hosts.once
def read_lineage(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of lineage.json, where a run was made of others; [] of other runs."""
    file = epath.Path(os.path.expanduser(path)) / "lineage.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return []


def retuple(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, dict):
        return {key: retuple(inner) for key, inner in value.items()}
    return tuple(map(retuple, value)) if isinstance(value, list) else value


class Log:
    """metrics.jsonl and TensorBoard events, from the same numbers.

    Not by `clu.metric_writers`, which needs TensorFlow.
    """

    def __init__(self, folder: AnyPath, start: int) -> None:
        from tensorboardX import SummaryWriter

        self.path = folder / "metrics.jsonl"
        kept = [row for row in self.read() if row["step"] <= start]
        write_text(self.path, "".join(map(line, kept)))
        after = start + 1 if start else None
        self.events = (
            SummaryWriter(str(folder), purge_step=after) if hosts.first() else None
        )

    def read(self) -> list[dict[str, Any]]:
        """The rows so far; lines that are no rows are left out, and named.

        A last line that a kill cut short is left out without a word.
        """
        rows, bad = [], []
        texts = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        for number, text in enumerate(texts, start=1):
            try:
                row = json.loads(text)
                if not isinstance(row["step"], int):
                    raise ValueError("its step is no number")
                rows.append(row)
            except (ValueError, TypeError, KeyError, RecursionError):
                bad += [number] if number < len(texts) else []
        if bad:
            print(f"warning: {self.path}: lines that are no rows are left out: {bad}")
        return rows

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one row."""
        if self.events is None:
            return
        with self.path.open("a") as file:
            file.write(line({"step": step, **metrics}))
        for name, value in metrics.items():
            self.events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the events."""
        if self.events:
            self.events.close()


def line(row: Mapping[str, float | None]) -> str:
    """One JSON line; what is not finite becomes null, as JSON has no word for it."""
    finite = {
        key: value if isinstance(value, (int, float)) and math.isfinite(value) else None
        for key, value in row.items()
    }
    return json.dumps(finite) + "\n"


def write_json(file: AnyPath, value: Any) -> None:
    """Writes a value as JSON, whole or not at all."""
    write_text(file, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_text(file: AnyPath, text: str) -> None:
    """Writes a file whole or not at all."""
    write_whole(file, lambda raw: raw.write(text.encode()))


def write_whole(
    file: AnyPath, write: Callable[[IO[bytes]], object], everywhere: bool = False
) -> None:
    """See `files.write_whole`: in process 0, in the others nothing, unless each has a file
    of its own (everywhere).
    """
    if everywhere or hosts.first():
        files.write_whole(file, write)


def write_results(folder: AnyPath, rows: Sequence[Row]) -> None:
    """tradeoff.png, results.md and, last, results.json: it says that all is there."""
    write_whole(folder / "tradeoff.png", lambda raw: draw_tradeoff(rows, raw))
    write_text(folder / "results.md", results_table(rows) + "\n")
    write_text(folder / "results.json", dump(rows))


def read_results(folder: AnyPath | str) -> list[Row] | None:
    """The rows of results.json, or None if they are not there or not whole."""
    text = read_results_text(folder)
    try:
        return None if text is None else load(text)
    except ValueError:
        return None


@hosts.once
def read_results_text(folder: AnyPath | str) -> str | None:
    """The content of results.json as process 0 reads it, None if it is not there."""
    try:
        return (epath.Path(folder) / "results.json").read_text()
    except (OSError, ValueError):
        return None
