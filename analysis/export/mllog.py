"""MLPerf's log: lines of ":::MLLOG" and a JSON object, as mlperf_logging/mllog of https://github.com/mlcommons/logging
writes them, with the keys of its constants and in the order that its compliance rules ask for.

What only a submitter knows (submission_org and the like, cache_clear) is not there: a run is no submission.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from analysis.brief import Brief
from analysis.study import flat

START, END, POINT = "INTERVAL_START", "INTERVAL_END", "POINT_IN_TIME"


def mllog_lines(briefs: Sequence[Brief]) -> Iterator[str]:
    """Yield the lines of all runs, one run after another; the namespace of a run is its directory's name."""
    for brief in briefs:
        yield from _run(brief)


def _run(brief: Brief) -> Iterator[str]:
    name, config = brief.directory.name, flat(brief.config)
    begin = _begin(brief)
    about: dict[str, Any] = {
        "seed": config.get("seed"),
        "global_batch_size": round(brief.means["samples"]),
        "opt_name": str(config.get("optimizer.name", "")).lower() or None,
        "opt_base_learning_rate": config.get("optimizer.lr"),
        "opt_weight_decay": config.get("optimizer.weight_decay"),
    }
    yield mllog_line(name, begin, START, "init_start", None, {})
    for key, value in about.items():
        if value is not None:
            yield mllog_line(name, begin, POINT, key, value, {})
    yield mllog_line(name, begin, END, "init_stop", None, {})
    yield mllog_line(name, begin, START, "run_start", None, {})
    yield from _evaluations(brief, name, begin)
    finished = brief.state == "finished"
    status = {"status": "success" if finished else "aborted"}
    yield mllog_line(name, _end(brief, begin), END, "run_stop", None, status)


def _evaluations(brief: Brief, name: str, begin: int) -> Iterator[str]:
    """Yield for each evaluation the block of epochs before it, and the evaluation."""
    first, last = 0, begin
    for i, line in enumerate(line for line in brief.events if line["kind"] == "evaluation"):
        at, epoch = max(last, _milliseconds(line, begin, brief.evaluations["seconds"][i])), int(line.get("epoch", 0))
        if line["step"]:
            block = {"first_epoch_num": first}
            yield mllog_line(name, last, START, "block_start", None, {**block, "epoch_count": max(1, epoch - first)})
            yield mllog_line(name, at, END, "block_stop", None, block)
        yield mllog_line(name, at, START, "eval_start", None, {"epoch_num": epoch})
        if line.get("accuracy") is not None:
            yield mllog_line(name, at, POINT, "eval_accuracy", line["accuracy"], {"epoch_num": epoch})
        yield mllog_line(name, at, END, "eval_stop", None, {"epoch_num": epoch})
        first, last = epoch, at


def mllog_line(namespace: str, time_ms: int, event: str, key: str, value: Any, metadata: dict[str, Any]) -> str:
    """Return a line. `file` and `lineno`, which the reference puts into the metadata, say where it was made."""
    where = {"file": "metrics.jsonl", "lineno": 0}
    content = {
        "namespace": namespace,
        "time_ms": time_ms,
        "event_type": event,
        "key": key,
        "value": value,
        "metadata": {**where, **metadata},
    }
    return f":::MLLOG {json.dumps(content)}"


def _begin(brief: Brief) -> int:
    """Return when the run started, in milliseconds since 1970; 0 where neither log nor environment tells."""
    for line in brief.events:
        if line["kind"] == "start" and "unix_seconds" in line:
            return round(1000 * float(line["unix_seconds"]))
    started = brief.environment.get("started")
    return round(1000 * datetime.fromisoformat(started).timestamp()) if isinstance(started, str) else 0


def _milliseconds(line: dict[str, Any], begin: int, seconds: float) -> int:
    """Return the time of an event; in logs of before it was written, the seconds of steps since the start."""
    if "unix_seconds" in line:
        return round(1000 * float(line["unix_seconds"]))
    return begin + round(1000 * float(seconds))


def _end(brief: Brief, begin: int) -> int:
    last = brief.events[-1] if brief.events else {}
    seconds = float(brief.curve["seconds"][-1])
    return max(begin, _milliseconds(last, begin, seconds))
