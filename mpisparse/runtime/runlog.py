"""RunLog: what a run did, one JSON object a step, and one file a rank of what each rank did.

The files are described in docs/run-directory.md.
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import numpy as np

from mpisparse.comm import Communicator
from mpisparse.errors import RunDirectoryError
from mpisparse.exchange import Traffic
from mpisparse.files import OddFileError, open_log, open_regular, parse_json, replacing
from mpisparse.metrics import gather_doubles
from mpisparse.phases import NAMES

SCHEMA = 1

#: Bytes that no line is longer than, and no log.
_LINE, _LOG = 2**16, 2**35


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

    Whatever cannot be written is a RunDirectoryError of this rank, which names the file; so is a run directory that is
    no longer where it was.
    """

    def __init__(self, directory: Path, comm: Communicator, start_step: int = 0) -> None:
        """Open the files, and cut off what they say of steps after `start_step`, or all at 0: that comes again."""
        self._comm = comm
        self._pending: list[StepRecord] = []
        self._metrics: LogFile | None = None
        #: Whether the log says of the run that it has ended, and the step of its last evaluation; rank 0 knows.
        self.ended = False
        self.evaluated = -1
        with writes(directory / "ranks", f"rank {comm.rank}: "):
            (directory / "ranks").mkdir(exist_ok=True)
        self._ranks = LogFile(directory / "ranks" / f"rank-{comm.rank:05d}.jsonl", comm.rank, start_step)
        if comm.rank == 0:
            metrics = directory / "metrics.jsonl"
            with writes(directory / "ranks", "rank 0: "):
                _remove_beyond(directory / "ranks", comm.size)
            self._metrics = LogFile(metrics, 0, start_step)
            with writes(metrics, "rank 0: "):
                last = last_line(metrics)
                self.ended = bool(last) and parse_json(last, constants=True).get("kind") == "end"
                self.evaluated = _last_evaluation(metrics)

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
        for file in self._files():
            file.require_in_place()
        self._ranks.write(_own(record) for record in self._pending)
        if self._metrics is not None:
            self._metrics.write(merged)
        self._pending.clear()
        return merged

    def event(self, kind: str, step: int, **fields: object) -> None:
        """Write an object of another kind, such as an evaluation, to `metrics.jsonl`. Does nothing but on rank 0."""
        if kind == "evaluation":
            self.evaluated = step
        if self._metrics is not None:
            clock = {"unix_seconds": round(time(), 3)}
            self._metrics.write([{"schema": SCHEMA, "kind": kind, "step": step, **clock, **fields}])

    def sync(self) -> None:
        """Bring what was written to the disk, so that a checkpoint made after it never knows more than the log."""
        for file in self._files():
            file.require_in_place()
            file.sync()

    def close(self) -> None:
        """Close the files, after bringing them to the disk. What is closed stays so."""
        for file in self._files():
            file.close()

    def _files(self) -> list[LogFile]:
        return [self._ranks] if self._metrics is None else [self._ranks, self._metrics]


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


class LogFile:
    """A file of lines that grows: open at its end, without the lines of steps after `start_step` and a torn last one.

    Every error names the file and the rank, as a RunDirectoryError.
    """

    def __init__(self, path: Path, rank: int, start_step: int) -> None:
        self.path, self._rank = path.absolute(), rank
        self.closed = False
        with self._named():
            _cut(self.path, start_step)
            self._file = open_log(self.path)

    def write(self, lines: Iterable[Mapping[str, object]]) -> None:
        """Write objects, a line each."""
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        with self._named():
            while text:  # One call writes less when the disk fills up.
                text = text[os.write(self._file, text) :]

    def require_in_place(self) -> None:
        """Raise RunDirectoryError if the file is no longer where it was opened: what is written to it would be lost."""
        try:
            there, ours = os.stat(self.path), os.fstat(self._file)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return
        raise RunDirectoryError(
            f"rank {self._rank}: {self.path} is not the file that this run opened there: its run directory was moved, "
            "removed or replaced while the run went on. Start the run again with --run-dir where it is now"
        )

    def sync(self) -> None:
        """Return when all of it is on the disk."""
        with self._named():
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file, after bringing it to the disk. What is closed stays so."""
        if not self.closed:
            self.closed = True
            with self._named():
                try:
                    os.fsync(self._file)
                finally:
                    os.close(self._file)

    def _named(self) -> AbstractContextManager[None]:
        return writes(self.path, f"rank {self._rank}: ")


@contextmanager
def writes(path: Path, who: str = "") -> Iterator[None]:
    """Turn an error of the system into a RunDirectoryError that names the file or directory that is written to."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise RunDirectoryError(
            f"{who}{path} cannot be written: {why}. Make room or put it right, then start the run again to go on"
        ) from error


def _cut(path: Path, start_step: int) -> None:
    """Take from a log, if it is there, the lines of steps after `start_step`, and a torn last one."""
    try:
        before = open_regular(path, follow=False)
    except FileNotFoundError:
        return
    with before:
        if os.fstat(before.fileno()).st_size > _LOG:
            raise OddFileError(f"larger than {_LOG} bytes, which no log is", path)
        if all(_is_up_to(line, start_step) for line in _lines(before)):
            return
        before.seek(0)
        with replacing(path) as after:
            after.writelines(line for line in _lines(before) if _is_up_to(line, start_step))


def _lines(file: io.BufferedReader) -> Iterator[bytes]:
    """Yield the lines of a log, and what is longer than any in pieces, which are none."""
    while line := file.readline(_LINE):
        yield line


def last_line(path: Path) -> str:
    """Return the last whole line of a log, or nothing where there is none."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LINE))
            whole, newline, _ = file.read().rpartition(b"\n")
    except FileNotFoundError:
        return ""
    return whole.rpartition(b"\n")[2].decode() if newline else ""


def _last_evaluation(path: Path) -> int:
    """Return the step of the last evaluation in a log without torn lines, or -1 where there is none."""
    with open_regular(path) as file:
        evaluations = (line for line in _lines(file) if b'"kind":"evaluation"' in line)
        return max((parse_json(line, constants=True)["step"] for line in evaluations), default=-1)


def _remove_beyond(directory: Path, size: int) -> None:
    """Remove the files of ranks that an earlier run with more of them left."""
    for path in directory.glob("rank-*.jsonl"):
        if path.stem[5:].isdigit() and int(path.stem[5:]) >= size:
            path.unlink()


def _is_up_to(line: bytes, start_step: int) -> bool:
    # A run that begins, begins its log: what was evaluated before its first step comes again as well.
    try:
        return bool(start_step) and line.endswith(b"\n") and parse_json(line, constants=True)["step"] <= start_step
    except (ValueError, KeyError, TypeError):
        return False
