"""The run directory: the record of how a run ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpisparse.comm import Communicator, run_ranks, solo
from mpisparse.errors import CheckpointError, NonFiniteError, alike
from mpisparse.training.directory import failure_recorded, record_end


def end(directory: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((directory / "end.json").read_text())
    return record


def test_the_record_says_finished_in_the_words_that_scripts_look_for(tmp_path: Path) -> None:
    run_ranks(3, lambda comm: record_end(comm, tmp_path, 24))
    text = (tmp_path / "end.json").read_text()
    assert text.startswith('{"schema": 1, "status": "finished", "exit_code": 0, "step": 24, "reason": "", "ranks": 3,')


def test_a_run_that_was_stopped_says_why_and_what_it_exits_with(tmp_path: Path) -> None:
    record_end(solo(), tmp_path, 12, 75, "rank 0: SIGUSR1")
    assert {key: end(tmp_path)[key] for key in ("status", "exit_code", "step", "reason")} == {
        "status": "stopped",
        "exit_code": 75,
        "step": 12,
        "reason": "rank 0: SIGUSR1",
    }


def test_slurms_job_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    record_end(solo(), tmp_path, 1)
    assert (end(tmp_path)["job"], end(tmp_path)["restart"]) == ("77", "2")


def test_an_error_of_all_ranks_is_recorded_and_one_of_a_rank_is_not(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError), failure_recorded(solo(), tmp_path):
        raise NonFiniteError("on this rank")
    assert not (tmp_path / "end.json").exists()
    (tmp_path / "metrics.jsonl").write_text('{"kind":"step","step":9}\n')
    with pytest.raises(NonFiniteError), failure_recorded(solo(), tmp_path):
        raise alike(NonFiniteError("on rank 1"))
    assert (end(tmp_path)["status"], end(tmp_path)["exit_code"], end(tmp_path)["step"]) == ("failed", 70, 9)
    assert end(tmp_path)["reason"] == "NonFiniteError: on rank 1"


def test_a_record_that_cannot_be_written_ends_all_ranks(tmp_path: Path) -> None:
    def law(comm: Communicator) -> None:
        with pytest.raises(CheckpointError, match=r"end\.json, the record that the run has ended, cannot be written"):
            record_end(comm, tmp_path / "gone", 1)

    run_ranks(2, law)
