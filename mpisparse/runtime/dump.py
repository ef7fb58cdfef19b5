"""Dumps: what a rank was doing when a watchdog ended the job, in `crash/`. Described in docs/run-directory.md."""

from __future__ import annotations

import faulthandler
import json
import sys
import threading
import traceback
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np

from mpisparse.comm.recorder import Call, Recorder
from mpisparse.errors import ConfigError
from mpisparse.files import read_json, replace_file, write_text

SCHEMA = 1

Dump = dict[str, Any]


def make_dump(recorder: Recorder, **about: object) -> Dump:
    """Return what this process's threads are doing, and the last calls that it made together with the others.

    Times are seconds before now, so that the clocks of several machines need not agree.

    Args:
        about: whatever else is to be told, such as the rank.
    """
    now = monotonic_ns()
    waiting = recorder.longest_wait()
    return {
        "schema": SCHEMA,
        **about,
        "written": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "steps": recorder.step,
        "seconds_since_last_call": (now - recorder.last_end) * 1e-9,
        "waiting": None if waiting is None else _call(waiting, now),
        "lanes": [{"number": lane.number, "name": lane.name, "calls": lane.begun} for lane in list(recorder.lanes)],
        "calls": [_call(call, now) for call in recorder.calls()],
        "stacks": _stacks(),
    }


def write_dump(directory: Path, dump: Dump) -> None:
    """Write `rank-NNNNN.stacks`, all threads', and then `rank-NNNNN.json`, whole or not at all. May raise OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    path = dump_path(directory, dump["rank"])
    replace_file(path.with_suffix(".stacks"), faulthandler.dump_traceback)
    write_text(path, json.dumps(dump, indent=1) + "\n")


def dump_path(directory: Path, rank: int) -> Path:
    """Return where the dump of a rank lies."""
    return directory / f"rank-{rank:05d}.json"


def read_dumps(directory: Path, job: str | None = None) -> dict[int, Dump]:
    """Return the dumps of one job by rank.

    Args:
        job: which one; by default the last that left any.

    Raises:
        ConfigError: there are none.
    """
    dumps = [dump for path in sorted(directory.glob("rank-*.json")) if (dump := _read(path)) is not None]
    if job is None:
        job = max(dumps, key=lambda dump: str(dump["written"]), default={"job": None})["job"]
    found = {int(dump["rank"]): dump for dump in dumps if dump["job"] == job}
    if not found:
        raise ConfigError(
            f"{directory} holds no dump of a rank (rank-00000.json and so on): give the crash/ directory that the "
            "watchdog named, or the run directory that has it"
        )
    return found


def _read(path: Path) -> Dump | None:
    """Return a dump, or None where a file is not one, such as one of another version."""
    try:
        dump = read_json(path)
    except (OSError, ValueError):
        return None
    return dump if isinstance(dump, dict) and dump.get("schema") == SCHEMA else None


def _call(call: Call, now: int) -> dict[str, object]:
    ended = call.ended
    return {
        "sequence": call.sequence,
        "operation": call.operation,
        "lane": call.lane.number,
        "name": call.lane.name,
        "step": call.step,
        "group": call.group,
        "counts": None if call.counts is None else np.asarray(call.counts).tolist(),
        "begun_seconds_ago": (now - call.begun) * 1e-9,
        "ended_seconds_ago": (now - ended) * 1e-9 if ended else None,
    }


def _stacks() -> dict[str, list[tuple[str, int, str]]]:
    """Return the stack of every thread of Python but this one, the innermost frame first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(number, f"thread {number}"): [
            (entry.filename, entry.lineno or 0, entry.name) for entry in reversed(traceback.extract_stack(frame))
        ]
        for number, frame in sys._current_frames().items()
        if number != threading.get_ident()
    }
