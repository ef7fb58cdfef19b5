"""Columns: a run's log as arrays, read a line at a time, whatever state its files are in.

A run's lines as objects take ten times more memory than its numbers; `analysis.load` has them where they are wanted.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.files import open_regular, parse_json
from analysis.load import SCHEMA
from analysis.markdown import number

Array = NDArray[np.float64]

#: Bytes of a line at most.
_LINE = 2**20

#: Phases of a step, in the order it happens (docs/run-directory.md).
PHASES = ("data", "compute", "agree", "sparsify", "encode", "exchange", "decode", "apply")

#: Numbers of a step line that are kept; what a line lacks is NaN.
KEYS = ("step", "samples", "loss", "payload_bytes", "received_bytes", "dense_bytes", "count", "entries", "messages")


@dataclass(frozen=True)
class Columns:
    """metrics.jsonl as arrays.

    steps: float64 of shape (steps,) for each of KEYS, in the order of the steps, each step once.
    seconds: float32 of shape (steps, phases), means over ranks, in the order of PHASES.
    evaluations, starts, ends: the lines of those kinds. problems: what was wrong with the file, in words.
    """

    steps: dict[str, Array]
    seconds: NDArray[np.float32]
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_columns(path: Path) -> Columns:
    """Return the content of a metrics.jsonl.

    Raises:
        ValueError: it is of another schema. OSError: it cannot be read.
    """
    numbers, seconds = array("d"), array("f")
    other: dict[str, list[dict[str, Any]]] = {"evaluation": [], "start": [], "end": []}
    problems: list[str] = []
    for line in read_lines(path, problems):
        kind = line.get("kind")
        if kind == "step":
            numbers.extend([_number(line.get(key)) for key in KEYS])
            by_phase = line.get("seconds") or {}
            seconds.extend([_number(by_phase.get(phase, 0.0)) for phase in PHASES])
        elif kind in other:
            other[kind].append(line)
    table = np.frombuffer(numbers, np.float64).reshape(-1, len(KEYS))
    phases = np.frombuffer(seconds, np.float32).reshape(-1, len(PHASES))
    last = _last_course(table[:, 0])
    if again := int(np.count_nonzero(~last)):
        problems.append(
            f"{path.name}: {number(again, 'step')} {'was' if again == 1 else 'were'} made again after a resume; "
            "the last count"
        )
        table, phases = table[last], phases[last]
    phases = _without_negative(phases, path, problems)
    _look_at_clock([*other["start"], *other["evaluation"], *other["end"]], path, problems)
    steps = {key: np.ascontiguousarray(table[:, i]) for i, key in enumerate(KEYS)}
    evaluations = _each_once(other["evaluation"])
    return Columns(steps, phases, evaluations, other["start"], other["end"], problems)


def read_lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a .jsonl file; what is torn or no object is left out, and said in `problems`.

    Raises:
        ValueError: a line is of another schema.
    """
    bad = 0
    with open_regular(path) as file:
        for raw in iter(lambda: file.readline(_LINE), b""):
            if len(raw) == _LINE and not raw.endswith(b"\n"):
                problems.append(f"{path.name}: a line longer than {_LINE} bytes and what follows it are left out")
                break
            if not raw.endswith(b"\n"):
                problems.append(f"{path.name}: the last line is torn and left out")
                break
            try:
                line = parse_json(raw, constants=True)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                bad += 1
                continue
            if line.get("schema") != SCHEMA:
                raise ValueError(f"{path} is of schema {line.get('schema')}, this reads {SCHEMA}")
            yield line
    if bad:
        problems.append(f"{path.name}: {bad:,} lines are no JSON objects and left out")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _last_course(step: Array) -> NDArray[np.bool_]:
    """Return which lines count: those that no later line goes back behind."""
    if not len(step):
        return np.zeros(0, bool)
    later = np.append(np.minimum.accumulate(step[::-1])[::-1][1:], math.inf)
    keep: NDArray[np.bool_] = step < later
    return keep


def _without_negative(seconds: NDArray[np.float32], path: Path, problems: list[str]) -> NDArray[np.float32]:
    negative = np.asarray((seconds < 0).any(axis=1))
    if not negative.any():
        return seconds
    problems.append(
        f"{path.name}: {number(int(np.count_nonzero(negative)), 'step')} of negative time have no time in this report"
    )
    return np.where(negative[:, None], np.float32(math.nan), seconds)


def _look_at_clock(lines: list[dict[str, Any]], path: Path, problems: list[str]) -> None:
    """Say so if the clock of rank 0 ran backwards: times of day are wrong then, and times of steps are not."""
    times = sorted((line["step"], line["unix_seconds"]) for line in lines if "unix_seconds" in line)
    back = max((one[1] - other[1] for one, other in pairwise(times) if one[0] < other[0]), default=0)
    if back > 0:
        problems.append(f"{path.name}: the clock was set back by {back:,.0f} s or more; times of steps do not use it")


def _each_once(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last evaluation of each step."""
    last = {line["step"]: line for line in evaluations if "step" in line}
    return [last[step] for step in sorted(last)]
