"""Brief: a run in so few numbers that a thousand runs fit in memory, whatever their length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.columns import PHASES, Columns, read_columns
from analysis.files import parse_toml, read_json, read_text
from analysis.markdown import number
from analysis.waiting import Waiting, read_waiting

Array = NDArray[np.float64]

#: Steps at the beginning of each start that are left out: a tenth, and no fewer and no more than these.
WARM_UP = (5, 50)

#: Points of a curve, and times of steps, that are kept of a run.
_POINTS, _TIMES = 512, 8192


@dataclass(frozen=True)
class Brief:
    """A run in brief.

    directory, config, environment: as its files say. ranks: their number.
    state: "finished", "going on" (or stopped: the log cannot tell). steps: that were made. warm_up: of these, left out.
    times: float32, seconds of steady steps, rising; evenly thinned to some thousands.
    phases: median seconds by phase.
    means: of steady steps, over all ranks, by key: payload_bytes, received_bytes, dense_bytes, count, entries and
    messages; and the median of samples, since the last step of an epoch may have fewer.
    curve: arrays "step", "seconds", "bytes" (received into each rank so far), "loss" (mean since the point before).
    evaluations: arrays "step", "seconds", "bytes", "loss", "accuracy".
    waiting: of each rank, if its files are there. events: lines of starts and evaluations, and the last end.
    problems: what was wrong with the files, in words.
    """

    directory: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    ranks: int
    state: str
    steps: int
    warm_up: int
    times: NDArray[np.float32]
    phases: dict[str, float]
    means: dict[str, float]
    curve: dict[str, Array]
    evaluations: dict[str, Array]
    waiting: Waiting | None
    events: list[dict[str, Any]]
    problems: list[str]

    @property
    def median_step(self) -> float:
        """Return the median seconds of a steady step."""
        return float(np.median(self.times))

    @property
    def sharing(self) -> float:
        """Return how many threads of ranks there are for a core of the fullest machine, and no less than 1.

        1 for logs that do not tell, as those of before environment.json had "machines".
        """
        machines = self.environment.get("machines") or []
        threads = float(self.environment.get("threads", 1))
        return max([1.0, *(_crowd(one, threads) for one in machines if one.get("cores"))])

    @property
    def surroundings(self) -> dict[str, Any]:
        """Return what environment.json has, and as "quotas" the different quotas of processor time, in cores."""
        machines = self.environment.get("machines") or []
        quotas = {float(each["cores"]) for machine in machines for each in machine.get("quotas") or []}
        return {**self.environment, "quotas": sorted(quotas)}

    @property
    def whole(self) -> bool:
        """Return True if the steps send the gradient whole, without messages."""
        return self.means["messages"] == 0


def _crowd(machine: dict[str, Any], threads: float) -> float:
    """Return the threads for a core of one machine.

    Ranks with a quota of processor time keep no more cores busy than that. A rank that has one of its own is on a core
    of its own, if on a slow one; several that have one together share it.
    """
    quotas = machine.get("quotas") or []
    busy = threads * (float(machine["ranks"]) - sum(float(each["ranks"]) for each in quotas))
    shared = 1.0
    for each in quotas:
        busy += min(threads * float(each["ranks"]), float(each["cores"]))
        shared = max(shared, threads * float(each["ranks"]) / max(1.0, float(each["cores"])))
    return shared * max(1.0, busy / float(machine["cores"]))


def read_brief(directory: Path) -> Brief:
    """Return the run in `directory` in brief.

    Raises:
        ValueError: it cannot be read, failed, is asynchronous, or has no steady step.
    """
    if (directory / "failed.json").exists():
        raise ValueError("failed, see its failed.json")
    try:
        config = parse_toml(read_text(directory / "config.toml"))
        if "asynchronous" in config:
            raise ValueError("an asynchronous run, which has no steps")
        environment = read_json(directory / "environment.json")
        columns = read_columns(directory / "metrics.jsonl")
        ranks = int(environment["ranks"])
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"no run directory that can be read: {error}") from error
    return _brief(directory, config, environment, ranks, columns)


def _brief(directory: Path, config: dict[str, Any], environment: dict[str, Any], ranks: int, columns: Columns) -> Brief:
    problems = list(columns.problems)
    step = columns.steps["step"]
    steady, warm_up = _steady(step, columns)
    total = columns.seconds.sum(axis=1, dtype=np.float64)
    steady &= np.isfinite(total)
    if not steady.any():
        raise ValueError(f"has {number(len(step), 'step')}, none of them after the warm-up")
    if np.count_nonzero(steady) < 20:
        few = number(int(np.count_nonzero(steady)), "step")
        problems.append(f"only {few} after the warm-up: medians are uncertain")
    gaps = int(step[-1] - step[0] + 1 - len(step)) + int(step[0] - 1)
    if gaps:
        verb = "is" if gaps == 1 else "are"
        problems.append(f"metrics.jsonl: {number(gaps, 'step')} {verb} missing; sums over the run lack them")
    state = "finished" if _finished(columns) else "going on"
    if state == "going on":
        problems.append("still going on, or stopped before its end: it counts with the steps it has")
    seconds = columns.seconds[steady]
    return Brief(
        directory=directory,
        config=config,
        environment=environment,
        ranks=ranks,
        state=state,
        steps=len(step),
        warm_up=warm_up,
        times=_thinned(np.sort(total[steady]).astype(np.float32), _TIMES),
        phases=dict(zip(PHASES, map(float, np.median(seconds, axis=0)), strict=True)),
        means=_means(columns, steady),
        curve=_curve(columns, np.nan_to_num(total), ranks),
        evaluations=_evaluations(columns, np.nan_to_num(total), ranks),
        waiting=read_waiting(directory, ranks, warm_up, int(step[-1]), problems),
        events=[*columns.starts, *columns.evaluations, *columns.ends[-1:]],
        problems=problems,
    )


def _steady(step: Array, columns: Columns) -> tuple[NDArray[np.bool_], int]:
    """Return which steps are steady, and after how many steps the first start is."""
    starts = sorted({int(start.get("step", 0)) for start in columns.starts} | {0})
    ends = [*starts[1:], math.inf]
    steady = np.ones(len(step), bool)
    first = 0
    for begin, end in zip(starts, ends, strict=True):
        made = int(np.count_nonzero((step > begin) & (step <= end)))
        left_out = max(WARM_UP[0], min(WARM_UP[1], made // 10))
        steady &= ~((step > begin) & (step <= begin + left_out))
        first = first or left_out
    return steady, first


def _finished(columns: Columns) -> bool:
    if not columns.ends:
        return False
    return all(columns.ends[-1].get("step", 0) >= start.get("steps", 0) for start in columns.starts[-1:])


def _means(columns: Columns, steady: NDArray[np.bool_]) -> dict[str, float]:
    means = {key: _mean(values[steady]) for key, values in columns.steps.items() if key not in ("step", "loss")}
    return means | {"samples": float(np.nanmedian(columns.steps["samples"][steady]))}


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _thinned(values: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).round().astype(np.int64)]


def _curve(columns: Columns, seconds: Array, ranks: int) -> dict[str, Array]:
    step = columns.steps["step"]
    edges = np.unique(np.linspace(0, len(step), min(_POINTS, len(step)) + 1).round().astype(np.int64))
    last = edges[1:] - 1
    received = np.nancumsum(columns.steps["received_bytes"]) / ranks
    loss, known = np.nan_to_num(columns.steps["loss"]), np.isfinite(columns.steps["loss"])
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(loss, edges[:-1]) / np.add.reduceat(known.astype(np.float64), edges[:-1])
    return {"step": step[last], "seconds": np.cumsum(seconds)[last], "bytes": received[last], "loss": mean}


def _evaluations(columns: Columns, seconds: Array, ranks: int) -> dict[str, Array]:
    lines = columns.evaluations
    found = {
        key: np.array([float(line[key]) if line.get(key) is not None else math.nan for line in lines])
        for key in ("step", "loss", "accuracy")
    }
    done = np.searchsorted(columns.steps["step"], found["step"], side="right")
    found["seconds"] = np.append(0.0, np.cumsum(seconds))[done]
    found["bytes"] = np.append(0.0, np.nancumsum(columns.steps["received_bytes"]))[done] / ranks
    return found
