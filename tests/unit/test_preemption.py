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
from mpisparse.runtime.preemption import SIGNALS, exit_code_of


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


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
def test_what_schedulers_send_twice_is_noted_once(number: str) -> None:
    """A launcher passes on what its ranks got as well; whoever saves meanwhile is to save to the end."""
    program = (
        "import os, signal, mpisparse\n"
        "with mpisparse.Preemption() as preemption:\n"
        "    for _ in range(3):\n"
        f"        os.kill(os.getpid(), signal.{number})\n"
        "    print(preemption.reason, preemption.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"{number} 75\n"), done.stderr


def test_a_second_ctrl_c_ends_the_program_and_the_same_one_sent_twice_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    with ms.Preemption() as preemption:
        monkeypatch.setattr("mpisparse.runtime.preemption.monotonic", lambda: now[0])
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert (preemption.reason, preemption.exit_code) == ("SIGINT", 130)
        now[0] += 5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_is_noted_only_where_there_is_something_to_save() -> None:
    with ms.Preemption(interrupts=False) as preemption:
        assert preemption.interrupts_that_end == 1
        with preemption.holding_interrupts():
            assert preemption.interrupts_that_end == 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reason == ""
        with preemption.holding_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reason == "SIGINT"


@pytest.mark.parametrize("reasons", [["", "SIGINT"], ["SIGTERM", "SIGINT"], ["SIGINT", "3 s are left"]])
def test_one_rank_at_the_keyboard_is_enough_for_130(reasons: list[str]) -> None:
    assert exit_code_of(reasons) == 130
    assert exit_code_of(["", "SIGTERM", "3 s are left"]) == 75


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
