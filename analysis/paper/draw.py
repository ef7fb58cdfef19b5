"""Drawing a Drawing: PNG and SVG with matplotlib, readable at half their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.paper.drawing import Drawing, Line, Panel, to_csv

DPI = 150

#: Inches of a panel, of what stands above and below all of them, and of a line in a legend.
_WIDTH, _HEIGHT, _ABOVE, _BELOW, _LEGEND_LINE = 5.0, 3.5, 0.6, 0.35, 0.26

#: Markers on a line, at most.
_MARKERS = 6

_STYLE: dict[str, Any] = {
    "font.size": 14,
    "axes.titlesize": 14,
    "axes.labelsize": 14,
    "legend.fontsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.markersize": 5.5,
    "svg.hashsalt": "mpisparse",
    "svg.fonttype": "path",
}


def draw(drawing: Drawing, directory: Path) -> list[Path]:
    """Write NAME.png, NAME.svg and NAME.csv in `directory`, and return their paths."""
    with matplotlib.rc_context(_STYLE):
        figure = _figure(drawing)
        paths = [directory / f"{drawing.name}.{kind}" for kind in ("png", "svg", "csv")]
        figure.savefig(paths[0], dpi=DPI)
        figure.savefig(paths[1], metadata={"Date": None})
    paths[2].write_text(to_csv(drawing), encoding="utf-8")
    return paths


def _figure(drawing: Drawing) -> Figure:
    rows = 1 + max((panel.row for panel in drawing.panels), default=0)
    columns = 1 + max((panel.column for panel in drawing.panels), default=0)
    labelled = max((sum(bool(line.label) for line in panel.lines) for panel in drawing.panels), default=0)
    legend = _LEGEND_LINE * -(-labelled // _legend_columns(drawing, columns))
    notes = len(drawing.footnotes)
    size = (
        max(_WIDTH * columns, 7.5) if not drawing.one_legend else max(_WIDTH * columns, 8.5),
        (_HEIGHT + (0 if drawing.one_legend else legend)) * rows
        + (legend if drawing.one_legend else 0)
        + _ABOVE
        + _BELOW * notes,
    )
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1, rect=_room(size[1], notes))  # type: ignore[union-attr, call-arg]
    figure.suptitle(drawing.title, fontsize=16, fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for panel in drawing.panels:
        _panel(drawing, panel, grid[panel.row, panel.column], columns)
    if drawing.one_legend:
        _shared_legend(drawing, figure, grid, columns)
    for i, note in enumerate(reversed(drawing.footnotes)):
        y = (0.08 + 0.28 * i) / size[1]
        figure.text(0.012, y, note, fontsize=11, color="#555555", va="bottom")
    return figure


def _room(height: float, notes: int) -> tuple[float, float, float, float]:
    """Return where panels may stand: above the footnotes."""
    below = (0.1 + 0.28 * notes) / height if notes else 0.0
    return (0.0, below, 1.0, 1.0 - below)


def _panel(drawing: Drawing, panel: Panel, axes: Axes, columns: int) -> None:
    axes.set_visible(True)
    y_scale = panel.y_scale or drawing.y_scale
    for line in panel.lines:
        _line(axes, line, positive=y_scale.startswith("log"))
    _scale(axes.xaxis, panel.x_scale or drawing.x_scale, axes.set_xscale)
    _scale(axes.yaxis, y_scale, axes.set_yscale)
    if y_scale.startswith("log"):
        _limit(axes, panel)
    elif y_scale == "from zero":
        axes.set_ylim(bottom=0)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label or drawing.x_label)
    axes.set_ylabel(panel.y_label or drawing.y_label)
    if not drawing.one_legend and axes.get_legend_handles_labels()[0]:
        anchor = {"loc": "upper center", "bbox_to_anchor": (0.46, -0.19)}
        axes.legend(ncols=_legend_columns(drawing, columns), frameon=False, handlelength=2.4, columnspacing=1.2, **anchor)


def _line(axes: Axes, line: Line, *, positive: bool) -> None:
    points = line.points
    y = np.where(points.y > 0, points.y, np.nan) if positive else points.y
    look = line.method.look | line.look
    every = max(1, -(-len(y) // _MARKERS))
    axes.plot(points.x, y, label=line.label or "_", markevery=(every // 2, every), **look)
    if (points.high > points.low).any():
        low = np.where(points.low > 0, points.low, np.nan) if positive else points.low
        axes.fill_between(points.x, low, points.high, color=look["color"], alpha=0.15, linewidth=0)


def _scale(axis: Any, scale: str, change: Any) -> None:
    if scale == "log2":
        change("log", base=2)
        axis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    elif scale == "log":
        change("log")
        axis.set_minor_formatter(NullFormatter())
    elif scale == "ranks":
        change("log", base=2)
        axis.set_major_locator(LogLocator(base=2))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_major_locator(MaxNLocator(6))


def _limit(axes: Axes, panel: Panel) -> None:
    """Keep a logarithmic axis on what was measured: a band that reaches down to nothing would stretch it."""
    ys = [value for line in panel.lines for value in line.points.y if np.isfinite(value) and value > 0]
    if ys:
        margin = max((max(ys) / min(ys)) ** 0.06, 1.02)
        axes.set_ylim(min(ys) / margin, max(ys) * margin)


def _legend_columns(drawing: Drawing, columns: int) -> int:
    return 2 if not drawing.one_legend else (3 if columns > 1 else 2)


def _shared_legend(drawing: Drawing, figure: Figure, grid: Any, columns: int) -> None:
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        ncols = _legend_columns(drawing, columns)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, frameon=False)
