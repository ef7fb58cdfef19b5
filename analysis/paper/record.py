"""Record: the numbers of a run that figures and claims need, as arrays. A run's own lines take a hundred times more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.load import Run
from analysis.method import Method, method_of

Array = NDArray[np.float64]

#: Columns of the step lines and of the evaluations that are kept; what a line lacks is NaN.
_STEP = ("step", "epoch", "samples", "loss", "coding_bytes", "payload_bytes", "received_bytes")
_EVALUATION = ("step", "epoch", "passes", "objective", "suboptimality", "loss", "accuracy", "milliseconds")


@dataclass(frozen=True)
class Record:
    """A run in brief.

    steps, evaluations: a float64 array a key, of shape (lines,), NaN where a line lacks it; bytes are running sums.
    var: sum of squared norms sent over that of the gradients. spa: entries sent over entries. None where unknown.
    end: the last line of kind "end". error: why the run failed, if it did.
    """

    directory: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    method: Method
    steps: dict[str, Array]
    evaluations: dict[str, Array]
    var: float | None
    spa: float | None
    end: dict[str, Any]
    error: str | None = None

    @property
    def ranks(self) -> int:
        """Return the number of ranks; 0 if the run did not get so far as to say."""
        return int(self.environment.get("ranks", 0))

    @property
    def lr(self) -> float:
        """Return the learning rate that the run began with."""
        return float(self.config.get("optimizer", {}).get("lr", math.nan))

    @property
    def seed(self) -> int:
        """Return the run's seed."""
        return int(self.config.get("seed", 0))


def record_of(run: Run) -> Record:
    """Return the record of a run."""
    steps = {key: _column(run.steps, key) for key in _STEP}
    for key in _STEP:
        if key.endswith("_bytes"):
            steps[key] = np.cumsum(steps[key])
    failed = run.failed
    return Record(
        directory=run.directory,
        config=run.config,
        environment=run.environment,
        method=method_of(run.config),
        steps=steps,
        evaluations={key: _column(run.evaluations, key) for key in _EVALUATION},
        var=_var(run),
        spa=_spa(run),
        end=run.ends[-1] if run.ends else {},
        error=f"{failed.get('error', 'an error')}: {failed.get('message', '')}" if failed is not None else None,
    )


def _var(run: Run) -> float | None:
    """Return sum ||sent||^2 / sum ||gradient||^2: what dense sends is what it has."""
    before, after = _total(run.steps, "gradient_square"), _total(run.steps, "sent_square")
    if before is not None and after is not None and before > 0:
        return after / before
    return 1.0 if method_of(run.config).family == "dense" else None


def _spa(run: Run) -> float | None:
    """Return the share of entries sent; of an asynchronous run, of entries written, whose number the data tells."""
    count, entries = _total(run.steps, "count"), _total(run.steps, "entries")
    if count is not None and entries:
        return count / entries
    end = run.ends[-1] if run.ends else {}
    written, updates = end.get("entries_written"), end.get("updates")
    numel = run.config.get("data", {}).get("features")
    return written / (updates * numel) if written is not None and updates and numel else None


def _total(lines: list[dict[str, Any]], key: str) -> float | None:
    values = [line[key] for line in lines if line.get(key) is not None]
    return math.fsum(values) if values and all(math.isfinite(value) for value in values) else None


def _column(lines: list[dict[str, Any]], key: str) -> Array:
    return np.array([math.nan if line.get(key) is None else float(line[key]) for line in lines], dtype=np.float64)
