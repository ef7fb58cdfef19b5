"""Runs that last: nothing grows with the number of steps, and replicas stay equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpisparse.comm.recorder import LENGTH
from tests.launch import mpirun

#: Bytes that a process may grow by after its first fifth. In 10,000 steps that is 64 a step: a list that keeps a number
#: of each would be seen, and what allocators round up is not.
_GROWTH = 2**19


@pytest.mark.parametrize("steps", [300, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_nothing_grows_while_steps_are_taken(steps: int, tmp_path: Path) -> None:
    output = tmp_path / "footprints.json"
    outcome = mpirun(3, "-m", "tests.mpi.endurance", str(steps), str(output), timeout=280 if steps < 1000 else 1700)
    assert outcome.code == 0, outcome.text
    for rank, seen in enumerate(json.loads(output.read_text())):
        assert len(seen) == 10
        settled, last = seen[1], seen[-1]
        print(f"rank {rank}: {settled} after a fifth, {last} at the end")
        assert last["memory"] - settled["memory"] < _GROWTH, seen
        assert last["files"] == settled["files"], seen
        assert last["threads"] <= settled["threads"] + 1, seen  # a flight's thread may be about to end
        assert all(look["open"] == 0 for look in seen), seen
        assert all(look["recorded"] <= LENGTH for look in seen), seen
        assert last["lanes"] == settled["lanes"], seen
