"""restore: the newest checkpoint that is whole, on all ranks the same one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpisparse.checkpoint.arrays import Array, ArrayEntry
from mpisparse.checkpoint.decode import decode
from mpisparse.checkpoint.directory import list_checkpoints
from mpisparse.checkpoint.disk import named
from mpisparse.checkpoint.manifest import STATE, Manifest, read_manifest, verify_listing
from mpisparse.checkpoint.saved import Saved, find_checkpoints
from mpisparse.checkpoint.tree import Structure, Tree
from mpisparse.comm import Communicator, agreed, from_root, require_same
from mpisparse.errors import CheckpointError, alike
from mpisparse.words import counted

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


def restore(comm: Communicator, directory: Path, which: str | Path, reshape: Reshape | None) -> Restored | None:
    """Return the newest checkpoint that is whole, or None where there has never been one. Collective.

    Arguments and errors are those of `Checkpointer.restore`; `directory` is where "auto" looks.
    """
    require_same(comm, "the checkpoints to restore", [str(which)])
    candidates = [Path(path) for path in from_root(comm, lambda: _candidates(directory, which))]
    skipped: list[str] = []
    for path in candidates:
        restored = _try(comm, path, skipped, reshape)
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


def _candidates(directory: Path, which: str | Path) -> list[str]:
    """Return the directories to try, best first."""
    with named(f"checkpoints cannot be looked for in {directory if which == 'auto' else which}"):
        found = list_checkpoints(directory) if which == "auto" else find_checkpoints(which)
        return [str(path) for path in reversed(found)]


def _try(comm: Communicator, path: Path, skipped: list[str], reshape: Reshape | None) -> Restored | None:
    """Return the checkpoint at `path`, or None when it is damaged, having added what is wrong to `skipped`."""
    try:
        manifest = _manifest(comm, path)
    except CheckpointError as error:
        skipped.append(f"{path.name}: {error}")
        return None
    # A whole checkpoint of another number of ranks is not passed over: going on to an older one would hide it.
    if reshape is None:
        _require_size(comm, path, manifest)
    try:
        replicated, per_rank = _load(comm, Saved(path, manifest), reshape)
    except CheckpointError as error:
        skipped.append(f"{path.name}: {error}")
        return None
    return Restored(manifest.step, replicated, per_rank, path, skipped, manifest.ranks)


def _manifest(comm: Communicator, path: Path) -> Manifest:
    """Return the manifest as rank 0 reads it, so that all ranks hold their files against the same one."""

    def read() -> str:
        manifest = read_manifest(path)
        verify_listing(path, manifest)
        return manifest.to_bytes().decode()

    return Manifest.from_bytes(from_root(comm, read).encode())


def _require_size(comm: Communicator, path: Path, manifest: Manifest) -> None:
    if manifest.ranks != comm.size:
        raise alike(
            CheckpointError(
                f"{path} was saved with {counted(manifest.ranks, 'rank')}, but {comm.size} "
                f"{'is' if comm.size == 1 else 'are'} running: run with {counted(manifest.ranks, 'rank')}, or "
                "allow another number: checkpoint.reshape in a run's configuration, restore(reshape=...) in a program"
            )
        )


def _load(comm: Communicator, saved: Saved, reshape: Reshape | None) -> tuple[Tree, Tree]:
    """Return the replicated tree and this rank's, all that was read verified, on every rank or on none. Collective."""
    own: Tree = None
    with agreed(comm):
        if reshape is None or saved.ranks == comm.size:
            own = saved.rank(comm.rank)
        else:
            own = reshape(saved, comm.rank, comm.size)
    return _from_rank_0(comm, saved), own


def _from_rank_0(comm: Communicator, saved: Saved) -> Tree:
    """Return on every rank the replicated tree, which rank 0 alone reads and verifies. Collective.

    Arrays travel one by one, so that a rank needs the memory of the tree and no more.
    """
    parts = saved.replicated_parts() if comm.rank == 0 else iter(())
    content = b""
    with agreed(comm):
        if comm.rank == 0:
            structure = next(parts)
            assert isinstance(structure, Structure)
            content = structure.to_bytes()
    structure = Structure.from_bytes(comm.broadcast_bytes(content))
    arrays = {entry.dataset: _receive(comm, entry, parts) for entry in structure.arrays if entry.dataset is not None}
    trees: list[Tree] = []
    with agreed(comm), _of_file(STATE):
        trees.append(decode(structure, lambda entry: arrays.pop(str(entry.dataset))))
    return trees[0]


def _receive(comm: Communicator, entry: ArrayEntry, parts: Iterator[Structure | Array]) -> Array:
    """Return on every rank the next array that rank 0 reads, flat; or raise there why it could not. Collective."""
    failure: CheckpointError | None = None
    carrier = entry.carrier.newbyteorder("=")
    array: Array = np.empty(0 if comm.rank == 0 else math.prod(entry.stored_shape), carrier)
    if comm.rank == 0:
        try:
            read = next(parts)
            assert isinstance(read, np.ndarray)
            array = read
        except CheckpointError as error:
            failure = error
    # One byte each, as nearly always all is well.
    failed = np.array([failure is not None], np.uint8)
    comm.broadcast(failed)
    if failed[0]:
        with agreed(comm):
            if failure is not None:
                raise failure
    comm.broadcast(array.view(np.uint8))
    return array


@contextmanager
def _of_file(name: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name} is not a sound checkpoint file: {error}") from error
