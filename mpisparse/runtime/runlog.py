"""RunLog: what a run did, one JSON object a step, and one file a rank of what each rank did.

The files are described in docs/run-directory.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any, TextIO

import numpy as np

from mpisparse.comm import Communicator
from mpisparse.exchange import Traffic
from mpisparse.metrics import gather_doubles
from mpisparse.phases import NAMES

SCHEMA = 1

#: Bytes that no line is longer than.
_LINE = 2**16


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one rank did in one optimizer step.

    step: optimizer steps done, this one included.
    loss_sum: sum of the loss over this rank's samples. samples: their number, which may be 0.
    gradients: sample gradients that all ranks together computed.
    traffic: what the exchange moved. seconds: by phase.
    hidden: seconds that messages were in the air while this rank computed: in no phase, and no part of the step's time.
    skipped: where the gradient held NaN or infinity, so that no rank took the step; empty when they did.
    """

    step: int
    epoch: int
    learning_rate: float
    loss_sum: float
    samples: int
    gradients: int
    traffic: Traffic
    seconds: dict[str, float]
    hidden: float = 0.0
    skipped: str = ""

    def numbers(self) -> list[float]:
        """Return what differs between ranks, as the columns that `flush` gathers."""
        traffic = self.traffic
        bytes_moved = [traffic.payload, traffic.coding, traffic.received, traffic.dense]
        squares = traffic.squares or (0.0, 0.0)
        columns = [self.loss_sum, self.samples, *bytes_moved, traffic.count, traffic.messages, *squares, self.hidden]
        return [float(column) for column in columns] + [self.seconds[name] for name in NAMES]


class RunLog:
    """Writes `metrics.jsonl` (rank 0) and `ranks/rank-NNNNN.jsonl` (each rank) in a run directory.

    Steps are collected and written together by `flush`, so that a step itself talks to no other rank and to no file.
    A crash loses what was not flushed; the steps are made again after a resume, bit for bit.
    """

    def __init__(self, directory: Path, comm: Communicator, start_step: int = 0) -> None:
        """Open the files, and cut off what they say of steps after `start_step`, or all at 0: that comes again."""
        self._comm = comm
        self._pending: list[StepRecord] = []
        self._metrics: TextIO | None = None
        #: Whether the log says of the run that it has ended, and the step of its last evaluation; rank 0 knows.
        self.ended = False
        self.evaluated = -1
        (directory / "ranks").mkdir(exist_ok=True)
        rank_file = directory / "ranks" / f"rank-{comm.rank:05d}.jsonl"
        self._ranks = _open_after(rank_file, start_step)
        if comm.rank == 0:
            _remove_beyond(directory / "ranks", comm.size)
            self._metrics = _open_after(directory / "metrics.jsonl", start_step)
            last = last_line(directory / "metrics.jsonl")
            self.ended = bool(last) and json.loads(last)["kind"] == "end"
            self.evaluated = _last_evaluation(directory / "metrics.jsonl")

    def step(self, record: StepRecord) -> None:
        """Keep the record of a step until the next `flush`."""
        self._pending.append(record)

    def flush(self) -> list[dict[str, Any]]:
        """Write the steps kept, and return them merged over the ranks. Collective, one Allgather."""
        if not self._pending:
            return []
        table = np.array([record.numbers() for record in self._pending])
        everyone = gather_doubles(self._comm, table).reshape(self._comm.size, *table.shape)
        merged = [_merge(record, everyone[:, i]) for i, record in enumerate(self._pending)]
        for record in self._pending:
            _write(self._ranks, _own(record))
        self._ranks.flush()
        if self._metrics is not None:
            for line in merged:
                _write(self._metrics, line)
            self._metrics.flush()
        self._pending.clear()
        return merged

    def event(self, kind: str, step: int, **fields: object) -> None:
        """Write an object of another kind, such as an evaluation, to `metrics.jsonl`. Does nothing but on rank 0."""
        if kind == "evaluation":
            self.evaluated = step
        if self._metrics is not None:
            clock = {"unix_seconds": round(time(), 3)}
            _write(self._metrics, {"schema": SCHEMA, "kind": kind, "step": step, **clock, **fields})
            self._metrics.flush()

    def sync(self) -> None:
        """Bring what was written to the disk, so that a checkpoint made after it never knows more than the log."""
        for file in (self._ranks, self._metrics):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files, after bringing them to the disk. What is closed stays so."""
        if self._ranks.closed:
            return
        self.sync()
        for file in (self._ranks, self._metrics):
            if file is not None:
                file.close()


def _merge(record: StepRecord, numbers: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    """Return the object of one step in metrics.jsonl from every rank's columns, of shape (size, columns)."""
    sums, hidden, seconds = numbers[:, :10].sum(axis=0).tolist(), numbers[:, 10], numbers[:, 11:]
    loss_sum, samples, payload, coding, received, dense, count, messages, before, after = sums
    gauge = {} if record.traffic.squares is None else {"gradient_square": before, "sent_square": after}
    return {
        "schema": SCHEMA,
        "kind": "step",
        "step": record.step,
        "epoch": record.epoch,
        "samples": int(samples),
        "gradients": record.gradients,
        "loss": loss_sum / samples if samples and np.isfinite(loss_sum) else None,
        "learning_rate": record.learning_rate,
        "payload_bytes": int(payload),
        "coding_bytes": int(coding),
        "received_bytes": int(received),
        "dense_bytes": int(dense),
        "messages": int(messages),
        "count": int(count),
        "entries": record.traffic.numel * len(numbers),
        **gauge,
        "seconds": _by_phase(seconds.mean(axis=0)),
        "seconds_slowest": _by_phase(seconds.max(axis=0)),
        "hidden_seconds": round(float(hidden.mean()), 9),
        **({"skipped": record.skipped} if record.skipped else {}),
    }


def _own(record: StepRecord) -> dict[str, Any]:
    """Return the object of one step in a rank's own file."""
    return {
        "schema": SCHEMA,
        "step": record.step,
        "samples": record.samples,
        "payload_bytes": record.traffic.payload,
        "received_bytes": record.traffic.received,
        "count": record.traffic.count,
        "seconds": {name: round(spent, 9) for name, spent in record.seconds.items()},
        "hidden_seconds": round(record.hidden, 9),
    }


def _by_phase(seconds: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    return {name: round(float(spent), 9) for name, spent in zip(NAMES, seconds, strict=True)}


def _write(file: TextIO, line: Mapping[str, object]) -> None:
    file.write(json.dumps(line, separators=(",", ":")) + "\n")


def _open_after(path: Path, start_step: int) -> TextIO:
    """Return the file open at its end, without the lines of steps after `start_step` and a torn last one."""
    if path.exists():
        before = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A run that begins, begins its log: what was evaluated before its first step comes again as well.
        kept = [line for line in before if _is_up_to(line, start_step)] if start_step else []
        if len(kept) < len(before):
            replace_file(path, lambda file: file.writelines(kept))
    return path.open("a", encoding="utf-8")


def last_line(path: Path) -> str:
    """Return the last whole line of a log, or nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LINE))
            whole, newline, _ = file.read().rpartition(b"\n")
    except FileNotFoundError:
        return ""
    return whole.rpartition(b"\n")[2].decode() if newline else ""


def _last_evaluation(path: Path) -> int:
    """Return the step of the last evaluation in a log without torn lines, or -1 where there is none."""
    with path.open(encoding="utf-8") as file:
        return max((json.loads(line)["step"] for line in file if '"kind":"evaluation"' in line), default=-1)


def _remove_beyond(directory: Path, size: int) -> None:
    """Remove the files of ranks that an earlier run with more of them left."""
    for path in directory.glob("rank-*.jsonl"):
        if path.stem[5:].isdigit() and int(path.stem[5:]) >= size:
            path.unlink()


def _is_up_to(line: str, start_step: int) -> bool:
    try:
        return line.endswith("\n") and int(json.loads(line)["step"]) <= start_step
    except (ValueError, KeyError, TypeError):
        return False


def replace_file(path: Path, write: Callable[[TextIO], object]) -> None:
    """Write a file anew so that a reader, or a crash, finds either the old content or the new, and never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
