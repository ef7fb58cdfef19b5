"""The shared file: the files of all ranks, byte for byte, one after another in a single HDF5 dataset.

Its layout is rank 0's work alone, and is done, with room on the disk for all of it, before the others write. From then
on nothing but values is written, by each rank its own: a rank whose disk fails cannot leave the others waiting for it
inside HDF5, as it can where they write metadata together, or values in a collective transfer.
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np

from mpisparse.checkpoint.digest import DIGESTS
from mpisparse.checkpoint.disk import Disk, named, reason
from mpisparse.checkpoint.manifest import VERSION, FileEntry, Frame
from mpisparse.checkpoint.sink import Sink
from mpisparse.comm import Communicator, agreed
from mpisparse.errors import CheckpointError

#: The name of the dataset.
DATASET = "ranks"


def write_shared(
    comm: Communicator, path: Path, name: str, image: memoryview, disk: Disk
) -> tuple[FileEntry, Frame | None]:
    """Write the shared file, and return this rank's entry, and on rank 0 the file's frame, once both are on the disk.

    Collective. Where h5py was built with MPI for it, ranks open the file together and write through parallel HDF5;
    elsewhere each writes its own part of the file by itself. The bytes are the same.

    Args:
        path: where the file is to be, seen by all ranks.
        name: of this rank's file.
        image: the bytes of it.

    Raises:
        CheckpointError: on all ranks the same, if the file could not be written by one of them.
    """
    kind = DIGESTS[VERSION]
    lengths = comm.allgather([len(image)])[:, 0]
    total = int(lengths.sum())
    first = 0
    with agreed(comm), named(f"{path.name} cannot be written to {path.parent}"):
        if comm.rank == 0:
            first = _lay_out(path, total, disk)
    first = int(comm.allgather([first])[0, 0])
    start = first + int(lengths[: comm.rank].sum())
    with agreed(comm):
        if not path.is_file():
            raise CheckpointError(f"{path}, which rank 0 made, is not there: all ranks need to see the same directory")
    with agreed(comm), named(f"{path.name} cannot be written to {path.parent}"):
        together = comm.open_hdf5(path)
        if together is not None:
            _write_together(together, path, start - first, image, disk)
        _write_durably(path, start, None if together is not None else image, disk)
    entry = FileEntry(name, len(image), kind.of_bytes(image))
    frame = None
    with agreed(comm), named(f"{path.name} cannot be read back"):
        if kind.of_spans(path, [(start, start + len(image))]) != (entry.bytes, entry.digest):
            raise CheckpointError(
                f"{path.name} does not hold what was written to it: {entry.bytes} bytes from byte {start} on differ. "
                "The file system does not keep what ranks write to one file: set checkpoint.shared to false"
            )
        if comm.rank == 0:
            frame = Frame.of(path, first, total, kind)
    return entry, frame


def _lay_out(path: Path, total: int, disk: Disk) -> int:
    """Make the file with room for `total` bytes of values, and return where in it they are to begin."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    with Sink(path, disk) as sink:
        with h5py.File(sink, "w") as file:
            space = h5py.h5s.create_simple((total,))
            dataset = h5py.h5d.create(file.id, DATASET.encode(), h5py.h5t.STD_U8LE, space, plan)
            first = int(dataset.get_offset())
            del dataset
        sink.reserve(first + total)
        sink.sync()
    return first


def _write_together(file: h5py.File, path: Path, start: int, image: memoryview, disk: Disk) -> None:
    """Write `image` to the values of an open file from `start` on, and close the file with all ranks.

    Not by a collective transfer: HDF5 sets the view of the file before and after one, for which all ranks have to come,
    and a rank whose write failed does not (seen with HDF5 1.10.8). A part is one piece, so there is nothing to gather.
    """
    try:
        with file:
            disk.write_together(path)
            file[DATASET][start : start + len(image)] = np.frombuffer(image, np.uint8)
    except RuntimeError as error:  # So h5py says that a file could not be closed.
        raise CheckpointError(f"{path.name} cannot be written to {path.parent}: {reason(error)}") from error


def _write_durably(path: Path, start: int, image: memoryview | None, disk: Disk) -> None:
    """Write `image`, if there is one, to a file from byte `start` on, and return when the file is on the disk."""
    file = disk.open(path)
    try:
        if image is not None:
            disk.write_all(file, image, start)
        disk.sync(file)
    finally:
        os.close(file)
