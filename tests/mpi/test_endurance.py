"""Runs that last: nothing grows with the number of steps, and replicas stay equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpisparse.comm.recorder import LENGTH
from tests.growth import growth
from tests.launch import mpirun
from tests.mpi.endurance import LOOKS

#: Bytes that a process may grow by after its first fifth. In 10,000 steps that is 64 a step: a list that keeps a number
#: of each would be seen, and what allocators round up is not.
_GROWTH = 2**19

#: Every object of Python is then one of malloc, which knows what is allocated to the byte.
_COUNTED = {"PYTHONMALLOC": "malloc"}


@pytest.mark.parametrize("steps", [300, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_nothing_grows_while_steps_are_taken(steps: int, tmp_path: Path) -> None:
    output = tmp_path / "footprints.json"
    outcome = mpirun(
        3, "-m", "tests.mpi.endurance", str(steps), str(output), timeout=280 if steps < 1000 else 1700, env=_COUNTED
    )
    assert outcome.code == 0, outcome.text
    for rank, seen in enumerate(json.loads(output.read_text())):
        assert len(seen) == LOOKS
        after = seen[LOOKS // 5 :]
        settled, last = after[0], after[-1]
        print(f"rank {rank}: {settled} after a fifth, {last} at the end")
        # What is allocated, and what the system gave, which also has what no malloc knows of.
        for kind in ("heap", "memory"):
            looks = [look[kind] for look in after]
            assert growth(looks) < _GROWTH, (kind, looks)
        assert last["files"] == settled["files"], seen
        assert last["threads"] <= settled["threads"] + 1, seen  # a flight's thread may be about to end
        assert all(look["open"] == 0 for look in seen), seen
        assert all(look["recorded"] <= LENGTH for look in seen), seen
        assert last["lanes"] == settled["lanes"], seen
