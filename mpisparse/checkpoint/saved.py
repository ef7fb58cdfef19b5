"""Saved: a checkpoint on the disk, whose files are verified one by one as they are read, by any number of ranks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpisparse.checkpoint.arrays import Array
from mpisparse.checkpoint.decode import decode
from mpisparse.checkpoint.directory import list_checkpoints
from mpisparse.checkpoint.disk import named
from mpisparse.checkpoint.hdf5 import Content, opened
from mpisparse.checkpoint.manifest import (
    MANIFEST,
    STATE,
    STEP_NAME,
    Manifest,
    rank_file,
    read_manifest,
    verify_file,
    verify_listing,
)
from mpisparse.checkpoint.stamp import require_stamp
from mpisparse.checkpoint.tree import Structure, Tree
from mpisparse.errors import CheckpointError
from mpisparse.files import open_regular
from mpisparse.words import counted


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint of `ranks` ranks at `step`, for whoever wants more of it than one rank's share.

    Nothing is kept: each call verifies its file's digest, then reads it, so that going through the ranks one by one
    takes the memory of one.
    """

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Return the optimizer steps done when it was saved."""
        return self.manifest.step

    @property
    def ranks(self) -> int:
        """Return how many ranks saved it."""
        return self.manifest.ranks

    def replicated(self) -> Tree:
        """Return what all ranks held alike. CheckpointError if the file is damaged."""
        return self._read(STATE)

    def rank(self, rank: int) -> Tree:
        """Return what rank `rank` alone held.

        Raises:
            CheckpointError: the file is damaged, or there was no such rank.
        """
        if not 0 <= rank < self.ranks:
            raise CheckpointError(
                f"{self.path} has no rank {rank}: it was saved with {counted(self.ranks, 'rank')}, from 0 on"
            )
        return self._read(rank_file(rank))

    def replicated_parts(self) -> Iterator[Structure | Array]:
        """Yield the structure of what all ranks held alike, then its arrays, flat, one at a time in memory.

        Raises:
            CheckpointError: the file is damaged.
        """
        with verified(self.path, self.manifest, STATE) as content:
            yield content.structure
            for entry in content.structure.arrays:
                if entry.dataset is not None:
                    yield content.load(entry)

    def _read(self, name: str) -> Tree:
        return read_verified(self.path, self.manifest, name)


def read_verified(path: Path, manifest: Manifest, name: str) -> Tree:
    """Return the tree in the file `name` of the checkpoint in directory `path`, whose digest holds.

    Raises:
        CheckpointError: the file is damaged.
    """
    with verified(path, manifest, name) as content:
        return decode(content.structure, content.load)


@contextmanager
def verified(path: Path, manifest: Manifest, name: str) -> Iterator[Content]:
    """Lend the content of the file `name` of the checkpoint in directory `path`, which is what its manifest says.

    Raises:
        CheckpointError: the file is damaged, or of another save, step, number of ranks or rank.
    """
    verify_file(path, manifest, name)
    place = manifest.place(name)
    source: Path | io.BytesIO = path / name
    if place.file != name:
        with named(f"{place.file} cannot be read"), open_regular(path / place.file) as file:
            file.seek(place.start)
            source = io.BytesIO(file.read(place.stop - place.start))
    with opened(name, source) as content:
        require_stamp(content.structure.stamp, manifest.stamp(name))
        yield content


def verify(path: Path | str) -> Manifest:
    """Return the manifest of the checkpoint in directory `path`, having read every file of it.

    Raises:
        CheckpointError: a file is missing, damaged, one too many or of another save; the message names it.
    """
    path = Path(path)
    manifest = read_manifest(path)
    verify_listing(path, manifest)
    for entry in manifest.files:
        with verified(path, manifest, entry.name):
            pass
    return manifest


def open_checkpoint(which: str | Path) -> Saved:
    """Return the checkpoint at `which`; of a directory that holds several, or a run's, the newest.

    One process is enough. Its manifest, names and lengths are verified, its digests when a file is read.

    Raises:
        CheckpointError: there is none, or this one is damaged.
    """
    path = find_checkpoints(which)[-1]
    try:
        manifest = read_manifest(path)
        verify_listing(path, manifest)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    return Saved(path, manifest)


def find_checkpoints(which: str | Path) -> list[Path]:
    """Return the checkpoints that `which` names, steps rising: itself, or those in it, or in its `checkpoints`.

    Damaged ones are among them.

    Raises:
        CheckpointError: there are none.
    """
    path = Path(which).absolute()
    with named(f"checkpoints cannot be looked for in {path}"):
        if (path / MANIFEST).exists() or (STEP_NAME.fullmatch(path.name) and path.is_dir()):
            return [path]
        found = list_checkpoints(path) or list_checkpoints(path / "checkpoints")
    if not found:
        raise CheckpointError(
            f"{path} is no checkpoint and holds none: give the directory of one, such as .../step-00001000"
        )
    return found
