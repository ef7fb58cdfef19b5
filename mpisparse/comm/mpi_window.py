"""Windows between MPI processes: memory shared on a node, or memory of rank 0 that MPI adds to from anywhere."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpisparse.comm.window import CLAIMS, LINE, UPDATES, SharedWindow, Vector, Window, shared_bytes
from mpisparse.errors import CommError

#: The rank whose memory holds an `AccumulateWindow`.
_HOME = 0

_NOTHING = np.zeros(0, np.float32)


def shared_window(comm: MPI.Intracomm, numel: int) -> SharedWindow:
    """Return a window in memory that the ranks of `comm`, all on one node, share. Collective."""
    rank = comm.Get_rank()
    window = MPI.Win.Allocate_shared(shared_bytes(numel) if rank == _HOME else 0, 1, MPI.INFO_NULL, comm)
    buffer, _ = window.Shared_query(_HOME)
    memory = np.asarray(buffer, np.uint8)
    if rank == _HOME:
        memory[:] = 0
    # Between `Lock_all` and `Unlock_all` memory may be used directly; `Sync` on both sides of the barrier shows the
    # zeros to everybody.
    window.Lock_all(MPI.MODE_NOCHECK)
    window.Sync()
    comm.Barrier()
    window.Sync()

    return SharedWindow(memory, numel, rank, partial(_release, comm, window))


def _release(comm: MPI.Intracomm, window: MPI.Win) -> None:
    """Give a window back, once every rank has called this."""
    comm.Barrier()
    window.Unlock_all()
    window.Free()


class AccumulateWindow(Window):
    """A window in the memory of rank 0, which MPI reads and adds to from any node.

    Additions and reads are MPI's accumulates, element by element in one step, so none is lost. Libraries make them on
    the processor of rank 0 while it is inside an MPI call: a rank 0 that computes for long lets the others wait, one
    that reads and adds itself, or waits in `close`, does not.

    The number of updates travels together with the vector, or with what is added, to save a round trip: MPI does not
    say which of the two is looked at first, so it may be off by the updates that arrive in between.
    """

    kind = "accumulate"

    def __init__(self, comm: MPI.Intracomm, numel: int) -> None:
        """Collective."""
        rank = comm.Get_rank()
        window = MPI.Win.Allocate(shared_bytes(numel) if rank == _HOME else 0, 1, MPI.INFO_NULL, comm)
        super().__init__(numel, rank, partial(_release, comm, window))
        self.counters.conflicts = None
        self._window = window
        end = shared_bytes(numel)
        self._places = {UPDATES: end - 3 * LINE, CLAIMS: end - 2 * LINE}
        self._one, self._before = np.ones(1, np.int64), np.zeros(1, np.int64)
        if self._rank == _HOME:
            np.asarray(window.tomemory(), np.uint8)[:] = 0
        comm.Barrier()
        window.Lock_all(MPI.MODE_NOCHECK)

    def read(self, out: Vector) -> int:
        """Fetch the vector; see `Window.read`."""
        self._check_vector(out, "the array to read into")
        self._start_fetch(UPDATES, MPI.NO_OP)
        target = (0, self.numel, MPI.FLOAT)
        self._open.Get_accumulate([_NOTHING, 0, MPI.FLOAT], [out, MPI.FLOAT], _HOME, target, MPI.NO_OP)
        return self._fetched()

    def add(self, indices: NDArray[np.integer[Any]], values: Vector) -> int:
        """Have MPI add; see `Window.add`."""
        self._check_sparse(indices, values)
        if indices.size and not (indices.min() >= 0 and indices.max() < self.numel):
            self._refuse_indices(indices)
        if not indices.size:
            return self._end_update(0)
        places = MPI.FLOAT.Create_indexed_block(1, indices.astype(np.int32)).Commit()  # type: ignore[arg-type]
        try:
            self._open.Accumulate([values, MPI.FLOAT], _HOME, (0, 1, places), MPI.SUM)
            return self._end_update(indices.size)
        finally:
            places.Free()

    def add_dense(self, values: Vector) -> int:
        """Have MPI add to every entry; see `Window.add_dense`."""
        self._check_vector(values, "what is to be added")
        self._open.Accumulate([values, MPI.FLOAT], _HOME, (0, self.numel, MPI.FLOAT), MPI.SUM)
        return self._end_update(self.numel)

    def claim(self) -> int:
        """Return the next number; see `Window.claim`."""
        self._start_fetch(CLAIMS, MPI.SUM)
        return self._fetched()

    def let_go(self) -> None:
        """Use the memory no more."""
        self.closed = True

    @property
    def _open(self) -> MPI.Win:
        if self.closed:
            raise CommError(f"rank {self._rank}: the window of {self.numel} entries is closed: open another")
        return self._window

    def _memory(self) -> object:
        return self

    def _end_update(self, entries: int) -> int:
        self._count(entries, None)
        self._start_fetch(UPDATES, MPI.SUM)
        return self._fetched()

    def _start_fetch(self, counter: int, operation: MPI.Op) -> None:
        """Ask for a counter as it is, and add 1 to it where the operation is a sum."""
        ours = [self._one, MPI.INT64_T], [self._before, MPI.INT64_T]
        self._open.Fetch_and_op(*ours, _HOME, self._places[counter], operation)

    def _fetched(self) -> int:
        """Wait until all that was asked for has been done, and return the counter that was."""
        begin = perf_counter()
        self._open.Flush(_HOME)
        self.counters.waiting += perf_counter() - begin
        return int(self._before[0])
