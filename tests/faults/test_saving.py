"""A process that is killed while it saves, at any moment, leaves a complete checkpoint: the older one or the new."""

from __future__ import annotations

import sys

import pytest

from tests.launch import run


def kill_everywhere(stride: int) -> list[int]:
    """Return how many places were tried in each case: every one of that many."""
    command = [sys.executable, "-m", "tests.faults.saving", str(stride)]
    outcome = run(command, timeout=280, env={"OMP_NUM_THREADS": "1"})
    assert outcome.code == 0, outcome.text
    print(outcome.stdout)
    return [int(line.split()[-2]) for line in outcome.stdout.splitlines()]


def test_a_kill_in_one_of_many_places_of_a_save_leaves_a_good_checkpoint() -> None:
    assert sum(kill_everywhere(9)) > 60


@pytest.mark.long
def test_a_kill_in_any_place_of_a_save_leaves_a_good_checkpoint() -> None:
    assert sum(kill_everywhere(1)) > 600
