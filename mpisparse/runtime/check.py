"""The examination behind `mpisparse check`: does what a run needs work here?"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import torch

from mpisparse.comm import Communicator, gather_json
from mpisparse.comm.launcher import promised_size
from mpisparse.memory import ErrorFeedback, MomentumCorrection, NoMemory
from mpisparse.rehearsal import rehearse_together
from mpisparse.runtime.startup import Surroundings
from mpisparse.sparsifiers import GSpar, TopK
from mpisparse.wire import Wire
from mpisparse.words import counted

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `ok` is False when a run would fail or lose data; `hint` then says what to do."""

    what: str
    ok: bool
    found: str
    hint: str = ""


def examine(comm: Communicator, surroundings: Surroundings, directory: Path) -> list[Finding]:
    """Return what was found, in order, the same on all ranks. Collective; writes and removes a small file.

    Args:
        directory: where runs are to write.
    """
    return [
        Finding("MPI", True, f"{surroundings.library}, {surroundings.standard}"),
        _launcher(comm),
        Finding("ranks", True, f"{comm.size} on {surroundings.nodes} node(s)", _alone(comm)),
        _threads(surroundings),
        _on_all(comm, "uneven exchange", lambda: _exchange(comm)),
        Finding("torch", True, f"{torch.__version__}, {counted(torch.get_num_threads(), 'thread')}"),
        Finding("kernels", True, _kernels(comm)),
        _on_all(comm, "HDF5", lambda: _hdf5(directory)),
        _on_all(comm, "file system", lambda: _file_system(directory)),
    ]


def _alone(comm: Communicator) -> str:
    return "" if comm.size > 1 else "start with `mpirun -n 4 mpisparse check` to examine an exchange between ranks"


def _launcher(comm: Communicator) -> Finding:
    promise = promised_size()
    if promise is None:
        return Finding("launcher", True, "none: this process was started alone")
    fits = promise[0] == comm.size
    return Finding("launcher", fits, promise[1], "" if fits else f"but MPI knows of {counted(comm.size, 'rank')}")


def _threads(surroundings: Surroundings) -> Finding:
    threads, hint = surroundings.threads, ""
    for machine in surroundings.machines:
        groups = [(machine.ranks, float(machine.cores)), *((each.ranks, each.cores) for each in machine.quotas)]
        for ranks, cores in groups:
            if threads > 1 and threads * ranks > cores:
                hint = f"more threads than the {counted(cores, 'core')} of {ranks} of the ranks: unset OMP_NUM_THREADS"
    found = f"{threads} per rank ({surroundings.threads_reason}), level {surroundings.thread_level}"
    return Finding("threads", not hint, found, hint)


def _on_all(comm: Communicator, what: str, probe: Callable[[], str]) -> Finding:
    """Return one finding for all ranks: rank 0's if all are well, else the first that is not."""
    try:
        text, ok = probe(), True
    except (OSError, ValueError, RuntimeError) as error:
        text, ok = f"{type(error).__name__}: {error}", False
    reports = gather_json(comm, [ok, text])
    for rank, (well, report) in enumerate(reports):
        if not well:
            return Finding(what, False, f"rank {rank}: {report}", "a run would fail here")
    return Finding(what, True, reports[0][1])


def _exchange(comm: Communicator) -> str:
    """Send messages of different lengths, among them an empty one, and look at every byte that came."""
    counts = np.arange(comm.size, dtype=np.int64) * 1000
    payload = np.full(int(counts[comm.rank]), comm.rank % 251, np.uint8)
    received = comm.allgatherv(payload, counts)
    if not np.array_equal(received, np.repeat(np.arange(comm.size) % 251, counts)):
        raise ValueError("messages of different lengths came back wrong: do not use this MPI")
    return f"{int(counts.sum())} bytes in messages of different lengths came back right"


def _kernels(comm: Communicator) -> str:
    """Have every kernel compiled, so that no run on this machine has to wait for that."""
    exchanges = (
        (TopK(0.01), ErrorFeedback()),
        (TopK(0.01), MomentumCorrection()),
        (GSpar(density=0.01), NoMemory()),
    )
    return f"numba {version('numba')}; {rehearse_together(comm, Wire(), *exchanges)}"


def _hdf5(directory: Path) -> str:
    """Write a checksummed data set where runs write, and read it back."""
    values = np.arange(1000, dtype=np.float32)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        path = Path(folder) / "probe.h5"
        # Without locks, which not every file system has, as checkpoints are written and read.
        with h5py.File(path, "w", locking=False) as file:
            file.create_dataset("values", data=values, chunks=(1000,), fletcher32=True)
        with h5py.File(path, "r", locking=False) as file:
            if not np.array_equal(file["values"][:], values):
                raise ValueError("a data set came back different")
    kind = "parallel" if h5py.get_config().mpi else "serial"
    return f"{h5py.version.hdf5_version}, h5py {h5py.__version__} ({kind}), writes and reads back with checksums"


def _file_system(directory: Path) -> str:
    """Make, bring to disk and rename a directory, as a checkpoint does."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        before, after = Path(folder) / "before", Path(folder) / "after"
        before.mkdir()
        (before / "file").write_bytes(b"x")
        handle = os.open(before, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        before.rename(after)
    free = shutil.disk_usage(directory).free / _GIB
    if free < 1:
        raise ValueError(f"only {free:.2f} GiB free in {directory}: make room for checkpoints")
    return f"{directory.resolve()}: {free:.0f} GiB free, directories can be renamed and brought to disk"
