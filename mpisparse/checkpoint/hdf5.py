"""A state tree in one HDF5 file: the structure as JSON in one dataset, every array in a dataset of its own."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpisparse.checkpoint.arrays import Array, ArrayEntry
from mpisparse.checkpoint.audit import ARRAYS, STRUCTURE, Declared, audit
from mpisparse.checkpoint.decode import Load, decode
from mpisparse.checkpoint.disk import Disk, reason
from mpisparse.checkpoint.encode import encode
from mpisparse.checkpoint.sink import Sink
from mpisparse.checkpoint.stamp import Stamp
from mpisparse.checkpoint.tree import Structure, Tree
from mpisparse.errors import CheckpointError
from mpisparse.files import open_regular

CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tree as a file will hold it: its structure, and its arrays flat in their carriers, one an entry."""

    structure: Structure
    arrays: Iterable[Array]


@dataclass(frozen=True, slots=True)
class Content:
    """An open file: its structure, which fits what the file declares, and what brings the array of an entry."""

    structure: Structure
    load: Load


def encode_file(name: str, tree: Tree, stamp: Stamp | None = None) -> Encoded:
    """Return what the file `name` is to hold of `tree`, whose arrays are views of its own where they can be.

    Args:
        stamp: of the save that the file belongs to, if it is one of a checkpoint.

    Raises:
        CheckpointError: the tree holds something that a file cannot.
    """
    try:
        structure, arrays = encode(tree)
        return Encoded(replace(structure, stamp=stamp), arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{name} cannot be written: {error}") from error


def write_tree(path: Path, tree: Tree, disk: Disk | None = None, stamp: Stamp | None = None) -> None:
    """Write `tree` to a new file, and return when it is on the disk. Equal trees and stamps give equal bytes.

    Raises:
        CheckpointError: the tree holds something that a file cannot, or the file exists or cannot be written, in which
            case what there is of it stays behind.
    """
    write_encoded(path, encode_file(path.name, tree, stamp), disk or Disk())


def write_encoded(path: Path, encoded: Encoded, disk: Disk) -> None:
    """Write an encoded tree to a new file, and return when it is on the disk.

    h5py lets other threads run meanwhile: it holds Python's lock for no longer than a mebibyte takes, however large the
    arrays are.

    Raises:
        CheckpointError: the file exists or cannot be written, in which case what there is of it stays behind.
    """
    try:
        with Sink(path, disk) as sink:
            # On a full disk there is no use in going on.
            _write(sink, encoded, sink.check)
            sink.sync()
    except (OSError, RuntimeError, CheckpointError) as error:
        raise CheckpointError(f"{path.name} cannot be written to {path.parent}: {reason(error)}") from error


def read_tree(path: Path) -> Tree:
    """Return the tree in the file at `path`, its tensors on the host.

    The checksums of HDF5 cover the values but not where they lie: only a file whose digest was verified is sure to be
    what was saved.

    Raises:
        CheckpointError: the file is damaged, or holds something that no checkpoint does.
    """
    with opened(path.name, path) as content:
        return decode(content.structure, content.load)


def image_of(encoded: Encoded) -> memoryview:
    """Return the bytes of the file that `write_encoded` would write."""
    memory = io.BytesIO()
    _write(memory, encoded, lambda: None)
    return memory.getbuffer()


def read_image(name: str, image: bytes) -> Tree:
    """Return the tree in the bytes of a file called `name`, as `read_tree` does of one on the disk."""
    with opened(name, io.BytesIO(image)) as content:
        return decode(content.structure, content.load)


@contextmanager
def opened(name: str, source: Path | io.BytesIO) -> Iterator[Content]:
    """Lend the content of a file called `name`, checked before any array is read.

    Raises:
        CheckpointError: the file is damaged, or holds something that no checkpoint does; so does what is raised in the
            block, by `load` or by whatever finds fault with the content.
    """
    with _opened(name, source) as file:
        declared = audit(file, os.path.getsize(source) if isinstance(source, Path) else source.getbuffer().nbytes)
        structure = Structure.from_bytes(_load(file[STRUCTURE], declared.pop(STRUCTURE)).tobytes())
        _compare(structure.arrays, declared)
        group = file[ARRAYS]
        yield Content(structure, lambda entry: _load(group[entry.dataset], declared[str(entry.dataset)]).reshape(-1))


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return chunks of about a mebibyte that lie together in memory, of even length so that little is padding."""
    room = max(1, CHUNK_BYTES // itemsize)
    chunk = []
    for length in reversed(shape):
        pieces = -(-length // min(length, room))
        step = -(-length // pieces)
        chunk.append(step)
        room = room // step if step == length else 1
    return tuple(reversed(chunk))


def _write(target: Sink | io.BytesIO, encoded: Encoded, check: Callable[[], None]) -> None:
    """Write a file, calling `check` after each dataset."""
    with h5py.File(target, "w") as file:
        _write_values(file, STRUCTURE, np.frombuffer(encoded.structure.to_bytes(), np.uint8))
        check()
        group = file.create_group(ARRAYS)
        for entry, flat in zip(encoded.structure.arrays, encoded.arrays, strict=True):
            if entry.dataset is not None:
                _write_values(group, entry.dataset, flat.reshape(entry.stored_shape))
                check()


def _write_values(group: h5py.Group, name: str, values: Array) -> None:
    group.create_dataset(
        name,
        data=values,
        dtype=values.dtype.newbyteorder("<"),
        chunks=chunk_shape(values.shape, values.itemsize),
        fletcher32=True,
        track_times=False,
    )


@contextmanager
def _opened(name: str, source: Path | io.BytesIO) -> Iterator[h5py.File]:
    """Open a file called `name`; every way in which h5py tells of damage becomes a CheckpointError that names it."""
    try:
        if isinstance(source, Path):  # HDF5 would wait for a pipe's writer.
            open_regular(source).close()
        with h5py.File(source, "r", locking=False) as file:
            yield file
    except CheckpointError as error:
        raise CheckpointError(f"{name} is not a sound checkpoint file: {error}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{name} cannot be read: {reason(error)}") from error


def _compare(entries: tuple[ArrayEntry, ...], declared: dict[str, Declared]) -> None:
    named = {entry.dataset: entry for entry in entries if entry.dataset is not None}
    if len(named) != sum(entry.dataset is not None for entry in entries):
        raise CheckpointError("the structure is damaged: two arrays share a dataset")
    if odd := set(named) ^ set(declared):
        where = "the structure" if min(odd) in named else "the file"
        raise CheckpointError(f"the array {min(odd)} is only in {where}")
    for name, entry in named.items():
        found = declared[name]
        if (found.dtype, found.shape) != (entry.carrier, entry.stored_shape):
            raise CheckpointError(
                f"the array {name} is {found.dtype} of shape {found.shape}, "
                f"but the structure says {entry.carrier} of shape {entry.stored_shape}"
            )


def _load(dataset: h5py.Dataset, declared: Declared) -> Array:
    values: np.ndarray[Any, Any] = np.empty(declared.shape, declared.dtype.newbyteorder("="))
    dataset.read_direct(values)
    return values
