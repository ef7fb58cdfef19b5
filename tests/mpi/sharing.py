"""Saves to one file of all ranks, over MPI, as they go well and as they fail on one rank.

mpirun -n 3 python -m tests.mpi.sharing DIRECTORY

Prints on rank 0 a JSON object: whether h5py has MPI, and what was said of each save that failed.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import torch

import mpisparse as ms
from mpisparse.checkpoint import Checkpointer, Disk, FaultyDisk, verify
from mpisparse.comm import Communicator, gather_json
from mpisparse.faults import DiskFault

#: A save that hangs ends the job with the stacks of all ranks.
_LIMIT = 60


def own(rank: int, step: int) -> dict[str, Any]:
    """Return the state of a rank, whose length depends on it."""
    return {"residual": torch.full((200_000 + 1000 * rank,), step + rank / 8), "rank": rank}


def save(comm: Communicator, directory: Path, step: int, disk: Disk | None = None) -> str | None:
    """Save, and return what went wrong, after asserting that all ranks were told the same."""
    checkpointer = Checkpointer(directory, comm=comm, disk=disk, shared=True)
    checkpointer.start(step, {"step": step}, own(comm.rank, step))
    outcome = checkpointer.finish()
    assert outcome is not None
    assert len(set(gather_json(comm, outcome.failure))) == 1
    return outcome.failure


def restore(comm: Communicator, directory: Path, step: int) -> None:
    """Assert that the newest checkpoint is that of `step`, and whole."""
    restored = Checkpointer(directory, comm=comm).restore()
    assert restored is not None
    assert (restored.step, restored.skipped) == (step, [])
    assert torch.equal(restored.per_rank["residual"], own(comm.rank, step)["residual"])
    assert verify(restored.path).ranks == comm.size


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """Let this process write no file beyond so many bytes: an error of the system in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def main(directory: Path) -> None:
    """Make the saves."""
    comm = ms.init(banner=False)
    faulthandler.dump_traceback_later(_LIMIT, exit=True)
    said: dict[str, str | None] = {"well": save(comm, directory / "together", 1)}
    restore(comm, directory / "together", 1)

    apart = comm.duplicate()
    apart.open_hdf5 = lambda path: None  # type: ignore[method-assign]
    said["each its part"] = save(apart, directory / "apart", 1)

    last, operation = comm.size - 1, 0
    while True:
        operation += 1
        faults = [DiskFault(last, operation, "EIO")] if comm.rank == last else []
        disk = FaultyDisk(faults)
        failure = save(comm, directory / "together", 1 + operation, disk)
        if failure is None:
            break
        said[f"operation {operation}"] = failure
        restore(comm, directory / "together", 1)
    restore(comm, directory / "together", 1 + operation)

    # The part of rank 0 lies below the limit, those of the others do not.
    for name, limited in (("limit of the last rank", last), ("limit of rank 0", 0)):
        with largest_file(1_000_000 if comm.rank == limited else resource.RLIM_INFINITY):
            said[name] = save(comm, directory / "together", 100)
        restore(comm, directory / "together", 1 + operation)
    faulthandler.cancel_dump_traceback_later()
    if comm.rank == 0:
        print(json.dumps({"parallel": bool(h5py.get_config().mpi), "said": said}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
