"""Ranks inside one process, one thread each: the same contract as MPI's, for tests and for programs without MPI."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from mpisparse.comm.base import CALL_LIMIT, Bytes, Communicator, Counts, Description
from mpisparse.comm.pending import Pending
from mpisparse.comm.window import SharedWindow, Window, shared_bytes
from mpisparse.errors import CommError, ConfigError, alike

Result = TypeVar("Result")


class Meeting:
    """Where the threads of a group hand things to each other: one slot a rank, and a barrier with a limit."""

    def __init__(self, size: int, timeout: float, family: WeakSet[Meeting] | None = None) -> None:
        self.slots: list[Any] = [None] * size
        self.timeout = timeout
        self.barrier = threading.Barrier(size, timeout=timeout)
        self.boards: dict[int, list[Any]] = {}
        self._posted = [0] * size
        self._lock = threading.Lock()
        #: The meetings of this group's communicators and their duplicates: they end together.
        self.family: WeakSet[Meeting] = WeakSet() if family is None else family
        self.family.add(self)

    def swap(self, rank: int, item: Any) -> list[Any]:
        """Return what every rank brought, in rank order."""
        self.slots[rank] = item
        self._wait(rank)
        items = list(self.slots)
        self._wait(rank)
        return items

    def post(self, rank: int, item: Any) -> list[Any]:
        """Leave an item without waiting, and return the board that fills as the others leave theirs of this turn."""
        with self._lock:
            turn = self._posted[rank]
            self._posted[rank] += 1
            board: list[Any] = self.boards.setdefault(turn, [])
            board.append((rank, item))
            if len(board) == len(self.slots):
                del self.boards[turn]
            return board

    def end(self) -> None:
        """Let nobody of the group wait any longer."""
        for meeting in list(self.family):
            meeting.barrier.abort()

    def _wait(self, rank: int) -> None:
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError:
            raise CommError(f"rank {rank}: another rank left, or did not come within {self.timeout} s") from None


class LocalPending(Pending[NDArray[Any]]):
    """A call in progress between threads: it ends at the first test after the last rank has come."""

    def __init__(self, meeting: Meeting, rank: int, item: NDArray[Any], out: NDArray[Any]) -> None:
        super().__init__(out)
        self._meeting, self._rank, self._shape = meeting, rank, (item.dtype, out.shape)
        self._board = meeting.post(rank, (self._shape, item.copy()))

    def _test(self) -> bool:
        if len(self._board) < len(self._meeting.slots):
            if self._meeting.barrier.broken:
                raise CommError(f"rank {self._rank}: another rank left")
            return False
        items = [item for _, item in sorted(self._board, key=lambda entry: int(entry[0]))]
        if any(shape != self._shape for shape, _ in items):
            raise CommError(f"rank {self._rank}: calls were started in different orders, or with different counts")
        np.concatenate([item for _, item in items], out=self._result.reshape(-1))
        return True


class LocalCommunicator(Communicator):
    """One rank of a group of threads."""

    def __init__(self, meeting: Meeting, rank: int, size: int, call_limit: int = CALL_LIMIT) -> None:
        super().__init__(rank, size, call_limit)
        self._meeting = meeting

    def _duplicate(self) -> LocalCommunicator:
        fresh = Meeting(self.size, self._meeting.timeout, self._meeting.family) if self.rank == 0 else None
        meeting = self._meeting.swap(self.rank, fresh)[0]
        return LocalCommunicator(meeting, self.rank, self.size, self._call_limit)

    def _release(self) -> Callable[[], object]:
        return _nothing

    def _describe(self) -> Description:
        return Description("threads of one process", "no MPI", "multiple", "localhost", 1, self.size)

    @property
    def thread_level(self) -> str:
        """Return "multiple": a duplicate can be used by another thread."""
        return "multiple"

    def _barrier(self) -> None:
        self._meeting.swap(self.rank, None)

    def abort(self, code: int) -> None:
        """Break the meeting, so that the other ranks end with an error instead of waiting."""
        self._meeting.end()
        raise CommError(f"rank {self.rank} ended the job with code {code}")

    def _allgather(self, array: NDArray[np.int64]) -> NDArray[np.int64]:
        arrays = self._meeting.swap(self.rank, array.copy())
        if len({a.shape for a in arrays}) > 1:
            raise CommError(f"rank {self.rank}: lengths differ over the ranks: {[a.size for a in arrays]}")
        return np.stack(arrays)

    def _allgatherv(self, payload: Bytes, counts: Counts, out: Bytes) -> None:
        np.concatenate(self._meeting.swap(self.rank, payload.copy()), out=out)

    def _start_allgather(self, array: NDArray[np.int64]) -> Pending[NDArray[np.int64]]:
        return LocalPending(self._meeting, self.rank, array, np.empty((self.size, array.size), np.int64))

    def _start_allgatherv(self, payload: Bytes, counts: Counts, out: Bytes) -> Pending[Bytes]:
        return LocalPending(self._meeting, self.rank, payload, out)

    def _alltoallv(self, payload: Bytes, counts: Counts, out: Bytes, out_counts: Counts) -> None:
        pieces = np.split(payload.copy(), np.cumsum(counts)[:-1])
        np.concatenate([theirs[self.rank] for theirs in self._meeting.swap(self.rank, pieces)], out=out)

    def _broadcast(self, buffer: Bytes, root: int) -> None:
        buffer[:] = self._meeting.swap(self.rank, buffer.copy())[root]

    def _allreduce(self, array: NDArray[np.float32]) -> None:
        arrays = self._meeting.swap(self.rank, array.copy())
        array[:] = arrays[0]
        for other in arrays[1:]:
            array += other

    def _shared_window(self, numel: int) -> Window:
        memory = self._meeting.swap(self.rank, np.zeros(shared_bytes(numel), np.uint8))[0]
        return SharedWindow(memory, numel, self.rank, partial(_meet, self._meeting, self.rank))

    def _accumulate_window(self, numel: int) -> Window:
        raise alike(ConfigError("threads of one process have no MPI to accumulate with: use window shared, or auto"))


def _meet(meeting: Meeting, rank: int) -> None:
    """Return when every rank has called it."""
    meeting.swap(rank, None)


def _nothing() -> None:
    """Give nothing back: threads hold nothing of MPI's."""


def solo() -> LocalCommunicator:
    """Return the communicator of a process that is alone."""
    return LocalCommunicator(Meeting(1, 1.0), 0, 1)


def run_ranks(
    size: int, function: Callable[[Communicator], Result], *, timeout: float = 60.0, call_limit: int = CALL_LIMIT
) -> list[Result]:
    """Return what `function(comm)` returns on each of `size` ranks, run as threads.

    An exception on a rank ends the group, and is raised here; of several, the first one that is not merely the news
    that another rank left. A rank that waits longer than `timeout` seconds for another ends the group too.
    """
    meeting = Meeting(size, timeout)

    def one(rank: int) -> Result:
        try:
            return function(LocalCommunicator(meeting, rank, size, call_limit))
        except BaseException:
            meeting.end()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise next((error for error in errors if "another rank left" not in str(error)), errors[0])
    return [future.result() for future in futures]
