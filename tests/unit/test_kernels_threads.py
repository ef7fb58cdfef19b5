"""Threads of passes: made once for a process, and none of a parent's in its child."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mpisparse.kernels.threads import WORTH, for_each_span, spans
from mpisparse.kernels.vectors import is_finite
from tests.launch import environment, run

NUMEL = 4 * WORTH


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def who(start: int, stop: int) -> threading.Thread:
    return threading.current_thread()


def test_passes_use_the_same_threads_again() -> None:
    meeting = threading.Barrier(4, timeout=60)

    def together(start: int, stop: int) -> threading.Thread:
        meeting.wait()
        return threading.current_thread()

    assert len(set(for_each_span(NUMEL, together))) == 4
    before = threading.active_count()
    met = {thread for _ in range(50) for thread in for_each_span(NUMEL, who)}
    assert threading.active_count() == before
    assert threading.current_thread() in met
    assert all(thread.is_alive() for thread in met)


def test_spans_come_in_order_whatever_the_number_of_threads() -> None:
    for threads in (1, 2, 3, 4, 7, 2):
        torch.set_num_threads(threads)
        assert for_each_span(NUMEL, lambda start, stop: (start, stop)) == spans(NUMEL)
        assert len(spans(NUMEL)) == min(threads, 4)


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_an_error_is_raised_when_all_spans_have_ended(bad: int) -> None:
    ended = []

    def action(start: int, stop: int) -> None:
        if start == spans(NUMEL)[bad][0]:
            raise ValueError(f"span {bad}")
        threading.Event().wait(0.05)
        ended.append(start)

    with pytest.raises(ValueError, match=f"span {bad}"):
        for_each_span(NUMEL, action)
    assert len(ended) == 3
    assert len(for_each_span(NUMEL, who)) == 4


def test_callers_side_by_side_do_not_wait_for_each_other() -> None:
    meeting = threading.Barrier(8, timeout=60)
    callers = [
        threading.Thread(target=for_each_span, args=(NUMEL, lambda start, stop: meeting.wait())) for _ in range(2)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not meeting.broken
    assert not any(caller.is_alive() for caller in callers)


def test_a_forked_process_has_threads_of_its_own() -> None:
    """As the workers of a DataLoader: its parent's threads are not there, and it must not wait for them."""
    assert is_finite(np.ones(NUMEL, np.float32))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)
            met = set(for_each_span(NUMEL, who))
            code = 0 if threading.current_thread() in met and all(thread.is_alive() for thread in met) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_finite(np.ones(NUMEL, np.float32))


#: Passes over 4 M entries on 4 threads in a process that has MPI, and how its memory grows with them.
PASSES = """
import sys
import numpy as np
import torch
from mpi4py import MPI
from mpisparse.kernels.passes import find
from mpisparse.kernels.threads import for_each_span
from tests.growth import growth, resident

torch.set_num_threads(4)
vector = np.zeros(1 << 22, np.float32)
indices, values = np.empty(1, np.uint32), np.empty(1, np.float32)

def scan(start, stop):
    return find(vector[start:stop], start, np.float32(1), indices, values)

passes, looks = int(sys.argv[1]), []
for number in range(passes):
    assert for_each_span(vector.size, scan) == [0] * 4
    if number % (passes // 30) == 0:
        looks.append(resident())
print(growth(looks[6:]) / (24 * (passes // 30)))
"""


@pytest.mark.parametrize("passes", [1200, pytest.param(30_000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_passes_of_a_process_with_mpi_leave_no_bytes(passes: int) -> None:
    outcome = run([sys.executable, "-c", PASSES, str(passes)], timeout=1100, env=environment(), fresh=True)
    assert outcome.code == 0, outcome.text
    # Each thread that is made leaves 300 bytes and more in such a process, and a pass would make four.
    assert float(outcome.stdout) < 150, outcome.text
