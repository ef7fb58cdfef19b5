"""The recorder: bounded, the same numbers on all ranks, and never a call open that has ended."""

from __future__ import annotations

import numpy as np
import pytest

from mpisparse.collectives import Flights
from mpisparse.comm import Communicator, run_ranks, solo
from mpisparse.comm.recorder import LENGTH
from mpisparse.errors import CommError


def test_the_same_calls_have_the_same_numbers_on_all_ranks() -> None:
    def one(comm: Communicator) -> list[tuple[str, str, int, int]]:
        other = comm.duplicate("other")
        comm.lane.recorder.step = 7
        other.allgather_bytes(b"x" * comm.rank)
        comm.barrier()
        other.broadcast(np.zeros(3, np.uint8))
        other.alltoallv(np.zeros(3, np.uint8), np.ones(3, np.int64), np.ones(3, np.int64))
        assert other.lane.recorder is comm.lane.recorder
        assert not comm.lane.recorder.waiting
        return [(c.lane.name, c.operation, c.sequence, c.step) for c in comm.lane.recorder.calls()]

    results = run_ranks(3, one)
    assert results[0] == results[1] == results[2]
    assert results[0] == [
        ("world", "duplicate", 1, 0),
        ("other", "allgather", 1, 7),
        ("other", "allgatherv", 2, 7),
        ("world", "barrier", 2, 7),
        ("other", "broadcast", 3, 7),
        ("other", "alltoallv", 4, 7),
    ]


def test_the_ring_is_of_fixed_size() -> None:
    comm = solo()
    for _ in range(3 * LENGTH):
        comm.allgather([1])
    calls = comm.lane.recorder.calls()
    assert len(calls) == LENGTH
    assert [call.sequence for call in calls] == list(range(2 * LENGTH + 1, 3 * LENGTH + 1))
    assert all(call.ended >= call.begun > 0 for call in calls)


def test_a_call_that_fails_has_ended() -> None:
    def one(comm: Communicator) -> None:
        if comm.rank == 1:
            raise ValueError("gone")
        with pytest.raises(CommError):
            comm.barrier()
        assert comm.lane.recorder.longest_wait() is None
        assert comm.lane.recorder.calls()[-1].ended

    with pytest.raises(ValueError, match="gone"):
        run_ranks(2, one)


def test_a_started_call_is_no_wait_and_ends_with_its_last_test() -> None:
    comm = solo()
    pending = comm.start_allgatherv(np.ones(4, np.uint8), np.array([4]))
    recorder = comm.lane.recorder
    call = recorder.calls()[-1]
    assert (call.operation, call.ended, recorder.longest_wait()) == ("started allgatherv", 0, None)
    while not pending.test():
        pass
    assert call.ended
    assert call.counts.tolist() == [4]


def test_waiting_for_a_flight_is_a_wait_with_its_group() -> None:
    comm = solo()
    flight = Flights(comm).begin(1)
    flight.send([np.ones(2, np.uint8)], 1)
    flight.wait(0)
    last = next(call for call in reversed(comm.lane.recorder.calls()) if call.lane.name == "landing")
    assert (last.operation, last.group, last.waits) == ("wait", 0, True)
    assert last.ended
