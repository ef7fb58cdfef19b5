"""One pair of axes: lines with few markers, scales whose ticks can be read, whatever they span."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, Locator, LogFormatterMathtext, LogLocator, MaxNLocator, NullLocator

from analysis.drawing.curve import Curve
from analysis.drawing.drawing import Drawing, Line, Panel
from analysis.drawing.heat import draw_heat
from analysis.drawing.stack import draw_stack

#: Markers on a line, at most.
_MARKERS = 6


def draw_panel(axes: Axes, drawing: Drawing, panel: Panel) -> None:
    """Draw a panel. Scales are "linear", "from zero", "share" (0 to 1), "log", "log2", and "ranks"."""
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label or drawing.x_label)
    axes.set_ylabel(panel.y_label or drawing.y_label)
    if panel.stack is not None:
        draw_stack(axes, panel.stack)
    elif panel.heat is not None:
        draw_heat(axes, panel.heat)
    else:
        _lines(axes, panel, panel.x_scale or drawing.x_scale, panel.y_scale or drawing.y_scale)


def _lines(axes: Axes, panel: Panel, x_scale: str, y_scale: str) -> None:
    for line in panel.lines:
        _line(axes, line, positive=y_scale.startswith("log"))
    _scale(axes.xaxis, x_scale, axes.set_xscale, [line.points.x for line in panel.lines])
    _scale(axes.yaxis, y_scale, axes.set_yscale, [line.points.y for line in panel.lines])
    if y_scale.startswith("log"):
        _keep_to_what_was_measured(axes, panel)
    elif y_scale == "from zero":
        axes.set_ylim(bottom=0)
    elif y_scale == "share":
        axes.set_ylim(0, 1.05)


def _line(axes: Axes, line: Line, *, positive: bool) -> None:
    points = line.points
    look = line.method.look | line.look
    every = max(1, -(-len(points.x) // (_MARKERS if not line.whiskers else 999)))
    y = _above_zero(points.y) if positive else points.y
    axes.plot(points.x, y, label=line.label or "_", markevery=(every // 2, every), **look)
    if _has_band(points):
        low = _above_zero(points.low) if positive else points.low
        if line.whiskers:
            axes.vlines(points.x, low, points.high, color=look["color"], linewidth=1.4)
        else:
            axes.fill_between(points.x, low, points.high, color=look["color"], alpha=0.15, linewidth=0)


def _shown(line: Line) -> tuple[Any, ...]:
    points = line.points
    return (points.y, points.low, points.high) if line.whiskers else (points.y,)


def _has_band(points: Curve) -> bool:
    return bool((points.high > points.low).any())


def _above_zero(values: Any) -> Any:
    return np.where(values > 0, values, np.nan)


def _scale(axis: Any, scale: str, change: Any, values: list[Any]) -> None:
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    if scale in ("linear", "from zero", "share"):
        axis.set_major_locator(MaxNLocator(6))
        return
    change("log", base=10 if scale == "log" else 2)
    axis.set_minor_locator(NullLocator())
    if scale == "ranks":
        axis.set_major_locator(LogLocator(base=2))
        axis.set_major_formatter(plain)
        return
    locator, in_words = _ticks(values, 10 if scale == "log" else 2)
    axis.set_major_locator(locator)
    axis.set_major_formatter(plain if in_words else LogFormatterMathtext())


def _ticks(values: list[Any], base: int) -> tuple[Locator, bool]:
    """Return where ticks of a logarithmic axis are, and whether they are written as plain numbers."""
    known = [value for each in values for value in each if np.isfinite(value) and value > 0]
    span = max(known) / min(known) if known else 10.0
    small = bool(known) and min(known) >= 1e-4 and max(known) < 1e5
    if span < 5:
        return MaxNLocator(5), True
    if base == 2:
        return LogLocator(base=2, numticks=8), True
    if span < 60 and small:
        return LogLocator(subs=(1.0, 2.0, 5.0)), True
    return LogLocator(numticks=7), small and span < 1e4


def _keep_to_what_was_measured(axes: Axes, panel: Panel) -> None:
    """Limit a logarithmic axis to lines and whiskers: a band that reaches down to nothing would stretch it."""
    shown = [values for line in panel.lines for values in _shown(line)]
    ys = [value for values in shown for value in values if np.isfinite(value) and value > 0]
    if ys:
        margin = max((max(ys) / min(ys)) ** 0.06, 1.02)
        axes.set_ylim(min(ys) / margin, max(ys) * margin)
