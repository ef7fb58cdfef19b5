"""What an asynchronous run leaves behind: the lines of its log, and the rows of its closing table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpisparse.files import write_text
from mpisparse.runtime.runlog import SCHEMA, writes
from mpisparse.version import __version__

Fields = Mapping[str, Any]


def write_rank(directory: Path, rank: int, step: int, fields: Fields) -> None:
    """Write the file of one rank, a single line; `step` are the updates of all ranks."""
    with writes(directory / "ranks"):
        (directory / "ranks").mkdir(exist_ok=True)
    _write(directory / "ranks" / f"rank-{rank:05d}.jsonl", [{"step": step, **fields}])


def write_metrics(directory: Path, ranks: int, evaluations: Sequence[Fields], end: Fields) -> None:
    """Write metrics.jsonl: a start, the evaluations, an end. For rank 0 alone, when all else is written."""
    start = {"kind": "start", "step": 0, "ranks": ranks, "steps": end["updates"], "mpisparse": __version__}
    middle = [{"kind": "evaluation", **evaluation} for evaluation in evaluations]
    _write(directory / "metrics.jsonl", [start, *middle, {"kind": "end", "step": end["updates"], **end}])


def summary_rows(evaluations: Sequence[Fields], end: Fields, numel: int, size: int) -> list[tuple[str, str]]:
    """Return the rows of the closing table.

    Args:
        evaluations: as in the log; the last one with "loss" and "accuracy" on the test set.
        end: the fields of the log's last line. numel: parameters. size: ranks.
    """
    first, last = evaluations[0], evaluations[-1]
    updates, entries, seconds = end["updates"], end["entries_written"], end["wall_seconds"]
    stale = end["staleness"]
    conflicts = "not told by MPI"
    if end["conflicts"] is not None:
        conflicts = f"{end['conflicts']} failed attempts, {end['conflicts'] / max(1, entries):.2e} an entry written"
    return [
        (
            "train objective",
            f"{last['objective']:.6f} after {last['passes']:.4g} passes, {first['objective']:.6f} at first",
        ),
        ("test loss", f"{last['loss']:.4f}"),
        ("test accuracy", f"{last['accuracy']:.2%}"),
        ("time", f"{1e3 * seconds:.1f} ms for {updates} updates, {1e6 * seconds / updates:.3g} us an update"),
        ("entries written", f"{entries / updates:.4g} of {numel} an update"),
        ("conflicts", conflicts),
        ("waiting", f"{end['waiting_seconds'] / (size * seconds):.2%} of the ranks' time"),
        ("staleness", f"{stale['mean']:.3g} updates of others on average, {stale['max']} at most"),
        ("window", end["window"]),
    ]


def _write(path: Path, lines: Sequence[Fields]) -> None:
    text = "".join(json.dumps({"schema": SCHEMA, **line}, separators=(",", ":")) + "\n" for line in lines)
    with writes(path):
        write_text(path, text)
