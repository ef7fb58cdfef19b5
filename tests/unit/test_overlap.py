"""Overlap without ranks: groups, the flight's thread, hidden time, and phases inside phases."""

from __future__ import annotations

import gc
import threading
import time
from time import perf_counter_ns

import numpy as np
import pytest
from numpy.typing import NDArray

from mpisparse.collectives import Flights
from mpisparse.comm import Pending, solo
from mpisparse.comm.base import Bytes, Counts
from mpisparse.comm.local import LocalCommunicator, Meeting
from mpisparse.errors import CommError
from mpisparse.flat import Bucket
from mpisparse.overlap import group_buckets
from mpisparse.phases import Phases


class Slow(Pending[NDArray[np.uint8]]):
    """A transfer that takes a known number of tests, and counts them."""

    def __init__(self, inner: Pending[Bytes], tests: int) -> None:
        super().__init__(np.empty(0, np.uint8))
        self.inner, self.left = inner, tests

    def _test(self) -> bool:
        self.left -= 1
        if self.left <= 0 and self.inner.test():
            self._result = self.inner.result
            return True
        return False


class SlowCommunicator(LocalCommunicator):
    """One rank whose transfers take `tests` calls of test()."""

    tests = 20

    def __init__(self) -> None:
        super().__init__(Meeting(1, 1.0), 0, 1)
        self.started: list[Slow] = []

    def _duplicate(self) -> LocalCommunicator:
        return self

    def _start_allgatherv(self, payload: Bytes, counts: Counts, out: Bytes) -> Pending[Bytes]:
        self.started.append(Slow(super()._start_allgatherv(payload, counts, out), self.tests))
        return self.started[-1]


def test_a_flight_lands_although_the_main_thread_calls_nothing() -> None:
    comm = SlowCommunicator()
    flight = Flights(comm).begin(2)
    flight.send([np.full(3, 7, np.uint8), np.full(2, 8, np.uint8)], 2)
    flight.send([np.full(4, 9, np.uint8)], 1)
    limit = time.monotonic() + 20
    while not all(landed.is_set() for landed in flight._landed):
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert [pending.left for pending in comm.started] == [0, 0]
    arrived = perf_counter_ns()
    first, second = flight.wait(0), flight.wait(1)
    assert first is not None
    assert second is not None
    assert [message.tolist() for bucket in first for message in bucket] == [[7] * 3, [8] * 2]
    assert second[0][0].tolist() == [9] * 4
    hidden = flight.seconds_before(arrived)
    assert hidden > 0
    assert flight.seconds_before(arrived + 10**12) == hidden
    assert flight.seconds_before(0) == 0


def test_a_group_that_failed_brings_nothing_and_the_next_flight_uses_the_same_rooms() -> None:
    flights = Flights(solo())
    flight = flights.begin(2)
    flight.send(None, 3)
    flight.send([np.ones(5, np.uint8)], 1)
    assert flight.wait(0) is None
    received = flight.wait(1)
    assert received is not None
    room = flights.room(1, 5)
    again = flights.begin(2)
    again.send([np.zeros(1, np.uint8)], 1)
    again.send([np.zeros(4, np.uint8)], 1)
    assert again.wait(1) is not None
    assert flights.room(1, 5) is room
    assert received[0][0].tolist() == [0, 0, 0, 0, 1]


def test_an_error_of_the_thread_is_raised_by_wait() -> None:
    comm = solo()
    flights = Flights(comm)

    def no_room(*call: object) -> Bytes:
        raise CommError("no room")

    flights.payloads._check_gather = no_room  # type: ignore[method-assign, assignment]
    flight = flights.begin(1)
    flight.send([np.ones(5, np.uint8)], 1)
    with pytest.raises(CommError, match="no room"):
        flight.wait(0)


def test_one_thread_makes_all_flights_and_ends_with_them() -> None:
    flights = Flights(solo())
    pilots = set()
    for _ in range(3):
        flight = flights.begin(1)
        flight.send([np.ones(5, np.uint8)], 1)
        flight.wait(0)
        pilots |= {thread for thread in threading.enumerate() if thread.name == "mpisparse-flight"}
    (pilot,) = [thread for thread in pilots if thread is flights._pilot]
    del flights, flight
    gc.collect()
    pilot.join(10)
    assert not pilot.is_alive()


def test_a_result_is_not_read_before_its_end() -> None:
    pending = Slow(solo().start_allgatherv(np.ones(2, np.uint8), np.array([2])), 2)
    assert not pending.test()
    with pytest.raises(CommError, match="before its end"):
        _ = pending.result
    assert pending.test()
    assert pending.result.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([3, 3, 3, 3], 6, [[0, 1], [2, 3]]),
        ([5, 3, 3, 1], 6, [[0], [1, 2], [3]]),
        ([9, 1, 1], 6, [[0], [1, 2]]),
        ([2, 2], 1, [[0], [1]]),
        ([], 6, []),
    ],
)
def test_groups_keep_the_order_and_the_limit(sizes: list[int], limit: int, expected: list[list[int]]) -> None:
    ends = np.cumsum([0, *sizes])
    buckets = [Bucket(i, int(ends[i]), int(ends[i + 1]), dense=False) for i in range(len(sizes))]
    assert [[bucket.index for bucket in group] for group in group_buckets(buckets, limit)] == expected


def test_a_phase_inside_another_takes_its_time_away_from_it() -> None:
    phases = Phases()
    begin = time.perf_counter()
    with phases("compute"):
        time.sleep(0.01)
        with phases("sparsify"):
            time.sleep(0.03)
            with phases("encode"):
                time.sleep(0.02)
        with phases("encode"):
            time.sleep(0.01)
    whole = time.perf_counter() - begin
    spent = phases.take()
    assert sum(spent.values()) == pytest.approx(whole, rel=0.05)
    assert spent["sparsify"] >= 0.03
    assert spent["encode"] >= 0.03
    assert spent["compute"] < whole - 0.055
