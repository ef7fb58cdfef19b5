"""A vector that all ranks read and add to without waiting for each other: the contract, and shared memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from mpisparse.comm.handles import Handles
from mpisparse.errors import CommError, MpiSparseError
from mpisparse.kernels.atomic import add_all, add_at, count_up

Vector = NDArray[np.float32]

#: What a caller may ask for: "auto" is shared memory where all ranks are on one node, else accumulate.
WindowKind = Literal["auto", "shared", "accumulate"]

#: Counters of a window: updates made, and numbers given out by `claim`.
UPDATES, CLAIMS = 0, 1

#: Bytes that a processor moves at a time; each counter has so many of its own, so that adding to it disturbs nothing.
LINE = 64


@dataclass
class WindowCounters:
    """What this rank did to a window.

    conflicts: compare-and-swap attempts that failed; None where the MPI library makes the additions and does not tell.
    waiting: seconds spent waiting for MPI; 0 in shared memory, where waits are too short to be timed one by one.
    """

    updates: int = 0
    entries: int = 0
    conflicts: int | None = 0
    waiting: float = 0.0


class Window(ABC):
    """A float32 vector, zero at first, that every rank can read and add to at any moment.

    Surprises first:

    - No addition is lost, whoever else adds to the same entry. The order of additions is that of their arrival, so the
      last bits of a sum differ from run to run.
    - Reading takes no lock: while others add, some entries read may be older than others.
    - One window has one kind of access. A processor's atomic instructions and an MPI library's accumulates know nothing
      of each other: used on one window together, they would lose additions.
    - Only making and closing one is collective. Closing waits for all ranks, and nobody may touch the window after.
    - float32 counts exactly up to 2**24; from there on, adding 1 is lost to rounding.
    """

    kind: Literal["shared", "accumulate"]

    def __init__(self, numel: int, rank: int, release: Callable[[], None]) -> None:
        self.numel = numel
        self.counters = WindowCounters()
        self.closed = False
        self._rank = rank
        self._release = release
        #: Where the communicator that opened it keeps it, and its number there.
        self._kept: tuple[Handles, int] | None = None

    @abstractmethod
    def read(self, out: Vector) -> int:
        """Fill in the vector as it is now, and return how many updates all ranks had made just before.

        Raises:
            CommError: `out` is not float32 of shape (numel,), contiguous.
        """

    @abstractmethod
    def add(self, indices: NDArray[np.integer[Any]], values: Vector) -> int:
        """Add values at indices as one update, and return how many updates all ranks had made before it ended.

        Args:
            indices: integers, each at least 0 and below numel; in any order, also repeated.
            values: float32, one an index, contiguous.

        Raises:
            CommError: they do not fit each other or the window; nothing was added.
        """

    @abstractmethod
    def add_dense(self, values: Vector) -> int:
        """Add float32 of shape (numel,) as one update; otherwise as `add`."""

    @abstractmethod
    def claim(self) -> int:
        """Return the next of the numbers 0, 1, 2, ...: each goes to one rank alone, once."""

    @abstractmethod
    def let_go(self) -> None:
        """Use the memory no more."""

    @abstractmethod
    def _memory(self) -> object:
        """Return what is collected when nobody can reach the memory any more."""

    def enter(self, handles: Handles) -> None:
        """Have the memory given back, too, when all ranks have dropped it without closing it."""
        self._kept = handles, handles.add(self._memory(), self._release, self.let_go)

    def close(self) -> None:
        """Give the memory back, once every rank has called this. Collective; once is enough."""
        if self.closed:
            return
        if self._kept is None:
            self.let_go()
            self._release()
        else:
            handles, number = self._kept
            handles.give_back([number])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # For an error of this rank alone the others would be waited for in vain: the abort hook ends the job.
        if error is None or (isinstance(error, MpiSparseError) and error.on_all_ranks):
            self.close()

    def _check_vector(self, vector: Vector, what: str) -> None:
        if vector.dtype != np.float32 or vector.shape != (self.numel,) or not vector.flags.c_contiguous:
            raise CommError(
                f"rank {self._rank}: {what} is {vector.dtype} of shape {vector.shape}, and the window holds "
                f"{self.numel} entries: give contiguous float32 of shape ({self.numel},)"
            )

    def _check_sparse(self, indices: NDArray[np.integer[Any]], values: Vector) -> None:
        if indices.dtype.kind not in "iu" or values.dtype != np.float32 or indices.ndim != 1:
            raise CommError(
                f"rank {self._rank}: {values.dtype} was to be added at indices of {indices.dtype} and shape "
                f"{indices.shape}: give float32 values at a vector of integers"
            )
        if indices.shape != values.shape:
            raise CommError(f"rank {self._rank}: {values.size} values were to be added at {indices.size} indices")

    def _refuse_indices(self, indices: NDArray[np.integer[Any]]) -> None:
        raise CommError(
            f"rank {self._rank}: indices from {indices.min()} to {indices.max()} do not all lie in the window, whose "
            f"entries are 0 to {self.numel - 1}: nothing was added"
        )

    def _count(self, entries: int, conflicts: int | None) -> None:
        self.counters.updates += 1
        self.counters.entries += entries
        if conflicts is not None and self.counters.conflicts is not None:
            self.counters.conflicts += conflicts


class SharedWindow(Window):
    """A window in memory that all ranks share; they add by compare-and-swap.

    parameters, updates: the memory itself, float32 of shape (numel,) and int64 of shape (1,), for loops that are
    compiled as a whole (`kernels.linear`); only atomic instructions may write to it.
    """

    kind = "shared"

    def __init__(self, memory: NDArray[np.uint8], numel: int, rank: int, release: Callable[[], None]) -> None:
        """Take `shared_bytes(numel)` bytes of memory, zero, and what gives them back when all ranks have called it."""
        super().__init__(numel, rank, release)
        self._shared: NDArray[np.uint8] | None = memory
        if memory.ctypes.data % 8:
            raise CommError(
                f"rank {rank}: shared memory at an address that is no multiple of 8 cannot be added to safely"
            )
        first = -(-4 * numel // LINE) * LINE
        self.parameters: Vector = memory[: 4 * numel].view(np.float32)
        self.updates: NDArray[np.int64] = memory[first + LINE : first + LINE + 8].view(np.int64)
        self._claims: NDArray[np.int64] = memory[first + 2 * LINE : first + 2 * LINE + 8].view(np.int64)

    def read(self, out: Vector) -> int:
        """Copy the vector; see `Window.read`."""
        self._check_vector(out, "the array to read into")
        updates = int(self.updates[0])
        out[:] = self.parameters
        return updates

    def add(self, indices: NDArray[np.integer[Any]], values: Vector) -> int:
        """Add by compare-and-swap; see `Window.add`."""
        self._check_sparse(indices, values)
        conflicts = int(add_at(self.parameters, indices, values))
        if conflicts < 0:
            self._refuse_indices(indices)
        self._count(indices.size, conflicts)
        return int(count_up(self.updates, 0, 1))

    def add_dense(self, values: Vector) -> int:
        """Add to every entry by compare-and-swap; see `Window.add_dense`."""
        self._check_vector(values, "what is to be added")
        self._count(self.numel, int(add_all(self.parameters, values)))
        return int(count_up(self.updates, 0, 1))

    def claim(self) -> int:
        """Return the next number; see `Window.claim`."""
        return int(count_up(self._claims, 0, 1))

    def let_go(self) -> None:
        """Use the memory no more: the arrays are copies from then on, and not shared."""
        self.parameters, self.updates = self.parameters.copy(), self.updates.copy()
        self._claims, self._shared, self.closed = self._claims.copy(), None, True

    def _memory(self) -> object:
        # All arrays that show a part of it hold it.
        return self._shared


def shared_bytes(numel: int) -> int:
    """Return the bytes that a `SharedWindow` of `numel` entries takes."""
    return -(-4 * numel // LINE) * LINE + 4 * LINE
