"""The run log: merged over ranks, and taken up where a resumed run goes on."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpisparse.comm import Communicator, run_ranks, solo
from mpisparse.exchange import Traffic
from mpisparse.files import replace_file
from mpisparse.phases import NAMES, Phases
from mpisparse.runtime import start
from mpisparse.runtime.runlog import RunLog, StepRecord
from mpisparse.runtime.startup import processor
from mpisparse.wire import HEADER_SIZE


def record(step: int, rank: int = 0) -> StepRecord:
    seconds = dict.fromkeys(NAMES, 0.25 * (rank + 1))
    traffic = Traffic(payload=100 + rank, received=20, dense=40, count=3 + rank, numel=100, messages=2)
    return StepRecord(step, 0, 0.1, 2.0 * rank, rank, 6, traffic, seconds=seconds, hidden=0.5 * rank)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_steps_are_merged_over_ranks(tmp_path: Path) -> None:
    def one(comm: Communicator) -> list[dict[str, Any]]:
        log = RunLog(tmp_path, comm)
        for step in (1, 2):
            log.step(record(step, comm.rank))
        merged = log.flush()
        log.close()
        return merged

    merged = run_ranks(3, one)
    assert merged[0] == merged[1] == merged[2] == lines(tmp_path / "metrics.jsonl")
    first = merged[0][0]
    assert (first["samples"], first["loss"]) == (3, 6.0 / 3)
    assert (first["payload_bytes"], first["received_bytes"], first["dense_bytes"]) == (303, 60, 120)
    assert (first["count"], first["entries"]) == (12, 300)
    assert (first["messages"], first["gradients"]) == (6, 6)
    assert first["coding_bytes"] == 303 - 6 * HEADER_SIZE
    assert "sent_square" not in first


def test_squares_are_added_up_where_there_is_a_gauge(tmp_path: Path) -> None:
    def one(comm: Communicator) -> list[dict[str, Any]]:
        log = RunLog(tmp_path, comm)
        kept = record(1, comm.rank)
        log.step(replace(kept, traffic=replace(kept.traffic, squares=(1.0 + comm.rank, 0.25))))
        merged = log.flush()
        log.close()
        return merged

    first = run_ranks(3, one)[0][0]
    assert (first["gradient_square"], first["sent_square"]) == (6.0, 0.75)


def test_slowest_and_own_seconds(tmp_path: Path) -> None:
    def one(comm: Communicator) -> list[dict[str, Any]]:
        log = RunLog(tmp_path, comm)
        for step in (1, 2):
            log.step(record(step, comm.rank))
        merged = log.flush()
        log.close()
        return merged

    first = run_ranks(3, one)[0][0]
    assert first["seconds"]["compute"] == 0.5
    assert first["seconds_slowest"]["compute"] == 0.75
    assert first["hidden_seconds"] == 0.5
    assert sum(first["seconds"].values()) == 0.5 * len(NAMES)
    assert lines(tmp_path / "ranks" / "rank-00002.jsonl")[0]["hidden_seconds"] == 1.0
    assert [line["count"] for line in lines(tmp_path / "ranks" / "rank-00002.jsonl")] == [5, 5]


def test_a_run_that_begins_anew_begins_its_log(tmp_path: Path) -> None:
    """What was evaluated before the first step is not there twice after a stop before the first checkpoint."""
    for _ in range(2):
        log = RunLog(tmp_path, solo())
        log.event("start", 0)
        log.event("evaluation", 0, loss=1.0)
        log.step(record(1))
        log.flush()
        log.close()
    assert [line["kind"] for line in lines(tmp_path / "metrics.jsonl")] == ["start", "evaluation", "step"]


def test_a_resumed_run_cuts_off_what_comes_again_and_what_is_torn(tmp_path: Path) -> None:
    log = RunLog(tmp_path, solo())
    for step in (1, 2, 3):
        log.step(record(step))
    log.flush()
    log.event("evaluation", 2, loss=1.0)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind":"step","step":1,"torn')
    log = RunLog(tmp_path, solo(), start_step=2)
    log.step(record(3))
    log.flush()
    log.close()
    kinds = [(line["kind"], line["step"]) for line in lines(tmp_path / "metrics.jsonl")]
    assert kinds == [("step", 1), ("step", 2), ("evaluation", 2), ("step", 3)]
    assert [line["step"] for line in lines(tmp_path / "ranks" / "rank-00000.jsonl")] == [1, 2, 3]


def test_events_tell_the_time_of_day(tmp_path: Path) -> None:
    before = time.time()
    log = RunLog(tmp_path, solo())
    log.event("start", 0, ranks=1)
    log.step(record(1))
    log.flush()
    log.close()
    start, step = lines(tmp_path / "metrics.jsonl")
    assert before - 0.001 <= start["unix_seconds"] <= time.time() + 0.001
    assert "unix_seconds" not in step


def test_nodes_and_processors_are_named_once_each() -> None:
    found = run_ranks(3, lambda comm: start(comm, banner=False)[1])
    assert found[0] == found[1] == found[2]
    assert len(found[0].hosts) == 1
    assert found[0].processors == (processor(),)


def test_files_of_ranks_that_are_no_more_are_removed(tmp_path: Path) -> None:
    run_ranks(3, lambda comm: RunLog(tmp_path, comm).close())
    run_ranks(2, lambda comm: RunLog(tmp_path, comm).close())
    assert sorted(path.name for path in (tmp_path / "ranks").iterdir()) == ["rank-00000.jsonl", "rank-00001.jsonl"]


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path, solo())
    log.step(replace(record(1), loss_sum=float("nan"), samples=4))
    assert log.flush()[0]["loss"] is None
    log.close()
    assert lines(tmp_path / "metrics.jsonl")[0]["loss"] is None


def test_a_failed_rewrite_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fail)
    assert path.read_text() == "old"


def test_phases_add_up_and_start_again() -> None:
    phases = Phases()
    with phases("compute"):
        pass
    with pytest.raises(KeyError), phases("apply"):
        raise KeyError
    first = phases.take()
    assert set(first) == set(NAMES)
    assert first["compute"] > 0
    assert first["apply"] > 0
    assert set(phases.take().values()) == {0.0}
