"""Preemption: what is noted of signals and of time, and how all ranks come to know."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

import mpisparse as ms
from mpisparse.comm import Communicator, run_ranks
from mpisparse.runtime.preemption import SIGNALS


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_its_handler_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with ms.Preemption() as preemption:
        assert preemption.reason == ""
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert preemption.reason == number.name
    assert signal.getsignal(number) is before
    assert preemption.reason == number.name


def test_a_program_that_leaves_is_not_killed_by_a_signal_sent_twice() -> None:
    program = (
        "import os, signal, mpisparse\n"
        "try:\n"
        "    with mpisparse.Preemption():\n"
        "        os.kill(os.getpid(), signal.SIGUSR1)\n"
        "        raise SystemExit(75)\n"
        "finally:\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 75, done.stderr


def test_a_second_sigterm_ends_the_process() -> None:
    program = (
        "import os, signal, mpisparse\n"
        "with mpisparse.Preemption():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still there', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('too long', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "still there\n"), done.stderr


def test_time_is_kept_back_for_the_longest_step_and_save() -> None:
    preemption = ms.Preemption(time_limit=1e6)
    # A save that was never measured counts as 30 s, or a quarter of the limit.
    assert preemption.needed == pytest.approx(2 * 30 + 1)
    assert ms.Preemption(time_limit=40).needed == pytest.approx(2 * 10 + 1)
    preemption.saved(3)
    preemption.saved(2)
    assert preemption.needed == pytest.approx(2 * 3 + 1)
    preemption.stepped()
    preemption.stepped()
    assert 7 < preemption.needed < 8
    assert preemption.reason == ""
    preemption.saved(1e6)
    assert "s are left, and stopping may take 2000001 s" in preemption.reason
    preemption.time_limit = 0
    assert preemption.reason == ""


def test_the_time_limit_counts_from_the_start_of_the_process() -> None:
    preemption = ms.Preemption(time_limit=1e-3)
    preemption.saved(0)
    assert preemption.reason.startswith("-")


def test_a_limit_below_zero_is_refused() -> None:
    with pytest.raises(ms.ConfigError, match=r"-1 s: give seconds"):
        ms.Preemption(time_limit=-1)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_one_rank_asks_and_all_know_after_the_same_step(size: int) -> None:
    """The flag travels with what ranks tell each other anyway: no step has a call more."""

    def law(comm: Communicator) -> list[tuple[bool, int]]:
        torch.manual_seed(0)
        model = nn.Linear(8, 4)
        optimizer = ms.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), model, sparsifier=ms.TopK(density=0.2), comm=comm,
            say=lambda line: None,
        )  # fmt: skip
        seen = []
        for step in range(3):
            if step == 1 and comm.rank == size - 1:
                optimizer.request_stop()
            calls = len(comm.lane.recorder.ring)
            optimizer.zero_grad()
            model(torch.full((2, 8), float(comm.rank + 1))).sum().backward()
            optimizer.step()
            seen.append((optimizer.stopping, len(comm.lane.recorder.ring) - calls))
        return seen

    for seen in run_ranks(size, law):
        assert [stopping for stopping, _ in seen] == [False, True, True]
        assert len({calls for _, calls in seen}) == 1
