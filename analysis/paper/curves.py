"""From a record to the points of a curve, and from several repeats to one curve with a band."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from analysis.drawing.curve import Curve
from analysis.paper.record import Array, Record


def curve(records: Sequence[Record], x: str, y: str) -> Curve:
    """Return the curve of repeats: the mean over those that have a point, at the mean of their x.

    Args:
        records: runs that differ in the seed alone.
        x: "passes", "epochs", "bits", "bits_with_headers", "bytes" (into each rank), "milliseconds".
        y: "suboptimality", "objective", "accuracy", or "train_loss", a point an epoch.
    """
    found = [_POINTS.get(y, _evaluations)(record, x, y) for record in records]
    length = min((len(values) for values, _ in found), default=0)
    if not length:
        empty = np.zeros(0)
        return Curve(empty, empty, empty, empty)
    xs = np.array([values[:length] for values, _ in found])
    ys = np.array([values[:length] for _, values in found])
    mean = ys.mean(axis=0)
    spread = ys.std(axis=0, ddof=1) if len(ys) > 1 else np.zeros_like(mean)
    return Curve(xs.mean(axis=0), mean, mean - spread, mean + spread)


def final(record: Record, y: str) -> float:
    """Return the last value of `y` (see `curve`); infinity for a run that failed, that has none, or ends with NaN."""
    last = record.steps["loss"] if y == "train_loss" else record.evaluations[y]
    if record.error is not None or not len(last) or not np.isfinite(last[-1]):
        return float("inf")
    _, values = _POINTS.get(y, _evaluations)(record, "steps", y)
    return float(values[-1])


def total_bits(record: Record, *, headers: bool) -> float:
    """Return the bits of all messages of the run, without their fixed headers or with them; NaN where unknown."""
    values = record.steps["payload_bytes" if headers else "coding_bytes"]
    return 8 * float(values[-1]) if len(values) else float("nan")


def _evaluations(record: Record, x: str, y: str) -> tuple[Array, Array]:
    values = record.evaluations[y]
    places = _at_evaluations(record, x)
    known = np.isfinite(values) & np.isfinite(places)
    return places[known], values[known]


def _at_evaluations(record: Record, x: str) -> Array:
    lines = record.evaluations
    if x in ("passes", "epochs"):
        return np.where(np.isfinite(lines["passes"]), lines["passes"], lines["epoch"])
    if x == "milliseconds":
        return lines["milliseconds"]
    if x == "steps":
        return lines["step"]
    sums = _sums(record, x)
    if not np.isfinite(sums).all() or not len(sums):
        return np.full(len(lines["step"]), np.nan)
    done = np.searchsorted(record.steps["step"], lines["step"], side="right")
    return np.concatenate([[0.0], sums])[done]


def _epochs(record: Record, x: str, y: str) -> tuple[Array, Array]:
    """Return a point at the end of each epoch: the mean of the steps' losses, by samples."""
    steps = record.steps
    known = np.isfinite(steps["epoch"]) & np.isfinite(steps["loss"])
    if not known.any():
        return np.zeros(0), np.zeros(0)
    epochs, first = np.unique(steps["epoch"][known], return_index=True)
    weights = np.add.reduceat(steps["samples"][known], first)
    values = np.add.reduceat((steps["loss"] * steps["samples"])[known], first) / weights
    if x in ("passes", "epochs", "steps"):
        return epochs + 1, values
    last = np.append(first[1:], known.sum()) - 1
    return _sums(record, x)[known][last], values


def _sums(record: Record, x: str) -> Array:
    """Return what was sent or received after each step."""
    if x == "bytes":
        return record.steps["received_bytes"] / max(1, record.ranks)
    return 8 * record.steps["coding_bytes" if x == "bits" else "payload_bytes"]


_POINTS: dict[str, Callable[[Record, str, str], tuple[Array, Array]]] = {"train_loss": _epochs}
