"""Recorder: the last calls in which this rank met the others, so that a hang can be explained when it comes."""

from __future__ import annotations

from collections import Counter, deque
from time import monotonic_ns
from typing import Any, NoReturn, Protocol

from mpisparse.errors import CommError

#: Calls that are kept, of all communicators of a family together: some dozens of steps.
LENGTH = 256

#: The name of the communicator on which ranks wait whose programs have ended.
ENDED = "end of the program"


class Call:
    """One call that all ranks make together; a context that ends it. Costs a few microseconds.

    lane: the communicator it was made on. sequence: its number there, from 1, the same on all ranks.
    operation: such as "allgather". step: optimizer steps done before it. group: of buckets, where they leave in groups.
    counts: bytes by rank, where they differ. begun, ended: nanoseconds of `monotonic_ns`; `ended` is 0 until then.
    waits: whether a thread is inside the call until it ends; others were started, and end by themselves.
    """

    __slots__ = ("begun", "counts", "ended", "group", "lane", "operation", "sequence", "step", "waits")

    def __init__(self, lane: Lane, operation: str, counts: Any, group: int | None, waits: bool) -> None:
        recorder = lane.recorder
        lane.begun += 1
        self.lane, self.operation, self.counts, self.group, self.waits = lane, operation, counts, group, waits
        self.sequence = lane.begun
        self.step = recorder.step
        self.ended = 0
        self.begun = monotonic_ns()
        recorder.ring.append(self)
        if waits:
            recorder.waiting.add(self)

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """Note that the call is over, one way or another."""
        recorder = self.lane.recorder
        recorder.last_end = self.ended = monotonic_ns()
        recorder.waiting.discard(self)


class Lane:
    """The calls of one communicator. Their order is the same on all ranks, which that between lanes need not be.

    number: of the communicator in its family, the same on all ranks as making one is collective.
    kind, name: what it is for, and what it is called, which no other one of the family is. begun: calls so far.
    """

    __slots__ = ("begun", "kind", "name", "number", "recorder")

    def __init__(self, recorder: Recorder, number: int, kind: str, name: str) -> None:
        self.recorder, self.number, self.kind, self.name = recorder, number, kind, name
        self.begun = 0

    def call(self, operation: str, counts: Any = None, group: int | None = None) -> Call:
        """Return a call that the calling thread is in until the context ends."""
        return Call(self, operation, counts, group, True)

    def start(self, operation: str, counts: Any = None) -> Call:
        """Return a call that goes on beside the calling thread until somebody ends it."""
        return Call(self, operation, counts, None, False)


class GivenBack(Lane):
    """The lane of a communicator that was given back: no call begins there any more."""

    __slots__ = ("rank",)

    def __init__(self, lane: Lane, rank: int) -> None:
        super().__init__(lane.recorder, lane.number, lane.kind, lane.name)
        self.begun, self.rank = lane.begun, rank

    def call(self, operation: str, counts: Any = None, group: int | None = None) -> NoReturn:
        """Raise CommError."""
        self._refuse(operation)

    def start(self, operation: str, counts: Any = None) -> NoReturn:
        """Raise CommError."""
        self._refuse(operation)

    def _refuse(self, operation: str) -> NoReturn:
        raise CommError(
            f"rank {self.rank}: {operation} on the communicator {self.name!r}, which was given back by free() of it or "
            "of the one that it duplicates: duplicate another"
        )


class Guard(Protocol):
    """What watches a recorder for the whole program."""

    def stop(self) -> None:
        """Watch no longer."""


class Recorder:
    """What one rank did on a communicator and its duplicates: a ring of fixed size, written by every call.

    Other threads may read it at any time: what they see is a call older or newer, and never a half one.

    step: optimizer steps done, for calls to carry; whoever takes steps sets it.
    waiting: the calls that threads are in. last_end: when a call ended last, in nanoseconds of `monotonic_ns`.
    """

    def __init__(self, length: int = LENGTH) -> None:
        self.ring: deque[Call] = deque(maxlen=length)
        self.waiting: set[Call] = set()
        self.lanes: list[Lane] = []
        self._made: Counter[str] = Counter()
        #: What watches it, if `init` had it watched.
        self.guard: Guard | None = None
        self.step = 0
        self.last_end = monotonic_ns()

    def lane(self, name: str) -> Lane:
        """Return a new lane. Every rank has to make the same, in the same order. A name that is taken gets a number."""
        number, alike = self._made.total(), self._made[name]
        lane = Lane(self, number, name, f"{name} {alike + 1}" if alike else name)
        self._made[name] += 1
        self.lanes.append(lane)
        return lane

    def retire(self, lane: Lane) -> None:
        """Forget a lane on which no call will begin any more. Its number and name are not given again."""
        self.lanes.remove(lane)

    def longest_wait(self) -> Call | None:
        """Return the call that a thread has been in for longest, or None when none waits."""
        return min(self.waiting.copy(), key=lambda call: call.begun, default=None)

    def calls(self) -> list[Call]:
        """Return the calls that are kept, the oldest first, after those that threads are in and that fell out."""
        kept = list(self.ring.copy())
        return sorted(self.waiting.copy() - set(kept), key=lambda call: call.begun) + kept
