"""The contract of a communicator, and the guard that every variable-length exchange passes."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from mpisparse.comm import guard
from mpisparse.comm.handles import Handles
from mpisparse.comm.pending import Pending
from mpisparse.comm.recorder import GivenBack, Lane, Recorder
from mpisparse.comm.window import Window, WindowKind
from mpisparse.errors import CommError, ConfigError, alike
from mpisparse.words import counted

if TYPE_CHECKING:
    import h5py

Bytes = NDArray[np.uint8]
Counts = NDArray[np.int64]

#: Entries of a window at most: MPI's block types take 32-bit displacements.
WINDOW_LIMIT = 2**31 - 1

#: Bytes that one call may move: Open MPI takes no displacement beyond 2**31 - 1, MPICH would.
CALL_LIMIT = 2**31 - 1


#: What has to be the same on all ranks, for the message that says that it is not.
_COMPARED = {
    "allgather": ("numbers",),
    "allreduce": ("entries",),
    "broadcast": ("bytes", "root"),
    "broadcast_bytes": ("root",),
    "open_window": ("entries", "place of the kind"),
}


@dataclass(frozen=True)
class Description:
    """Who is there, for the banner and the run log."""

    library: str
    standard: str
    thread_level: str
    node: str
    nodes: int
    local_size: int


class Communicator(ABC):
    """The ranks of a job, and how bytes get from each to all. Every method but `abort` is collective.

    Surprises first:

    - MPI says nothing when a rank sends fewer bytes than the others expect (the slot keeps what it held before), and
      writes past a receive buffer that is too short. So the variable-length calls here take fresh `counts`, check every
      buffer before MPI sees it, and are the only such calls in the package. A message names its own step, bucket and
      rank in band, which catches the rest.
    - Payloads are bytes. MPI has no portable 16-bit brain float, and refuses structured types.
    - `out` is handed back filled; it must not be read by another thread meanwhile.
    - Calls that are started (`start_...`) have to be so in the same order on all ranks, among themselves and with the
      other calls of this communicator. Where threads call, give each a duplicate, and look at `thread_level`.
    - Every call is noted in `lane`, whose recorder all duplicates share: a watchdog reads there who waits since when.
    - MPI has room for about two thousand communicators. One that is dropped on all ranks is given back when they make
      the next duplicate of what it duplicates; `free` gives it back at once.
    """

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Return True on rank 0, which speaks and writes for all."""
        return self.rank == 0

    def __init__(self, rank: int, size: int, call_limit: int = CALL_LIMIT) -> None:
        self.rank = rank
        self.size = size
        self._call_limit = call_limit
        self.lane: Lane = Recorder().lane("world")
        #: What this one duplicates, so that it is not given back before this one is, and its number there.
        self._origin: tuple[Communicator, int] | None = None
        self._handles = Handles()

    # What every implementation brings -------------------------------------------------------------------------------

    @abstractmethod
    def _duplicate(self) -> Communicator:
        """Return what `duplicate` returns."""

    @abstractmethod
    def _release(self) -> Callable[[], object]:
        """Return what gives this communicator back, on all ranks together, and does not hold it."""

    @abstractmethod
    def _describe(self) -> Description:
        """Return what `describe` returns."""

    @property
    @abstractmethod
    def thread_level(self) -> str:
        """Return what MPI allows threads: "single", "funneled", "serialized" or "multiple"."""

    @abstractmethod
    def _barrier(self) -> None:
        """Return when every rank has called it."""

    @abstractmethod
    def abort(self, code: int) -> None:
        """End the whole job at once with exit code `code`. Not collective: one rank is enough."""

    @abstractmethod
    def _allgather(self, array: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the arrays of all ranks, int64 of shape (size, array.size)."""

    @abstractmethod
    def _allgatherv(self, payload: Bytes, counts: Counts, out: Bytes) -> None:
        """Fill `out` with the payloads of all ranks, in rank order and packed. The buffers are checked already."""

    @abstractmethod
    def _start_allgather(self, array: NDArray[np.int64]) -> Pending[NDArray[np.int64]]:
        """Start what `_allgather` does."""

    @abstractmethod
    def _start_allgatherv(self, payload: Bytes, counts: Counts, out: Bytes) -> Pending[Bytes]:
        """Start what `_allgatherv` does. The buffers are checked already."""

    @abstractmethod
    def _alltoallv(self, payload: Bytes, counts: Counts, out: Bytes, out_counts: Counts) -> None:
        """Fill `out` with the pieces meant for this rank, in rank order and packed. The buffers are checked already."""

    @abstractmethod
    def _broadcast(self, buffer: Bytes, root: int) -> None:
        """Replace `buffer` by rank `root`'s."""

    @abstractmethod
    def _allreduce(self, array: NDArray[np.float32]) -> None:
        """Replace `array` by its sum over the ranks, in whatever order the library likes."""

    @abstractmethod
    def _shared_window(self, numel: int) -> Window:
        """Return a window in memory that all ranks share. They are on one node."""

    @abstractmethod
    def _accumulate_window(self, numel: int) -> Window:
        """Return a window that MPI reads and adds to."""

    # What callers use -----------------------------------------------------------------------------------------------

    def duplicate(self, name: str = "") -> Communicator:
        """Return a communicator of the same ranks whose traffic never meets this one's.

        Args:
            name: what to call it where a hang is explained; this one's name by default.
        """
        with self.lane.call("duplicate"):
            self._handles.meet(self.allgather_bytes)
            fresh = self._duplicate()
        fresh.lane = self.lane.recorder.lane(name or self.lane.kind)
        weakref.finalize(fresh, fresh.lane.recorder.retire, fresh.lane).atexit = False
        fresh._origin = self, self._handles.add(fresh, fresh._release(), fresh.refuse_calls, fresh._handles)
        return fresh

    @property
    def root(self) -> Communicator:
        """Return the communicator that this one is a duplicate of, in the end; itself where it is none."""
        return self if self._origin is None else self._origin[0].root

    def free(self) -> None:
        """Give back this communicator and all duplicates of it, none of which can be used any more. Once is enough."""
        if isinstance(self.lane, GivenBack):
            return
        if self._origin is None:
            self._handles.give_back_all()
            self.refuse_calls()
            self._release()()
        else:
            origin, number = self._origin
            origin._handles.give_back([number])

    def refuse_calls(self) -> None:
        """Have every later call raise CommError."""
        self.lane = GivenBack(self.lane, self.rank)

    def describe(self) -> Description:
        """Return the MPI library, its thread level, and how the ranks lie on nodes."""
        with self.lane.call("describe"):
            return self._describe()

    def barrier(self) -> None:
        """Return when every rank has called it."""
        with self.lane.call("barrier"):
            self._barrier()

    def allgather(self, array: Sequence[int] | NDArray[np.integer], *, equal: bool = False) -> NDArray[np.int64]:
        """Return the integers of all ranks, int64 of shape (size, len(array)). For metrics, see `mpisparse.mean`.

        Args:
            array: a vector of integers, or a torch tensor of them on any device; as many on every rank.
            equal: whether the lengths are known to be equal, as in calls of the package itself: that saves a latency.

        Raises:
            CommError: it holds anything but integers, or the ranks give different numbers of them (then on all).
        """
        values = guard.integers(self.rank, "allgather", array)
        with self.lane.call("allgather"):
            if not equal:
                self._require_equal("allgather", values.size)
            return self._allgather(values)

    def allgatherv(self, payload: Bytes, counts: Counts, out: Bytes | None = None) -> Bytes:
        """Return the payloads of all ranks, packed in rank order: the first `counts.sum()` bytes of `out`.

        Args:
            payload: uint8, contiguous, of `counts[rank]` bytes; may be empty.
            counts: int64 of shape (size,), the same on all ranks, from an `allgather` of this very step.
            out: a buffer to use again, uint8; a fresh one when it is missing.

        Raises:
            CommError: a buffer does not fit; nothing was sent.
        """
        out = self._check_gather(payload, counts, out)
        with self.lane.call("allgatherv", counts):
            if self.fits_one_call(counts):
                self._allgatherv(payload, counts, out)
            else:
                self._allgatherv_in_rounds(payload, counts, out)
        return out

    def fits_one_call(self, counts: Counts) -> bool:
        """Return True when `counts.sum()` bytes may move in one call. More take several, which cannot be started."""
        return int(counts.sum()) <= self._call_limit

    def start_allgather(self, array: Sequence[int] | NDArray[np.integer]) -> Pending[NDArray[np.int64]]:
        """Start an `allgather`, and return the call in progress. Nothing looks whether the lengths are equal."""
        values = guard.integers(self.rank, "start_allgather", array).copy()
        call = self.lane.start("started allgather")
        pending = self._start_allgather(values)
        pending.call = call
        return pending

    def start_allgatherv(self, payload: Bytes, counts: Counts, out: Bytes | None = None) -> Pending[Bytes]:
        """Start an `allgatherv`, and return the call in progress. Arguments are those of `allgatherv`.

        Raises:
            CommError: a buffer does not fit, or more than the limit of one call would travel; nothing was sent.
        """
        out = self._check_gather(payload, counts, out)
        if not self.fits_one_call(counts):
            raise CommError(
                f"rank {self.rank}: {out.size} bytes are more than one started Allgatherv may move "
                f"({self._call_limit}): use allgatherv, which takes several calls"
            )
        call = self.lane.start("started allgatherv", counts)
        pending = self._start_allgatherv(payload, counts, out)
        pending.call = call
        return pending

    def alltoallv(self, payload: Bytes, counts: Counts, out_counts: Counts, out: Bytes | None = None) -> Bytes:
        """Return the pieces that all ranks have for this one, packed in rank order.

        Args:
            payload: uint8, the piece for rank 0, then for rank 1, and so on.
            counts: int64 of shape (size,), the bytes for each rank.
            out_counts: int64 of shape (size,), the bytes from each rank.
            out: a buffer to use again, uint8.

        Raises:
            CommError: a buffer does not fit, or more than the limit of one call would travel; nothing was sent.
        """
        total, incoming = (guard.check_counts(self.rank, self.size, each) for each in (counts, out_counts))
        guard.check_payload(self.rank, payload, total)
        if max(total, incoming) > self._call_limit:
            raise CommError(
                f"rank {self.rank}: {max(total, incoming)} bytes are more than one Alltoallv may move "
                f"({self._call_limit}): send them in pieces"
            )
        out = np.empty(incoming, np.uint8) if out is None else out
        guard.check_room(self.rank, out, incoming)
        with self.lane.call("alltoallv", counts):
            self._alltoallv(payload, counts, out[:incoming], out_counts)
        return out[:incoming]

    def allreduce(self, array: NDArray[np.float32], *, equal: bool = False) -> None:
        """Replace `array`, float32 and contiguous, by its sum over the ranks, in the MPI library's own order.

        Args:
            equal: whether all ranks are known to give as many entries; see `allgather`.
        """
        flat = guard.floats(self.rank, array)
        step = max(1, self._call_limit // 4)
        with self.lane.call("allreduce"):
            if not equal:
                self._require_equal("allreduce", flat.size)
            for start in range(0, flat.size, step):
                self._allreduce(flat[start : start + step])

    def allgather_bytes(self, payload: bytes) -> list[bytes]:
        """Return the byte strings of all ranks, in rank order, of any lengths."""
        payload = guard.byte_string(self.rank, "allgather_bytes", payload)
        counts = self.allgather([len(payload)], equal=True)[:, 0]
        packed = self.allgatherv(np.frombuffer(payload, np.uint8), counts)
        ends = np.cumsum(counts)
        return [packed[end - count : end].tobytes() for end, count in zip(ends, counts, strict=True)]

    def broadcast(self, buffer: Bytes, root: int = 0, *, equal: bool = False) -> None:
        """Replace `buffer`, uint8 and of the same length on all ranks, by rank `root`'s.

        Args:
            equal: whether all ranks are known to give the same length and root; see `allgather`.
        """
        root = guard.check_root(self.rank, root, self.size)
        guard.check_room(self.rank, buffer, 0)
        with self.lane.call("broadcast"):
            if not equal:
                self._require_equal("broadcast", buffer.size, root)
            for start in range(0, buffer.size, self._call_limit):
                self._broadcast(buffer[start : start + self._call_limit], root)

    def broadcast_bytes(self, payload: bytes | None, root: int = 0) -> bytes:
        """Return what rank `root` gave; the others give None.

        Raises:
            CommError: that rank gave None, or the ranks name different ones. On all ranks.
        """
        root = guard.check_root(self.rank, root, self.size)
        given = self.rank == root and payload is not None
        ours = np.frombuffer(guard.byte_string(self.rank, "broadcast_bytes", payload) if given else b"", np.uint8)
        everyone = self.allgather([ours.size if given else -1, root], equal=True)
        self._refuse_unequal("broadcast_bytes", everyone[:, 1:])
        length = int(everyone[root, 0])
        if length < 0:
            raise alike(CommError(f"broadcast_bytes: rank {root}, whose bytes all are to get, gave None"))
        buffer = ours.copy() if self.rank == root else np.empty(length, np.uint8)
        self.broadcast(buffer, root, equal=True)
        return buffer.tobytes()

    def open_window(self, numel: int, kind: WindowKind = "auto") -> Window:
        """Return a vector of zeros that all ranks can add to without waiting for each other.

        Args:
            numel: float32 entries, the same on all ranks.
            kind: "shared", memory that the ranks of one node share; "accumulate", memory of rank 0 that MPI adds to
                from anywhere; "auto", the first where all ranks are on one node, else the second.

        Raises:
            ConfigError: shared memory was asked for on several nodes, or a number of entries that no window has.
        """
        whole = isinstance(numel, int | np.integer) and not isinstance(numel, bool)
        if not whole or not 0 < numel <= WINDOW_LIMIT:
            entries = counted(int(numel), "entry", "entries") if whole else f"{numel!r} entries"
            raise alike(ConfigError(f"a window of {entries} was asked for: give 1 to {WINDOW_LIMIT}"))
        if kind not in get_args(WindowKind):
            raise alike(ConfigError(f"window {kind!r} does not exist: use {', '.join(get_args(WindowKind))}"))
        with self.lane.call("open_window"):
            self._require_equal("open_window", int(numel), get_args(WindowKind).index(kind))
        nodes = self.describe().nodes
        if kind == "shared" and nodes > 1:
            raise alike(
                ConfigError(
                    f"the ranks are on {nodes} nodes, which share no memory: use window accumulate, or auto, "
                    "or start all ranks on one node"
                )
            )
        shared = kind != "accumulate" and nodes == 1
        with self.lane.call("open_window"):
            self._handles.meet(self.allgather_bytes)
            window = self._shared_window(numel) if shared else self._accumulate_window(numel)
        window.enter(self._handles)
        return window

    def open_hdf5(self, path: Path) -> h5py.File | None:
        """Return an HDF5 file that is there, opened for writing by all ranks together, who close it together.

        None where these ranks have no parallel HDF5: h5py has it only where it was built for the MPI library in use.
        """
        with self.lane.call("open_hdf5"):
            return self._open_hdf5(path)

    def _open_hdf5(self, path: Path) -> h5py.File | None:
        return None

    # The guard --------------------------------------------------------------------------------------------------------

    def _check_gather(self, payload: Bytes, counts: Counts, out: Bytes | None) -> Bytes:
        """Return the part of `out` that an allgatherv fills."""
        total = guard.check_counts(self.rank, self.size, counts)
        guard.check_payload(self.rank, payload, int(counts[self.rank]))
        out = np.empty(total, np.uint8) if out is None else out
        guard.check_room(self.rank, out, total)
        return out[:total]

    def _require_equal(self, method: str, *numbers: int) -> None:
        """Raise CommError, on all ranks, unless all ranks give the same numbers: MPI would not notice. One latency."""
        if self.size > 1:
            self._refuse_unequal(method, self._allgather(np.array(numbers, np.int64)))

    def _refuse_unequal(self, method: str, everyone: NDArray[np.int64]) -> None:
        different = np.flatnonzero((everyone != everyone[0]).any(axis=1))
        if not different.size:
            return
        other = int(different[0])
        column = int(np.flatnonzero(everyone[other] != everyone[0])[0])
        raise alike(
            CommError(
                f"{method} was called differently on the ranks, {everyone[0, column]} on rank 0 and "
                f"{everyone[other, column]} on rank {other} ({_COMPARED[method][column]}): every rank has to give the "
                f"same. allgather_bytes takes any lengths"
            )
        )

    def _allgatherv_in_rounds(self, payload: Bytes, counts: Counts, out: Bytes) -> None:
        """Gather more than one call may move: every rank sends at most a share of the limit a round."""
        share = max(1, self._call_limit // self.size)
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        scratch = np.empty(share * self.size, np.uint8)
        for sent in range(0, int(counts.max()), share):
            round_counts = np.clip(counts - sent, 0, share)
            self._allgatherv(payload[sent : sent + share], round_counts, scratch[: int(round_counts.sum())])
            begin = 0
            for start, count in zip(starts, round_counts, strict=True):
                out[start + sent : start + sent + count] = scratch[begin : begin + count]
                begin += count


def require_communicator(comm: object) -> None:
    """Raise ConfigError unless `comm` is None or a communicator of this package."""
    if comm is None or isinstance(comm, Communicator):
        return
    foreign = type(comm).__module__.startswith("mpi4py")
    raise ConfigError(
        f"comm is {'an mpi4py communicator' if foreign else f'of type {type(comm).__name__}'}: give what ms.init() or "
        "ms.world() returned, or leave it out"
    )
