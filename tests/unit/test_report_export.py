"""Exports: what other tools read, checked by what their formats ask for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from analysis.brief import read_brief
from analysis.export.extra_p import extra_p_lines
from analysis.export.mllog import mllog_lines
from analysis.many import read_briefs
from analysis.study import studies_of
from tests.unit.report_runs import config, seconds_of, write_run, write_study

#: Keys of mlperf_logging/mllog/constants.py that a log here may have.
MLLOG_KEYS = {
    "init_start", "init_stop", "run_start", "run_stop", "block_start", "block_stop", "eval_start", "eval_stop",
    "eval_accuracy", "seed", "global_batch_size", "opt_name", "opt_base_learning_rate", "opt_weight_decay",
}  # fmt: skip


def test_extra_p_reads_the_lines(tmp_path: Path) -> None:
    """As its reader does: parameters from the first line, every path and metric at the same points, values a list."""
    write_study(tmp_path, ranks=(1, 2, 4), repeats=3, noise=0.005, steps=30)
    studies, _ = studies_of(read_briefs([tmp_path])[0])
    measurements: dict[tuple[str, str], dict[int, list[float]]] = {}
    for text in extra_p_lines(studies):
        assert "\n" not in text
        line = json.loads(text)
        assert set(line) == {"params", "callpath", "metric", "value"}
        assert set(line["params"]) == {"p"}
        assert all(isinstance(value, float | int) for value in line["value"])
        points = measurements.setdefault((line["callpath"], line["metric"]), {})
        assert line["params"]["p"] not in points
        points[line["params"]["p"]] = line["value"]
    assert len(measurements) == 5 * (2 + 8)
    assert {tuple(points) for points in measurements.values()} == {(1, 2, 4)}
    exchange = measurements["try->TopK 1 %->exchange", "time"]
    assert len(exchange[4]) == 3
    assert exchange[4] == pytest.approx([seconds_of(4, 0.01)["exchange"]] * 3, rel=0.05)


def events(lines: list[str]) -> list[dict[str, Any]]:
    found = []
    for line in lines:
        match = re.fullmatch(r":::MLLOG (\{.*\})", line)
        assert match, line
        found.append(json.loads(match[1]))
    return found


def test_mlperf_reads_the_log(tmp_path: Path) -> None:
    """As its compliance rules for HPC ask: fields in their order, init before run, blocks and evaluations closed."""
    run = write_run(tmp_path / "run", config(density=0.01), ranks=2, seed=5)
    found = events(list(mllog_lines([read_brief(run)])))
    for event in found:
        assert list(event) == ["namespace", "time_ms", "event_type", "key", "value", "metadata"]
        assert isinstance(event["time_ms"], int)
        assert {"file", "lineno"} <= set(event["metadata"])
        suffix = {"start": "INTERVAL_START", "stop": "INTERVAL_END"}.get(
            event["key"].rpartition("_")[2], "POINT_IN_TIME"
        )
        assert event["event_type"] == suffix
    keys = [event["key"] for event in found]
    assert set(keys) <= MLLOG_KEYS
    times = [event["time_ms"] for event in found]
    assert times == sorted(times)
    for key in ("init_stop", "run_start", "run_stop", "seed", "global_batch_size"):
        assert keys.count(key) == 1, key
    assert keys.index("init_start") < keys.index("init_stop") < keys.index("run_start") < keys.index("block_start")
    assert keys[-1] == "run_stop"
    assert found[-1]["metadata"]["status"] == "success"
    for what in ("block", "eval"):
        ends = [key for key in keys if key in (f"{what}_start", f"{what}_stop")]
        assert ends == [f"{what}_start", f"{what}_stop"] * 3
    assert all(e["metadata"]["epoch_count"] > 0 for e in found if e["key"] == "block_start")
    assert all("first_epoch_num" in e["metadata"] for e in found if e["key"].startswith("block"))
    assert all("epoch_num" in e["metadata"] for e in found if e["key"].startswith("eval"))
    values = {event["key"]: event["value"] for event in found if event["event_type"] == "POINT_IN_TIME"}
    assert (values["seed"], values["global_batch_size"], values["opt_name"]) == (5, 64, "sgd")
    assert values["eval_accuracy"] == pytest.approx(0.95)
    assert times[-1] - times[0] == 61_000


def test_a_run_without_times_of_day_has_the_times_of_its_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", noise=0.0, end=False, started="2026-11-24T10:00:00+00:00")
    path = run / "metrics.jsonl"
    path.write_text(re.sub(r', "unix_seconds": [0-9.]+', "", path.read_text()))
    found = events(list(mllog_lines([read_brief(run)])))
    assert found[0]["time_ms"] == 1_795_514_400_000
    assert found[-1]["metadata"]["status"] == "aborted"
    wanted = 60 * 1000 * sum(seconds_of(2, None).values())
    assert found[-1]["time_ms"] - found[0]["time_ms"] == pytest.approx(wanted, abs=2)
