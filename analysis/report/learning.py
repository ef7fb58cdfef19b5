"""The figure of learning: loss and accuracy against steps, seconds and bytes, with bands over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from analysis.brief import Brief
from analysis.drawing.curve import Array, Curve
from analysis.drawing.drawing import Drawing, Line, Panel
from analysis.report.figures import Measured
from analysis.report.look import line

_COLUMNS = {"step": "steps", "seconds": "seconds of steps", "bytes": "bytes received into each rank"}
_ROWS = {"train": "training loss", "loss": "test loss", "accuracy": "test accuracy (%)"}

#: Points of a smoothed curve.
_POINTS = 40


def learning_figure(measured: Measured) -> Iterator[Drawing]:
    """Yield loss and accuracy of each method on its largest number of ranks."""
    rows = [row for row in _ROWS if any(_has(series.steps[-1].briefs, row) for series in measured.series)]
    panels = []
    for i, row in enumerate(rows):
        for j, (x, x_label) in enumerate(_COLUMNS.items()):
            lines = [_line(measured, series.method, series.steps[-1].briefs, x, row) for series in measured.series]
            found = tuple(each for each in lines if len(each.points.x))
            y_scale = "linear" if row == "accuracy" else "log"
            x_scale = "log" if x == "bytes" else "linear"
            panels.append(Panel(f"{_ROWS[row].split(' (')[0]} against {_COLUMNS[x].split(' ')[0]}", i, j, found,
                                _ROWS[row], y_scale, x_label, x_scale))  # fmt: skip
    if not any(panel.lines for panel in panels):
        return
    ranks = sorted({series.steps[-1].ranks for series in measured.series})
    yield Drawing(
        name=f"{measured.name}-learning",
        experiment=measured.name,
        title=f"{measured.study.name}: learning on {', '.join(map(str, ranks))} ranks",
        panels=tuple(panels),
        x_label="",
        y_label="",
        footnotes=(
            "lines: means over seeds; bands: a standard deviation; seconds: of steps alone, without evaluation",
        ),
        one_legend=True,
        of_rules=False,
    )


def _has(briefs: Sequence[Brief], row: str) -> bool:
    if row == "train":
        return any(np.isfinite(brief.curve["loss"]).any() for brief in briefs)
    return any(np.isfinite(brief.evaluations[row]).any() for brief in briefs)


def _line(measured: Measured, method: str, briefs: Sequence[Brief], x: str, row: str) -> Line:
    curves = [_points(brief, x, row) for brief in briefs]
    points = mean_curve([curve for curve in curves if len(curve[0])])
    if row == "accuracy":
        points = points.scaled(100.0)
    if x == "bytes":
        points = points.where(points.x > 0)
    return line(method, measured.looks[method], points)


def _points(brief: Brief, x: str, row: str) -> tuple[Array, Array]:
    if row != "train":
        values, places = brief.evaluations[row], brief.evaluations[x]
        known = np.isfinite(values)
        return places[known], values[known]
    values, places = brief.curve["loss"], brief.curve[x]
    known = np.isfinite(values)
    values, places = values[known], places[known]
    # Means of a tenth of a screen: single batches say little.
    width = max(1, len(values) // _POINTS)
    whole = len(values) // width * width
    return places[:whole].reshape(-1, width)[:, -1], values[:whole].reshape(-1, width).mean(axis=1)


def mean_curve(curves: Sequence[tuple[Array, Array]]) -> Curve:
    """Return the mean of curves with a standard deviation on both sides, point by point, as far as all go."""
    length = min((len(x) for x, _ in curves), default=0)
    if not length:
        empty = np.zeros(0)
        return Curve(empty, empty, empty, empty)
    xs = np.array([x[:length] for x, _ in curves])
    ys = np.array([y[:length] for _, y in curves])
    mean = ys.mean(axis=0)
    spread = ys.std(axis=0, ddof=1) if len(ys) > 1 else np.zeros(length)
    return Curve(xs.mean(axis=0), mean, mean - spread, mean + spread)
