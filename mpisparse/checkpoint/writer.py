"""A checkpoint of any number of ranks, written by one process: what a tool makes of another one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mpisparse.checkpoint.claim import Claim
from mpisparse.checkpoint.directory import begin, publish, remove, settle, step_name, write_durably
from mpisparse.checkpoint.disk import Disk, reason
from mpisparse.checkpoint.hdf5 import write_tree
from mpisparse.checkpoint.manifest import MANIFEST, STATE, FileEntry, Manifest, rank_file, verify_file, verify_listing
from mpisparse.checkpoint.saved import Saved
from mpisparse.checkpoint.tree import Tree
from mpisparse.errors import CheckpointError

#: Bytes that are copied at a time.
_PIECE = 2**24


def write_alike(saved: Saved, directory: Path, per_rank: Iterable[Tree]) -> Path:
    """Return the new checkpoint in `directory`: the replicated state of `saved`, with other trees of ranks.

    Args:
        directory: one of checkpoints; made if it is not there.
        per_rank: the trees, in rank order; taken one by one, so that one at a time is in memory.

    Raises:
        CheckpointError: the directory has one of this step already, or something could not be written, which leaves
            everything as it was.
        ConfigError: a job is saving there.
    """
    final = directory.absolute() / step_name(saved.step)
    if final.exists():
        raise CheckpointError(f"{final} is there already: name another directory, or remove it first")
    disk, claim = Disk(), Claim(final.parent)
    try:
        temporary = begin(final.parent, saved.step, disk, claim)
        try:
            published = _fill(temporary, saved, per_rank, disk)
        except BaseException:
            remove(temporary, disk)
            raise
        settle(published, disk)
    except OSError as error:
        raise CheckpointError(f"no checkpoint can be written to {directory}: {reason(error)}") from error
    finally:
        claim.release()
    return published


def _fill(temporary: Path, saved: Saved, per_rank: Iterable[Tree], disk: Disk) -> Path:
    """Write all files, then the manifest, and return the directory under its final name."""
    _copy(saved.path / STATE, temporary / STATE, disk)
    verify_file(temporary, saved.manifest, STATE)
    files = [FileEntry.of(temporary / STATE)]
    for rank, tree in enumerate(per_rank):
        path = temporary / rank_file(rank)
        write_tree(path, tree, disk)
        files.append(FileEntry.of(path))
    manifest = Manifest(saved.step, len(files) - 1, tuple(files))
    write_durably(temporary / MANIFEST, manifest.to_bytes(), disk)
    verify_listing(temporary, manifest)
    return publish(temporary, disk)


def _copy(source: Path, target: Path, disk: Disk) -> None:
    """Copy a file, and return when the copy is on the disk."""
    copy = disk.create(target)
    try:
        with source.open("rb") as file:
            while piece := file.read(_PIECE):
                disk.write_all(copy, memoryview(piece), file.tell() - len(piece))
        disk.sync(copy)
    finally:
        os.close(copy)
