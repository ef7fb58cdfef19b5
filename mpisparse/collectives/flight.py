"""Flights: messages that travel while this rank goes on computing."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import perf_counter_ns, sleep

import numpy as np
from numpy.typing import NDArray

from mpisparse.collectives.base import Bytes
from mpisparse.comm import Communicator, Pending

#: The length that tells the other ranks that there is no message.
FAILED = -1

#: Seconds between looks at what is in the air: while this rank computes, threads that compute are not to be starved;
#: once it waits for the flight, there is nothing to starve.
_PAUSE = 300e-6
_PAUSE_AWAITED = 50e-6


@dataclass(slots=True)
class _Parcel:
    """The messages of one group on their way: first the lengths of all ranks, then the bytes."""

    group: int
    payload: Bytes
    lengths: Pending[NDArray[np.int64]]
    bytes: Pending[Bytes] | None = None


class Flights:
    """Makes one flight a step, on two communicators of their own: lengths never have to wait for bytes.

    Making one is collective. Receive buffers, one a group, are used again from flight to flight, and so is the thread
    that moves the messages: with MPI in the process, every new thread leaves some hundred bytes behind.
    """

    def __init__(self, comm: Communicator) -> None:
        self.lengths = comm.duplicate("lengths sent early")
        self.payloads = comm.duplicate("messages sent early")
        #: Where the recorder notes that this rank waits for a flight; the calls themselves go on beside it.
        recorder = comm.lane.recorder
        self.landings = recorder.lane("landing")
        weakref.finalize(self, recorder.retire, self.landings).atexit = False
        self._rooms: list[Bytes] = []
        self._due: SimpleQueue[Flight | None] = SimpleQueue()
        self._pilot: threading.Thread | None = None
        weakref.finalize(self, self._due.put, None)

    def begin(self, groups: int) -> Flight:
        """Return a flight of so many groups. The one before it has to have ended."""
        while len(self._rooms) < groups:
            self._rooms.append(np.empty(0, np.uint8))
        return Flight(self, groups)

    def take(self, flight: Flight) -> None:
        """Have the thread fly this one."""
        if self._pilot is None:
            self._pilot = threading.Thread(target=_pilot, args=(self._due,), name="mpisparse-flight", daemon=True)
            self._pilot.start()
        self._due.put(flight)

    def room(self, group: int, total: int) -> Bytes:
        """Return the receive buffer of a group, of at least `total` bytes."""
        if self._rooms[group].size < total:
            self._rooms[group] = np.empty(total + total // 4, np.uint8)
        return self._rooms[group]


class Flight:
    """The messages of one step, in groups that leave one after the other while this rank computes.

    Surprises first:

    - Every rank sends every group, in the same order, be it as a failure. A group lands when all ranks have sent it.
    - MPI moves nothing in the background, so a thread asks it to, a few thousand times a second. That thread makes all
      MPI calls of the flight, from the first group to the last, and then waits for the next flight. It is a daemon: a
      rank that leaves with an error does not wait for groups that will never land.
    - An exception of the thread is raised by `wait`.
    - What `wait` returns are views of buffers that the next flight overwrites: decode with what is expected.
    """

    def __init__(self, flights: Flights, groups: int) -> None:
        self._flights = flights
        self._groups = groups
        self._sent: SimpleQueue[tuple[Bytes, list[int]]] = SimpleQueue()
        self._begun = 0
        self._taken = 0
        self._counting: deque[_Parcel] = deque()
        self._moving: list[_Parcel] = []
        self._landed = [threading.Event() for _ in range(groups)]
        self._received: list[list[list[Bytes]] | None] = [None] * groups
        self._error: BaseException | None = None
        self._awaited = False
        self._busy: list[tuple[int, int]] = []

    def send(self, messages: list[Bytes] | None, count: int) -> None:
        """Send this rank's messages of the next group, and return at once.

        Args:
            messages: `count` of them; None when this rank has none worth sending, so that no rank's will be read.
        """
        lengths = [FAILED] * count if messages is None else [message.size for message in messages]
        payload = np.concatenate(messages) if messages else np.empty(0, np.uint8)
        self._sent.put((payload, lengths))
        self._begun += 1
        if self._begun == 1:
            self._flights.take(self)

    def wait(self, group: int) -> list[list[Bytes]] | None:
        """Return for each bucket of a group the messages of all ranks in rank order, or None if a rank has failed.

        Raises:
            MpiSparseError: the thread's error, such as a buffer that does not fit.
        """
        self._awaited = True
        with self._flights.landings.call("wait", group=group):
            self._landed[group].wait()
        if self._error is not None:
            raise self._error
        return self._received[group]

    def seconds_before(self, moment: int) -> float:
        """Return how long something was in the air before a moment of `perf_counter_ns`. To be asked after landing."""
        return sum(max(0, min(end, moment) - begin) for begin, end in self._busy) * 1e-9

    # What follows runs in the flight's thread -------------------------------------------------------------------------

    def fly(self) -> None:
        """Move all groups, and return when they have landed."""
        try:
            while self._taken < self._groups or self._counting or self._moving:
                self._take_off()
                while self._counting and self._counting[0].lengths.test():
                    self._move(self._counting.popleft())
                self._moving = [parcel for parcel in self._moving if not self._land(parcel)]
        except BaseException as error:  # noqa: BLE001 - raised by wait, on the thread that can tell people
            self._error = error
        finally:
            for landed in self._landed:
                landed.set()

    def _take_off(self) -> None:
        """Start the groups that were sent since the last look, and pause; without any in the air, wait for one."""
        flying = bool(self._counting or self._moving)
        if self._taken == self._groups:
            sleep(self._pause())
            return
        try:
            self._start(*self._sent.get(timeout=self._pause() if flying else None))
        except Empty:
            return
        if not flying:
            self._busy.append((perf_counter_ns(), 2**63))

    def _pause(self) -> float:
        return _PAUSE_AWAITED if self._awaited else _PAUSE

    def _start(self, payload: Bytes, lengths: list[int]) -> None:
        pending = self._flights.lengths.start_allgather(lengths)
        self._counting.append(_Parcel(self._taken, payload, pending))
        self._taken += 1

    def _move(self, parcel: _Parcel) -> None:
        """Start moving the bytes of a group whose lengths have come. All ranks do so in the order of the groups."""
        lengths, comm = parcel.lengths.result, self._flights.payloads
        if (lengths == FAILED).any():
            self._arrive(parcel, None)
            return
        counts = lengths.sum(axis=1)
        room = self._flights.room(parcel.group, int(counts.sum()))
        if comm.fits_one_call(counts):
            parcel.bytes = comm.start_allgatherv(parcel.payload, counts, room)
            self._moving.append(parcel)
        else:  # several calls cannot be started as one; every rank takes this way, at this place in the order
            self._arrive(parcel, cut(comm.allgatherv(parcel.payload, counts, room), lengths))

    def _land(self, parcel: _Parcel) -> bool:
        """Return True when a group's bytes are there, and tell who waits for them."""
        assert parcel.bytes is not None
        if not parcel.bytes.test():
            return False
        self._arrive(parcel, cut(parcel.bytes.result, parcel.lengths.result))
        return True

    def _arrive(self, parcel: _Parcel, received: list[list[Bytes]] | None) -> None:
        self._received[parcel.group] = received
        self._busy[-1] = (self._busy[-1][0], perf_counter_ns())
        self._landed[parcel.group].set()


def _pilot(due: SimpleQueue[Flight | None]) -> None:
    """Fly what is due until nobody can ask for more."""
    while (flight := due.get()) is not None:
        flight.fly()
        del flight  # it holds the flights, whose end is the sign to end


def cut(packed: Bytes, lengths: NDArray[np.int64]) -> list[list[Bytes]]:
    """Return for each bucket every rank's message, as views of what came packed by rank."""
    ends = np.cumsum(lengths.reshape(-1)).reshape(lengths.shape)
    return [
        [packed[end - length : end] for end, length in zip(ends[:, bucket], lengths[:, bucket], strict=True)]
        for bucket in range(lengths.shape[1])
    ]
