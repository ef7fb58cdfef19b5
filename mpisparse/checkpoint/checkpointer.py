"""Checkpointer: saves the state of all ranks together, and restores the newest that is whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpisparse.checkpoint.directory import begin, list_checkpoints, prune, publish, remove, settle, write_durably
from mpisparse.checkpoint.hdf5 import reason, write_tree
from mpisparse.checkpoint.manifest import (
    MANIFEST,
    STATE,
    FileEntry,
    Manifest,
    rank_file,
    read_manifest,
    verify_listing,
)
from mpisparse.checkpoint.saved import Saved, find_checkpoints
from mpisparse.checkpoint.tree import Tree
from mpisparse.comm import Communicator, agreed, from_root, gather_json, require_same, solo
from mpisparse.errors import CheckpointError, ConfigError, alike

#: Makes a rank's tree of a checkpoint of another number of ranks; called with it, the rank, and how many there are.
Reshape = Callable[[Saved, int, int], Tree]


@dataclass(frozen=True, slots=True)
class Restored:
    """A checkpoint as one rank gets it back.

    step: the optimizer steps done when it was saved.
    replicated: the tree that rank 0 saved, on every rank.
    per_rank: the tree that this rank saved, or what `reshape` made of those of another number of ranks.
    path: its directory.
    skipped: the newer checkpoints that were damaged, one line each: its name and what is wrong with it.
    ranks: how many ranks saved it.
    """

    step: int
    replicated: Tree
    per_rank: Tree
    path: Path
    skipped: list[str]
    ranks: int


class Checkpointer:
    """Keeps the newest checkpoints of a run in one directory that all ranks can reach.

    Surprises first:

    - `save` and `restore` are collective. All ranks return, or all raise the same error.
    - Tensors come back on the host, dense and without gradient: `load_state_dict` takes them from there.
    - The newest checkpoint is the one of the highest step. To go back to an earlier one, restore it by its path and
      save into another directory, or remove the later ones.
    - The directory belongs to one job at a time: what another one is writing there would be taken for leftovers.
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

    def __init__(self, directory: str | Path, keep: int = 3, comm: Communicator | None = None) -> None:
        """Take `directory` for the run's checkpoints; it is made when the first one is saved.

        Args:
            directory: rank 0's counts, should the ranks name different ones.
            keep: how many of the newest checkpoints stay, at least 1.
            comm: the ranks that save together; without it this process is alone.

        Raises:
            ConfigError: `keep` is not a positive integer.
        """
        if type(keep) is not int or keep < 1:
            raise ConfigError(f"keep {keep!r} is not a positive integer: give how many checkpoints stay, such as 3")
        self.directory = Path(directory).absolute()
        self.keep = keep
        self._comm = comm or solo()

    def save(self, step: int, replicated: Tree, per_rank: Tree = None) -> Path:
        """Return the directory of the new checkpoint, once it is on the disk. Collective.

        Args:
            step: optimizer steps done, the same on all ranks, not negative.
            replicated: what all ranks hold alike; rank 0's is written, the others may give None.
            per_rank: what this rank alone holds.

        Raises:
            CheckpointError: a rank could not write its file, which leaves everything as it was before; or the
                checkpoint is complete but tidying up after it failed, which the message says.
            RankMismatchError: the ranks are at different steps.
        """
        require_same(self._comm, "the steps to save", [repr(step)])
        if type(step) is not int or step < 0:
            raise alike(CheckpointError(f"step {step!r} is not a step: give the optimizer steps done, 0 or more"))
        temporary = Path(from_root(self._comm, lambda: self._begin(step)))
        with self._undone_on_failure(temporary):
            files = self._write(temporary, replicated, per_rank)
            final = Path(from_root(self._comm, lambda: self._publish(temporary, Manifest(step, len(files) - 1, files))))
        from_root(self._comm, lambda: self._tidy(final))
        return final

    def restore(self, which: str | Path = "auto", *, reshape: Reshape | None = None) -> Restored | None:
        """Return the newest checkpoint that is whole, or None when there has never been one. Collective.

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
        require_same(self._comm, "the checkpoints to restore", [str(which)])
        candidates = [Path(path) for path in from_root(self._comm, lambda: self._listed(which))]
        skipped: list[str] = []
        for path in candidates:
            restored = self._try(path, skipped, reshape)
            if restored is not None:
                return restored
        if not candidates:
            return None
        raise alike(
            CheckpointError(
                f"no checkpoint in {candidates[0].parent} can be used: {'; '.join(skipped)}. "
                "Bring back a copy of one, or start afresh in another directory"
            )
        )

    # The steps of saving ----------------------------------------------------------------------------------------------

    def _begin(self, step: int) -> str:
        with _named(f"no checkpoint can be written to {self.directory}"):
            return str(begin(self.directory, step))

    def _write(self, temporary: Path, replicated: Tree, per_rank: Tree) -> tuple[FileEntry, ...]:
        """Write this rank's files, and return the entries of all, the replicated state first."""
        ours = []
        with agreed(self._comm):
            trees = {STATE: replicated} if self._comm.rank == 0 else {}
            for name, tree in {**trees, rank_file(self._comm.rank): per_rank}.items():
                ours.append(self._write_file(temporary / name, tree))
        everyone = gather_json(self._comm, [[entry.name, entry.bytes, entry.blake2b] for entry in ours])
        return tuple(FileEntry(*entry) for entries in everyone for entry in entries)

    def _write_file(self, path: Path, tree: Tree) -> FileEntry:
        with _named(f"{path.name} cannot be written to {path.parent}"):
            if not path.parent.is_dir():
                raise CheckpointError(
                    f"{path.parent}, which rank 0 made, is not there: all ranks need to see the same directory"
                )
        write_tree(path, tree)
        with _named(f"{path.name} cannot be read back"):
            return FileEntry.of(path)

    def _publish(self, temporary: Path, manifest: Manifest) -> str:
        with _named(f"{temporary} cannot be made a checkpoint"):
            write_durably(temporary / MANIFEST, manifest.to_bytes())
            verify_listing(temporary, manifest)
            return str(publish(temporary))

    def _tidy(self, final: Path) -> None:
        with _named(f"{final.name} is complete and safe, but tidying up after it failed"):
            settle(final)
            prune(final, self.keep)

    @contextmanager
    def _undone_on_failure(self, temporary: Path) -> Iterator[None]:
        """Remove the temporary directory before any rank goes on to raise."""
        try:
            yield
        except CheckpointError as error:
            flaw = None
            if self._comm.rank == 0:
                flaw = _attempt_removal(temporary)
            (flaw, *_) = gather_json(self._comm, flaw)
            if flaw is None:
                raise
            raise alike(CheckpointError(f"{error}{flaw}")) from error

    # The steps of restoring -------------------------------------------------------------------------------------------

    def _listed(self, which: str | Path) -> list[str]:
        with _named(f"checkpoints cannot be looked for in {self.directory if which == 'auto' else which}"):
            return self._candidates(which)

    def _candidates(self, which: str | Path) -> list[str]:
        """Return the directories to try, best first."""
        found = list_checkpoints(self.directory) if which == "auto" else find_checkpoints(which)
        return [str(path) for path in reversed(found)]

    def _try(self, path: Path, skipped: list[str], reshape: Reshape | None) -> Restored | None:
        """Return the checkpoint at `path`, or None when it is damaged, having added what is wrong to `skipped`."""
        try:
            manifest = self._manifest(path)
        except CheckpointError as error:
            skipped.append(f"{path.name}: {error}")
            return None
        # A whole checkpoint of another number of ranks is not passed over: going on to an older one would hide it.
        if reshape is None:
            self._require_size(path, manifest)
        try:
            replicated, per_rank = self._load(Saved(path, manifest), reshape)
        except CheckpointError as error:
            skipped.append(f"{path.name}: {error}")
            return None
        return Restored(manifest.step, replicated, per_rank, path, skipped, manifest.ranks)

    def _manifest(self, path: Path) -> Manifest:
        """Return the manifest as rank 0 reads it, so that all ranks hold their files against the same one."""

        def read() -> str:
            manifest = read_manifest(path)
            verify_listing(path, manifest)
            return manifest.to_bytes().decode()

        return Manifest.from_bytes(from_root(self._comm, read).encode())

    def _require_size(self, path: Path, manifest: Manifest) -> None:
        if manifest.ranks != self._comm.size:
            raise alike(
                CheckpointError(
                    f"{path} was saved with {manifest.ranks} ranks, but {self._comm.size} are running: "
                    f"run with {manifest.ranks} ranks, or allow another number: checkpoint.reshape in a run's "
                    "configuration, restore(reshape=...) in a program"
                )
            )

    def _load(self, saved: Saved, reshape: Reshape | None) -> tuple[Tree, Tree]:
        """Return the replicated tree and this rank's, all that was read verified, on every rank or on none."""
        trees: list[Tree] = []
        rank, size = self._comm.rank, self._comm.size
        with agreed(self._comm):
            trees.append(saved.replicated())
            if reshape is None or saved.ranks == size:
                trees.append(saved.rank(rank))
            else:
                trees.append(reshape(saved, rank, size))
        return trees[0], trees[1]


def _attempt_removal(path: Path) -> str | None:
    try:
        remove(path)
    except OSError as error:
        return f". What was written could not be removed: remove {path} ({reason(error)})"
    return None


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn an error of the system into a CheckpointError that starts with `what`."""
    try:
        yield
    except OSError as error:
        place = f" ({os.fspath(error.filename)})" if isinstance(error.filename, str) else ""
        raise CheckpointError(f"{what}: {reason(error)}{place}") from error
