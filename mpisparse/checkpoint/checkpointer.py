"""Checkpointer: saves the state of all ranks together, and restores the newest that is whole."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType

from mpisparse.arguments import require_callable, require_path, short
from mpisparse.checkpoint.claim import Claim
from mpisparse.checkpoint.directory import begin
from mpisparse.checkpoint.disk import Disk, named
from mpisparse.checkpoint.faulty import disk_of
from mpisparse.checkpoint.hdf5 import Encoded, encode_file
from mpisparse.checkpoint.manifest import STATE, rank_file
from mpisparse.checkpoint.restore import Reshape, Restored, restore
from mpisparse.checkpoint.save import Outcome, Save, attempt_removal
from mpisparse.checkpoint.snapshot import Buffers
from mpisparse.checkpoint.stamp import Stamp, new_save
from mpisparse.checkpoint.tree import Tree
from mpisparse.comm import (
    Communicator,
    agreed,
    from_root,
    gather_json,
    require_communicator,
    require_same,
    solo,
)
from mpisparse.errors import CheckpointError, ConfigError, MpiSparseError, alike


class Checkpointer:
    """Keeps the newest checkpoints of a run in one directory that all ranks can reach.

    Surprises first:

    - All methods but `poll` and `abandon` are collective. All ranks return, or all raise the same error.
    - `save` returns when the checkpoint is on the disk. `start` copies the state, which takes as much memory again, and
      returns; a thread writes it while training goes on. Call `poll` after each step, and `finish` at the end.
    - Tensors come back on the host, dense and without gradient: `load_state_dict` takes them from there.
    - The newest checkpoint is the one of the highest step. To go back to an earlier one, restore it by its path and
      save into another directory, or remove the later ones.
    - The directory belongs to one job at a time, as what another one is writing there would be taken for leftovers:
      others are refused from the first save until the checkpointer, or the process, is gone.
    - A crash at any moment leaves the checkpoints before it untouched. Saving a step that is there already keeps the
      old one until the new one is complete.

    Example:
        >>> import tempfile, torch
        >>> folder = tempfile.TemporaryDirectory()
        >>> checkpointer = Checkpointer(folder.name)
        >>> checkpointer.save(10, {"weight": torch.ones(2)}, {"seed": 7}).name
        'step-00000010'
        >>> checkpointer.restore().per_rank
        {'seed': 7}
        >>> folder.cleanup()
    """

    def __init__(
        self,
        directory: str | Path,
        keep: int = 3,
        comm: Communicator | None = None,
        disk: Disk | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Take `directory` for the run's checkpoints; it is made when the first one is saved.

        Args:
            directory: rank 0's counts, should the ranks name different ones.
            keep: how many of the newest checkpoints stay, at least 1.
            comm: the ranks that save together; without it this process is alone.
            disk: what this rank's files are written with; one that works, unless the environment asks for faults.
            shared: one file for what all ranks alone hold, instead of one each: through parallel HDF5 where the
                installed h5py has it. Ranks come together for that, so training waits.

        Raises:
            ConfigError: `keep` is not a positive integer.
        """
        for value in (directory, keep):
            if isinstance(value, Communicator):
                raise ConfigError("a communicator came in another's place: give Checkpointer(directory, comm=comm)")
        require_path("directory", directory, "a path, such as Checkpointer('checkpoints', keep=3)")
        require_communicator(comm)
        if type(keep) is not int or keep < 1:
            raise ConfigError(
                f"keep {short(keep)} is not a positive integer: give how many checkpoints stay, such as 3"
            )
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.shared = shared
        self._comm = comm or solo()
        self._disk = disk or disk_of(self._comm.rank)
        self._aside: Communicator | None = None
        self._buffers = Buffers()
        self._going: Save | Outcome | None = None
        self._given_up: list[Save] = []
        self._claim = Claim(self.directory)
        weakref.finalize(self, self._claim.release)

    def save(self, step: int, replicated: Tree, per_rank: Tree = None) -> Path:
        """Return the directory of the new checkpoint, once it is on the disk. Collective.

        An earlier save that is still going is finished first. What came of it is not told: `finish` would have.

        Args:
            step: optimizer steps done, the same on all ranks, not negative.
            replicated: what all ranks hold alike; rank 0's is written, the others may give None.
            per_rank: what this rank alone holds.

        Raises:
            CheckpointError: a rank could not write its file, which leaves everything as it was before; or the
                checkpoint is complete but tidying up after it failed, which the message says.
            RankMismatchError: the ranks are at different steps.
        """
        self.start(step, replicated, per_rank, behind=False)
        outcome = self.finish()
        assert outcome is not None
        return outcome.expect()

    def start(self, step: int, replicated: Tree, per_rank: Tree = None, *, behind: bool = True) -> Outcome | None:
        """Take the state as it is now, and begin to save it. Collective.

        Returns what came of an earlier save that nobody asked `finish` about, having waited for its end; else None.
        That the disk fails is told by `poll` or `finish`, and not raised.

        Args:
            step, replicated, per_rank: as `save` takes them. They may change as soon as this returns.
            behind: copy the state, and let a thread write it; else, or to a shared file, write all of it before this
                returns.

        Raises:
            CheckpointError: the state holds something that a file cannot.
            ConfigError: another process is saving into the directory.
            RankMismatchError: the ranks are at different steps.
        """
        begun = perf_counter()
        behind = behind and not self.shared
        earlier = self.finish()
        if earlier is not None:
            begun += earlier.waited
        require_same(self._comm, "the steps to save", [short(step)])
        if type(step) is not int or step < 0:
            raise alike(
                CheckpointError(
                    f"step {short(step)} is not a step: give the optimizer steps done, 0 or more, before the state"
                )
            )
        self._disk.begin()
        try:
            place, number = from_root(self._comm, lambda: (self._begin(step), new_save()))
        except CheckpointError as error:
            self._going = Outcome(step, None, str(error), pause=perf_counter() - begun)
            return earlier
        temporary = Path(place)
        with self._undone_on_failure(temporary):
            files = self._encode(replicated, per_rank, Stamp(number, step, self._comm.size))
        save = Save(
            self._comm,
            self._beside() if behind else self._comm,
            self._disk,
            step=step,
            number=number,
            temporary=temporary,
            files=self._copied(files) if behind else files,
            keep=self.keep,
            behind=behind,
            shared=self.shared,
        )
        save.pause = perf_counter() - begun
        self._going = save
        return earlier

    def poll(self) -> Outcome | None:
        """Move a save on without waiting for anything, after a step. Not collective; costs a few microseconds.

        Returns what came of it, on rank 0 once that is known there, so that it can be told; elsewhere nothing, ever.
        All ranks learn it from `finish`.
        """
        if isinstance(self._going, Save):
            return self._going.poll()
        return self._going if self._comm.rank == 0 else None

    def finish(self) -> Outcome | None:
        """Wait for a save to end, and return what came of it; None when there is none to wait for. Collective.

        A disk that failed is not raised: `Outcome.expect` does.
        """
        going, self._going = self._going, None
        return going.finish() if isinstance(going, Save) else going

    def abandon(self) -> None:
        """End a save that is going, with nothing saved, as the program is ending by an error. Not collective."""
        going, self._going = self._going, None
        if isinstance(going, Save):
            going.abandon()
            # Other ranks may never answer what was started there, and until they do its memory is not free.
            self._given_up.append(going)
            self._aside = None

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish a save that is going, and raise if it failed; abandon it when this rank alone has an error.

        The directory is given back.
        """
        try:
            if error is None:
                outcome = self.finish()
                if outcome is not None:
                    outcome.expect()
            elif isinstance(error, MpiSparseError) and error.on_all_ranks:
                self.finish()
            else:
                self.abandon()
        finally:
            self._claim.release()

    def restore(self, which: str | Path = "auto", *, reshape: Reshape | None = None) -> Restored | None:
        """Return the newest checkpoint that is whole, or None when there has never been one. Collective.

        A save that is still going is finished first; that it failed is told among the checkpoints skipped.

        Args:
            which: "auto" for the newest of this checkpointer's directory; else the directory of one checkpoint, or one
                that holds checkpoints, or a run's, that holds them in `checkpoints`.
            reshape: makes this rank's tree of a checkpoint of another number of ranks, of which it may read whatever it
                needs, `saved.rank(0)` to `saved.rank(saved.ranks - 1)`. It must not speak to other ranks. Without it
                another number is refused.

        Raises:
            CheckpointError: none of those there are is whole, it was saved by another number of ranks, or `which` is a
                path that holds none.
        """
        require_path("which", which, "'auto', or the path of a checkpoint, and load what comes back")
        require_callable("reshape", reshape, "a function of the saved checkpoint")
        earlier = self.finish()
        restored = restore(self._comm, self.directory, which, reshape)
        if restored is not None and earlier is not None and earlier.failure is not None:
            restored.skipped.insert(0, earlier.failure)
        return restored

    # The steps of saving that training waits for ----------------------------------------------------------------------

    def _begin(self, step: int) -> str:
        with named(f"no checkpoint can be written to {self.directory}"):
            return str(begin(self.directory, step, self._disk, self._claim))

    def _encode(self, replicated: Tree, per_rank: Tree, stamp: Stamp) -> dict[str, Encoded]:
        """Return what this rank's files are to hold, the replicated state first, as views where that is possible."""
        rank = self._comm.rank
        trees = {STATE: (replicated, stamp)} if rank == 0 else {}
        trees[rank_file(rank)] = (per_rank, replace(stamp, rank=rank))
        files = {}
        with agreed(self._comm):
            for name, (tree, own) in trees.items():
                files[name] = encode_file(name, tree, own)
        return files

    def _copied(self, files: dict[str, Encoded]) -> dict[str, Encoded]:
        copies = iter(self._buffers.copy([array for encoded in files.values() for array in encoded.arrays]))
        return {
            name: Encoded(encoded.structure, [next(copies) for _ in encoded.structure.arrays])
            for name, encoded in files.items()
        }

    def _beside(self) -> Communicator:
        """Return the communicator of the ranks' reports, which meet no other message of theirs."""
        if self._aside is None:
            self._aside = self._comm.duplicate("checkpoints")
        return self._aside

    @contextmanager
    def _undone_on_failure(self, temporary: Path) -> Iterator[None]:
        """Remove the temporary directory before any rank goes on to raise."""
        try:
            yield
        except CheckpointError as error:
            flaw = attempt_removal(temporary, self._disk) if self._comm.rank == 0 else ""
            (flaw, *_) = gather_json(self._comm, flaw)
            if not flaw:
                raise
            raise alike(CheckpointError(f"{error}{flaw}")) from error
