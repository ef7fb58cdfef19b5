"""Ranks of an MPI job: the communicator that real runs use."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpisparse.comm.abort import wait_until_heard
from mpisparse.comm.base import CALL_LIMIT, Bytes, Communicator, Counts, Description
from mpisparse.comm.mpi_window import AccumulateWindow, shared_window
from mpisparse.comm.pending import Pending
from mpisparse.comm.recorder import Recorder
from mpisparse.comm.window import Window
from mpisparse.errors import CommError

if TYPE_CHECKING:
    import h5py

_THREAD_LEVELS = {
    MPI.THREAD_SINGLE: "single",
    MPI.THREAD_FUNNELED: "funneled",
    MPI.THREAD_SERIALIZED: "serialized",
    MPI.THREAD_MULTIPLE: "multiple",
}

Result = TypeVar("Result")


#: Seconds of waiting in which a rank looks for the others all the time: when all come together it is the faster way.
_SPIN = 300e-6

#: Seconds between looks after that.
_PAUSE = 50e-6

#: Seconds that MPI gets to end the job.
_ABORT_LIMIT = 5.0


class MPIPending(Pending[Result]):
    """An MPI request, with the buffers that MPI reads and writes until it has ended."""

    def __init__(self, request: MPI.Request, result: Result, *buffers: object) -> None:
        super().__init__(result)
        self._request = request
        self._buffers = buffers

    def _test(self) -> bool:
        return bool(self._request.Test())


class MPICommunicator(Communicator):
    """One rank of an MPI communicator, on a duplicate of it, so that nobody else's messages can match ours."""

    def __init__(self, comm: MPI.Intracomm | None = None, call_limit: int = CALL_LIMIT) -> None:
        """Collective: duplicate `comm`, MPI_COMM_WORLD by default."""
        self._comm = (MPI.COMM_WORLD if comm is None else comm).Dup()
        super().__init__(self._comm.Get_rank(), self._comm.Get_size(), call_limit)

    def _duplicate(self) -> MPICommunicator:
        with self._counting():
            return MPICommunicator(self._comm, self._call_limit)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Say, where MPI makes no further communicator, how many there are."""
        try:
            yield
        except MPI.Exception as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise CommError(
                f"rank {self.rank}: MPI makes no further communicator ({reason}), and {len(self.lane.recorder.lanes)} "
                "are in use here: close() the optimizers that are done with, or let go of them"
            ) from error

    def _release(self) -> Callable[[], object]:
        return self._comm.Free

    def _describe(self) -> Description:
        with self._counting():
            node = self._comm.Split_type(MPI.COMM_TYPE_SHARED, self.rank)
        leader, local_size = node.Get_rank() == 0, node.Get_size()
        node.Free()
        nodes = int(self.allgather([int(leader)]).sum())
        library = _library_name(MPI.Get_library_version())
        standard = "MPI {}.{}".format(*MPI.Get_version())
        return Description(library, standard, self.thread_level, MPI.Get_processor_name(), nodes, local_size)

    @property
    def thread_level(self) -> str:
        """Return what MPI allows threads, "multiple" unless the library or mpi4py's settings say otherwise."""
        return _THREAD_LEVELS.get(MPI.Query_thread(), "unknown")

    def _barrier(self) -> None:
        self._comm.Barrier()

    def abort(self, code: int) -> None:
        """End every process of the job at once with exit code `code`, once what was said has been heard."""
        wait_until_heard(sys.stderr)
        # Should MPI itself be what hangs, this process ends all the same, and the launcher ends the others.
        faulthandler.dump_traceback_later(_ABORT_LIMIT, exit=True, file=2)
        MPI.COMM_WORLD.Abort(code)

    def _allgather(self, array: NDArray[np.int64]) -> NDArray[np.int64]:
        # Here ranks wait for the slowest. Spinning all that time, as MPI does, would take the processor from threads,
        # and from ranks on the same cores, that still have something to compute.
        pending = self._start_allgather(array)
        give_up_spinning = perf_counter() + _SPIN
        while not pending.test():
            if perf_counter() > give_up_spinning:
                sleep(_PAUSE)
        return pending.result

    def _allgatherv(self, payload: Bytes, counts: Counts, out: Bytes) -> None:
        self._comm.Allgatherv([payload, MPI.BYTE], [out, (counts, _displs(counts)), MPI.BYTE])

    def _start_allgather(self, array: NDArray[np.int64]) -> Pending[NDArray[np.int64]]:
        gathered = np.empty((self.size, array.size), np.int64)
        return MPIPending(self._comm.Iallgather(array, gathered), gathered, array)

    def _start_allgatherv(self, payload: Bytes, counts: Counts, out: Bytes) -> Pending[Bytes]:
        displs = _displs(counts)
        request = self._comm.Iallgatherv([payload, MPI.BYTE], [out, (counts, displs), MPI.BYTE])
        return MPIPending(request, out, payload, counts, displs)

    def _alltoallv(self, payload: Bytes, counts: Counts, out: Bytes, out_counts: Counts) -> None:
        self._comm.Alltoallv(
            [payload, (counts, _displs(counts)), MPI.BYTE], [out, (out_counts, _displs(out_counts)), MPI.BYTE]
        )

    def _broadcast(self, buffer: Bytes, root: int) -> None:
        self._comm.Bcast([buffer, MPI.BYTE], root)

    def _allreduce(self, array: NDArray[np.float32]) -> None:
        self._comm.Allreduce(MPI.IN_PLACE, array, op=MPI.SUM)

    def _shared_window(self, numel: int) -> Window:
        with self._counting():
            return shared_window(self._comm, numel)

    def _accumulate_window(self, numel: int) -> Window:
        with self._counting():
            return AccumulateWindow(self._comm, numel)

    def _open_hdf5(self, path: Path) -> h5py.File | None:
        import h5py

        return h5py.File(path, "r+", driver="mpio", comm=self._comm) if h5py.get_config().mpi else None


@cache
def everybody() -> MPICommunicator:
    """Return the communicator that all others of this process duplicate. Collective when it is called first."""
    comm = MPICommunicator()
    comm.lane = Recorder().lane("everybody")
    return comm


def own_place() -> tuple[int, int, str]:
    """Return this process's rank among all that were started, how many there are, and what MPI is called."""
    return MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size(), _library_name(MPI.Get_library_version())


def _library_name(version: str) -> str:
    """Return "MPICH 5.0.2" or "Open MPI v5.0.11" from the long text that libraries give."""
    line = version.split("\x00")[0].strip().splitlines()[0]
    return " ".join(line.split(",")[0].replace("Version:", "").split())


def _displs(counts: Counts) -> Counts:
    return np.cumsum(counts) - counts
