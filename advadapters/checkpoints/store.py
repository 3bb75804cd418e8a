"""Training states in a folder.

Beside each state there are digests of its arrays, see `digests`. Whatever is read is
compared with them, so that no other weights than those that were saved come back.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from advadapters import digests, files, hosts
from advadapters.checkpoints import orbax_settings
from advadapters.errors import UsageError, first_few
from advadapters.shapes import PyTree

T = TypeVar("T")
DIGESTS = "digests"  # their name in the metadata of a checkpoint


class Damaged(UsageError):
    """A checkpoint cannot be read, or what is read is not what was saved."""


class NotFinite(ValueError):
    """A state that was to be saved holds numbers that are not finite."""


class Checkpoints:
    """Training states under one folder.

    Saves are asynchronous; leave the `with` block to wait for the last one.

    Attributes:
      seconds: what was spent on computing digests and on reading back what was saved.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 2,
        best: bool = False,
        read_only: bool = False,
    ) -> None:
        """Opens a folder.

        Args:
          folder: an absolute path.
          keep: how many of the newest states stay.
          best: whether the state with the highest score stays too.
          read_only: whether nothing is saved or cleaned up.
        """
        self.folder, self._has_scores = epath.Path(folder), best
        self._keep, self._read_only, self.seconds = keep, read_only, 0.0
        self._unverified: int | None = None  # the step that was saved last
        self._verified = orbax_settings.KeepVerified()
        self._scores_are_known = True
        if jax.process_count() == 1:
            orbax_settings.write_whole_arrays()
        try:
            self.manager = self._open()
        except Exception:  # Orbax reads the scores of all states, and some file is damaged
            self.manager, self._scores_are_known = self._open(scores=False), False

    def _open(self, scores: bool = True) -> ocp.CheckpointManager:
        """Orbax's manager; scores: whether it reads those of the states that there are."""
        best = checkpoint_managers.BestN(
            get_metric_fn=orbax_settings.score_of,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policies: list = [checkpoint_managers.LatestN(self._keep), self._verified]
        policies += [best] if self._has_scores else []
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=orbax_settings.score_of if self._has_scores else None,
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            lightweight_initialize=not scores,
        )
        with orbax_settings.quiet():
            return ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self._read_back()
        self.manager.close()

    def steps(self) -> list[int]:
        """The steps that there are, oldest first."""
        return sorted(self.manager.all_steps())

    def latest(self) -> int | None:
        """The newest step, or None if there is none."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step with the highest score, or None if none has one."""
        return self.manager.best_step() if self._has_scores else None

    def read(self, text: str, read: Callable[[int], T], where: object) -> tuple[T, int]:
        """What is read of the state that a text names, and its step.

        Args:
          text: "latest", see `newest`, or "best", or a number.
          read: step -> what is wanted of the state, such as `restore_raw`.
          where: what the error message calls the folder.

        Raises:
          UsageError: there is no such state, or it is damaged.
        """
        if text == "latest" and self.steps():
            return self.newest(read, where)
        if text == "best" and not self._scores_are_known:
            raise UsageError(
                f"the scores of {where} cannot be read, as a checkpoint is damaged: name "
                "one by its number, or go on training, which sets it aside"
            )
        best = self.best() if text == "best" else None
        step = int(text) if text.isdecimal() else best
        if step is None or step not in self.steps():
            raise UsageError(
                f"{where} has no checkpoint {text!r}; there are: "
                + (", ".join(map(str, self.steps())) or "none")
            )
        return read(step), step

    def save(self, step: int, state: PyTree, score: float | None = None) -> None:
        """Starts to save a state.

        The state before it is read back first and compared with its digests. The newest
        that passes this is kept until a newer one has passed.

        Args:
          step: the number of steps done.
          state: any pytree of arrays.
          score: with one, of which higher ones are better, it may be the best.

        Raises:
          NotFinite: some number is not finite; nothing is saved.
        """
        start = time.monotonic()
        if paths := digests.not_finite(state):
            raise NotFinite(
                f"the state after step {step} is not finite ({first_few(paths)}) and was "
                f"not saved; the last one saved is that after step {self.latest() or 0}"
            )
        sums = {name: list(pair) for name, pair in digests.of_tree(state).items()}
        self.seconds += time.monotonic() - start
        self._read_back()
        metrics = None if score is None else {"score": float(score)}
        self.manager.save(
            step,
            args=ocp.args.StandardSave(state),
            metrics=metrics,
            force=True,
            custom_metadata={DIGESTS: {"step": step, "arrays": sums}},
        )
        self._unverified = step

    def _read_back(self) -> None:
        """Verifies what was saved last, and says so if it is damaged.

        Several processes leave that to whoever restores the state: to read it again would
        take as much memory as the state has.
        """
        step, self._unverified = self._unverified, None
        if step is None or jax.process_count() > 1:
            return
        self.manager.wait_until_finished()
        start = time.monotonic()
        try:
            self._compare(self._read_on_host(step), step, all_but=())
        except Damaged as error:
            print(f"warning: {error}", flush=True)
        else:
            self._verified.step = step
            for old in self.steps()[: -self._keep]:
                if old != self.best():
                    self.manager.delete(old)
        self.seconds += time.monotonic() - start

    def newest(self, read: Callable[[int], T], where: object) -> tuple[T, int]:
        """What is read of the newest state that can be read, and its step.

        States that are damaged are named, and moved to the folder "damaged" beside this one
        if it is not read only. Several processes go on to an older state only if all of
        them read it and its digests differ.

        Args:
          read: step -> what is wanted of the state; raises Damaged if it is damaged.
          where: what error messages call the folder.

        Raises:
          UsageError: there is no state, or none that can be read.
        """
        failures: dict[int, Damaged] = {}
        for step in reversed(self.steps()):
            try:
                value = read(step)
            except Damaged as error:
                failures[step] = error
                continue
            if not self._scores_are_known:
                failures |= self._unreadable()
            for damaged, error in failures.items():
                self._set_aside(damaged, error)
            if not (self._scores_are_known or self._read_only):
                self.manager.close()
                self.manager, self._scores_are_known = self._open(), True
            return value, step
        reasons = "; ".join(map(str, failures.values())) or "there are none"
        raise UsageError(f"{where} has no checkpoint that can be used: {reasons}")

    def _unreadable(self) -> dict[int, Damaged]:
        """{step: error} of the states whose scores and digests cannot be read."""
        failures = {}
        for step in self.steps():
            try:
                self._saved_digests(step)
            except Damaged as error:
                failures[step] = error
        return failures

    def _set_aside(self, step: int, error: Damaged) -> None:
        """Moves a damaged state out of the way, and says so."""
        note = f"warning: {error}"
        if not self._read_only:
            aside = self.folder.parent / "damaged"
            _move(os.fspath(self.folder / str(step)), os.fspath(aside))
            self.manager.reload()
            note += f"; it is kept in {aside}"
        print(note, flush=True)

    def restore_raw(self, step: int) -> dict[str, Any]:
        """The state at a step as nested dicts of numpy arrays, without the optimizer's.

        It may come from any number of devices.

        Raises:
          Damaged: it cannot be read, or its digests differ.
        """
        item = self._read_on_host(step, without=("optimizer",))
        self._compare(item, step, all_but=("optimizer",))
        return item

    def _read_on_host(self, step: int, without: Sequence[str] = ()) -> dict[str, Any]:
        """A state as nested dicts of numpy arrays, but for some of its branches."""
        with self._damage(step), orbax_settings.quiet(), ocp.PyTreeCheckpointer() as reader:
            metadata = dict(reader.metadata(self._place(step)).item_metadata.tree)
        item = {name: metadata[name] for name in metadata if name not in without}
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        return self._readfirst_few(item, arguments, step)

    def restore_part(self, abstract: Mapping[str, Any], step: int) -> Any:
        """A part of the state at a step; nothing else is read.

        Args:
          abstract: nested dicts of shapes with shardings, of the leaves to be read and
            where to place them.
          step: a step that there is.

        Raises:
          Damaged: it cannot be read, or its digests differ.
        """
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        part = self._readfirst_few(abstract, arguments, step)
        self._compare(part, step)
        return part

    def _readfirst_few(self, item: PyTree, arguments: PyTree, step: int) -> Any:
        """Some branches of a state, not compared with anything yet."""
        restore = ocp.args.PyTreeRestore(
            item=item, restore_args=arguments, partial_restore=True
        )
        with self._damage(step), orbax_settings.quiet(), ocp.PyTreeCheckpointer() as reader:
            return reader.restore(self._place(step), args=restore)

    def _place(self, step: int) -> epath.Path:
        """The folder of a state's arrays."""
        return self.folder / str(step) / "default"

    def restore(self, abstract: PyTree, step: int) -> Any:
        """The state at a step, placed like the abstract tree of the same structure.

        Raises:
          Damaged: it cannot be read, or its digests differ.
        """
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        state = self._readfirst_few(abstract, arguments, step)
        self._compare(state, step)
        # Restored buffers cannot always be donated; fresh copies can.
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=places)
        return copy(state)

    def _compare(
        self, tree: PyTree, step: int, all_but: Sequence[str] | None = None
    ) -> None:
        """Raises Damaged where arrays are not those that were saved.

        all_but: if not None, nothing else than these branches may be missing.
        """
        saved = self._saved_digests(step)
        with self._damage(step):
            read = digests.of_tree(tree)
        wrong = [name for name, pair in read.items() if tuple(saved.get(name, ())) != pair]
        if all_but is not None:
            expected = [name for name in saved if name.partition("/")[0] not in all_but]
            wrong += [name for name in expected if name not in read]
        if wrong:
            raise Damaged(
                f"checkpoint {step} of {self.folder} is damaged: {first_few(wrong)} "
                "differ from what was saved"
            )

    def _saved_digests(self, step: int) -> Mapping[str, Sequence[int]]:
        """{path: digest} as they were when the state was saved."""
        with self._damage(step), orbax_settings.quiet():
            metadata = self.manager.metadata(step).custom_metadata or {}
            saved = metadata.get(DIGESTS, {})
            number, arrays = saved.get("step"), saved.get("arrays")
        if not isinstance(arrays, Mapping):
            raise Damaged(
                f"checkpoint {step} of {self.folder} has no digests: it is damaged, or an "
                "older version wrote it"
            )
        if number != step:
            raise Damaged(
                f"checkpoint {step} of {self.folder} is that after step {number}: its "
                "folder was renamed"
            )
        return arrays

    @contextlib.contextmanager
    def _damage(self, step: int) -> Iterator[None]:
        """Makes Damaged of whatever Orbax raises where files are not as it wrote them."""
        try:
            yield
        except Exception as error:  # of many kinds, as many as there are kinds of damage
            if jax.process_count() > 1:
                raise  # the others may be able to read it: all end, none goes on alone
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise Damaged(
                f"checkpoint {step} of {self.folder} cannot be read: {reason[:200]}"
            ) from None


_move = hosts.once(files.move_into)
