"""Metrics without a communicator: this process is a rank of the job, and its workers are none."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from multiprocessing.queues import Queue
from typing import Any

import pytest

import mpisparse as ms

#: Run in a process of its own, as MPI may not be started in the one that runs the tests.
_ALONE = """
import mpisparse as ms
assert (ms.rank(), ms.size(), ms.is_main()) == (0, 1, True)
assert ms.mean(0.75) == 0.75
assert ms.mean({"loss": 0.75, "hits": [1, 2]}, samples=3)["hits"].tolist() == [1.0, 2.0]
assert ms.broadcast_object((1, {"a": b"b"})) == (1, {"a": b"b"})
print("right")
"""


def _ask(said: Queue[str]) -> None:
    for call in (ms.rank, ms.size, ms.is_main, lambda: ms.mean(1.0), lambda: ms.broadcast_object(1)):
        try:
            said.put(f"answered {call()}")
        except ms.ConfigError as error:
            said.put(str(error))


def test_one_process_is_rank_0_of_1() -> None:
    done = subprocess.run([sys.executable, "-c", _ALONE], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "right\n", done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_is_no_rank(method: str) -> None:
    """A DataLoader's worker that started MPI would take itself for rank 0."""
    context: Any = multiprocessing.get_context(method)
    said: Queue[str] = context.Queue()
    worker = context.Process(target=_ask, args=(said,), name="loader-1")
    worker.start()
    texts = [said.get(timeout=120) for _ in range(5)]
    worker.join(timeout=120)
    assert all("process loader-1 is a worker of a rank and none itself" in text for text in texts), texts
