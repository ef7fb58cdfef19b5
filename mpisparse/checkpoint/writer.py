"""A checkpoint of any number of ranks, written by one process: what a tool makes of another one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from mpisparse.checkpoint.arrays import Array
from mpisparse.checkpoint.claim import Claim
from mpisparse.checkpoint.directory import begin, publish, remove, settle, step_name, write_durably
from mpisparse.checkpoint.disk import Disk, reason
from mpisparse.checkpoint.hdf5 import Encoded, write_encoded, write_tree
from mpisparse.checkpoint.manifest import MANIFEST, STATE, VERSION, FileEntry, Manifest, rank_file, verify_listing
from mpisparse.checkpoint.saved import Saved
from mpisparse.checkpoint.stamp import Stamp, new_save
from mpisparse.checkpoint.tree import Structure, Tree
from mpisparse.errors import CheckpointError


def write_alike(saved: Saved, directory: Path, per_rank: Iterable[Tree], ranks: int | None = None) -> Path:
    """Return the new checkpoint in `directory`: the replicated state of `saved`, with other trees of ranks.

    Args:
        directory: one of checkpoints; made if it is not there.
        per_rank: the trees, in rank order.
        ranks: how many there are, so that they are taken one by one, and one at a time is in memory.

    Raises:
        CheckpointError: the directory has one of this step already, or something could not be written, which leaves
            everything as it was.
        ConfigError: a job is saving there.
    """
    if ranks is None:
        per_rank = list(per_rank)
        ranks = len(per_rank)
    final = directory.absolute() / step_name(saved.step)
    if final.exists():
        raise CheckpointError(f"{final} is there already: name another directory, or remove it first")
    disk, claim = Disk(), Claim(final.parent)
    try:
        temporary = begin(final.parent, saved.step, disk, claim)
        try:
            published = _fill(temporary, saved, per_rank, ranks, disk)
        except BaseException:
            remove(temporary, disk)
            raise
        settle(published, disk)
    except OSError as error:
        raise CheckpointError(f"no checkpoint can be written to {directory}: {reason(error)}") from error
    finally:
        claim.release()
    return published


def _fill(temporary: Path, saved: Saved, per_rank: Iterable[Tree], ranks: int, disk: Disk) -> Path:
    """Write all files, then the manifest, and return the directory under its final name."""
    stamp = Stamp(new_save(), saved.step, ranks)
    _copy(saved, temporary / STATE, stamp, disk)
    files = [FileEntry.of(temporary / STATE)]
    for rank, tree in zip(range(ranks), per_rank, strict=True):
        path = temporary / rank_file(rank)
        write_tree(path, tree, disk, replace(stamp, rank=rank))
        files.append(FileEntry.of(path))
    manifest = Manifest(saved.step, ranks, tuple(files), VERSION, save=stamp.save)
    write_durably(temporary / MANIFEST, manifest.to_bytes(), disk)
    verify_listing(temporary, manifest)
    return publish(temporary, disk)


def _copy(saved: Saved, target: Path, stamp: Stamp, disk: Disk) -> None:
    """Write the replicated state anew, with the stamp of another save, and return when it is on the disk.

    Its values are carried over as they lie in the file, one array at a time in memory.
    """
    parts = saved.replicated_parts()
    structure = next(parts)
    assert isinstance(structure, Structure)
    arrays = (np.empty(0) if entry.dataset is None else next(parts) for entry in structure.arrays)
    write_encoded(target, Encoded(replace(structure, stamp=stamp), cast(Iterable[Array], arrays)), disk)
