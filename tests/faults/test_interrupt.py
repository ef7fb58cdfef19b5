"""Ctrl-C, and a launcher that is gone: the job ends within seconds, whatever its ranks are doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch import Outcome, environment, find_mpirun, kill_tree

READY = "import mpisparse as ms, sys, time\ncomm = ms.init(banner=False)\nsys.stdout.write('ready\\n')\n"

#: Seconds, far more than are needed, and far fewer than the watchdog's 600.
LIMIT = 100.0


def launch_and(act: Callable[[int], object], code: str, cwd: Path, lines: int = 2) -> Outcome:
    """Return how two ranks ended, on whose launcher `act` is let loose once they have printed so many lines."""
    begin = time.monotonic()
    child = subprocess.Popen(
        [find_mpirun(), "-n", "2", sys.executable, "-u", "-c", code], cwd=cwd, env=environment(), text=True,
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    try:
        said = [child.stdout.readline() for _ in range(lines)]
        act(child.pid)
        stdout, stderr = child.communicate(timeout=LIMIT)
    finally:
        kill_tree(child.pid)
    return Outcome(child.returncode, "".join(said) + stdout, stderr, time.monotonic() - begin)


def interrupt(launcher: int) -> None:
    """Send what Ctrl-C sends."""
    os.kill(launcher, signal.SIGINT)


def children(process: int) -> list[int]:
    """Return the processes that a process has started."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


def is_there(process: int) -> bool:
    """Return True for a process that has not ended, be its end noticed or not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_ctrl_c_ends_a_program_whose_ranks_wait_for_one_in_its_own_code(tmp_path: Path) -> None:
    code = READY + "if comm.rank == 0: time.sleep(1000)\ncomm.barrier()\n"
    outcome = launch_and(interrupt, code, tmp_path)
    assert outcome.code == 130, outcome.text
    assert "[rank 0 of 2] KeyboardInterrupt" in outcome.stderr


def test_ctrl_c_ends_ranks_that_are_all_blocked_inside_mpi(tmp_path: Path) -> None:
    """They wait for each other on different communicators, where Python can raise nothing."""
    code = (
        "import mpisparse as ms, sys, threading, time\n"
        "comm = ms.init(banner=False)\n"
        "other = comm.duplicate()\n"
        "def tell():\n"
        "    while comm.lane.recorder.longest_wait() is None: time.sleep(0.01)\n"
        "    time.sleep(0.5)  # from there into the library\n"
        "    sys.stdout.write('ready\\n')\n"
        "threading.Thread(target=tell, daemon=True).start()\n"
        "(comm if comm.rank else other).barrier()\n"
    )
    outcome = launch_and(interrupt, code, tmp_path)
    assert outcome.code == 130, outcome.text
    assert "is blocked in MPI after Ctrl-C: the job is ended" in outcome.stderr


def test_ctrl_c_ends_a_start_that_waits_for_a_rank(tmp_path: Path) -> None:
    """One rank is inside MPI's start, and cannot hear Python; the other comes to it never."""
    code = (
        "import time\nfrom mpisparse.comm.launcher import promised_rank\n"
        "print('ready', flush=True)\nif promised_rank() == '1': time.sleep(1000)\n" + READY
    )

    def later(launcher: int) -> None:
        deadline = time.monotonic() + LIMIT
        ranks = [rank for proxy in children(launcher) for rank in children(proxy)] or children(launcher)
        # The process that watches MPI's start is there while it lasts.
        while not any(children(rank) for rank in ranks):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
        interrupt(launcher)

    outcome = launch_and(later, code, tmp_path)
    assert outcome.code != 0, outcome.text


@pytest.mark.parametrize("where", ["time.sleep(1000)", "comm.duplicate().barrier()"])
def test_ranks_whose_launcher_is_killed_end_by_themselves(where: str, tmp_path: Path) -> None:
    """The process that started them: no signal reaches them any more, and nothing of MPI tells them."""
    ranks: list[int] = []

    def kill_proxy(launcher: int) -> None:
        (proxy,) = children(launcher)
        ranks.extend(children(proxy))
        if len(ranks) != 2:
            pytest.skip(f"this mpirun starts its ranks otherwise: {ranks}")
        os.kill(proxy, signal.SIGKILL)

    begin = time.monotonic()
    try:
        outcome = launch_and(kill_proxy, READY + f"if comm.rank: comm.duplicate()\n{where}\n", tmp_path)
        while any(is_there(rank) for rank in ranks):
            assert time.monotonic() < begin + LIMIT, outcome.text
            time.sleep(0.05)
    finally:
        for rank in ranks:
            if is_there(rank):
                os.kill(rank, signal.SIGKILL)
    assert outcome.code != 0, outcome.text
    for rank in range(2):
        words = (tmp_path / "crash" / f"rank-{rank:05d}.orphan").read_text()
        assert words.startswith(f"rank {rank} of 2 (process {ranks[0]}") or f"(process {ranks[1]}" in words
