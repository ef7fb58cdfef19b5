"""Drawing a Drawing: PNG and SVG with matplotlib, laid out in inches so that all figures have panels of one size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.drawing.axes import draw_panel
from analysis.drawing.drawing import Drawing, Panel, to_csv
from analysis.drawing.lettering import lettered

DPI = 150

_STYLE: Any = {
    "font.size": 14,
    "axes.titlesize": 14,
    "axes.labelsize": 14,
    "legend.fontsize": 12.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.markersize": 5.5,
    "svg.hashsalt": "mpisparse",
}

#: Inches: of axes, what stands left, right, above and below them, of the title, a legend's line, a footnote.
_AXES = (4.1, 2.7)
_LEFT, _RIGHT, _ABOVE, _BELOW = 1.05, 0.2, 0.45, 0.75
_TITLE, _LEGEND_LINE, _NOTE = 0.5, 0.24, 0.26

#: Inches of a letter in a legend, and of what stands before a label.
_LETTER, _HANDLE = 0.088, 0.75

#: Inches of a letter in a footnote.
_NOTE_LETTER = 0.081


def draw(drawing: Drawing, directory: Path) -> list[Path]:
    """Write NAME.png, NAME.svg and NAME.csv in `directory`, and return their paths."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box, which says as much.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = _figure(lettered(drawing))
        paths = [directory / f"{drawing.name}.{kind}" for kind in ("png", "svg", "csv")]
        figure.savefig(paths[0], dpi=DPI)
        figure.savefig(paths[1], metadata={"Date": None})
    paths[2].write_text(to_csv(drawing), encoding="utf-8")
    return paths


@dataclass(frozen=True)
class _Layout:
    """Inches of a figure. panel: width and height from one panel to the next. below: all panels."""

    rows: int
    columns: int
    panel: tuple[float, float]
    legend: float
    legend_columns: int
    below: float
    width: float

    @property
    def height(self) -> float:
        return self.rows * self.panel[1] + self.below + _TITLE

    def axes(self, panel: Panel) -> tuple[float, float, float, float]:
        """Return left, bottom, width and height of a panel's axes as parts of the figure."""
        left = (self.width - self.columns * self.panel[0]) / 2 + panel.column * self.panel[0] + _LEFT
        top = self.height - _TITLE - panel.row * self.panel[1] - _ABOVE
        width = self.panel[0] - _LEFT - _RIGHT
        return left / self.width, (top - _AXES[1]) / self.height, width / self.width, _AXES[1] / self.height


def _layout(drawing: Drawing) -> _Layout:
    rows = 1 + max((panel.row for panel in drawing.panels), default=0)
    columns = 1 + max((panel.column for panel in drawing.panels), default=0)
    labels = [_labels(panel) for panel in drawing.panels]
    letters = max((len(label) for each in labels for label in each), default=0)
    entry = _LETTER * letters + _HANDLE
    narrow = _LEFT + _AXES[0] + _RIGHT
    if _share_a_legend(drawing):
        width = max(columns * narrow, 8.5)
        ncols = max(1, int(width / entry))
        legend = _LEGEND_LINE * -(-len({label for each in labels for label in each}) // ncols)
        notes = _NOTE * len(_notes(drawing, width)) + 0.1
        return _Layout(rows, columns, (narrow, _ABOVE + _AXES[1] + _BELOW), legend, ncols, legend + notes + 0.1, width)
    legend = _LEGEND_LINE * -(-max((len(each) for each in labels), default=0) // 2) + 0.2
    pitch = max(narrow, 2 * entry)
    height = _ABOVE + _AXES[1] + _BELOW + legend
    width = max(columns * pitch, 7.5)
    notes = _NOTE * len(_notes(drawing, width)) + 0.1
    return _Layout(rows, columns, (pitch, height), legend, 2, notes, width)


def _notes(drawing: Drawing, width: float) -> list[str]:
    """Return the lines of the footnotes in a figure so many inches wide."""
    return [line for note in drawing.footnotes for line in wrap(note, int(width / _NOTE_LETTER))]


def _figure(drawing: Drawing) -> Figure:
    layout = _layout(drawing)
    figure = Figure(figsize=(layout.width, layout.height))
    figure.text(0.5, 1 - 0.14 / layout.height, drawing.title, fontsize=16, fontweight="bold", ha="center", va="top")
    every = []
    shared = _share_a_legend(drawing)
    for panel in drawing.panels:
        axes = figure.add_axes(layout.axes(panel))
        draw_panel(axes, drawing, panel)
        every.append(axes)
        if not shared:
            _legend(figure, [axes], layout, below=_BELOW)
    if shared:
        _legend(figure, every, layout, below=None)
    for i, note in enumerate(reversed(_notes(drawing, layout.width))):
        figure.text(0.15 / layout.width, (0.1 + _NOTE * i) / layout.height, note, fontsize=11.5, color="#555555")
    return figure


def _labels(panel: Panel) -> list[str]:
    """Return what the panel's legend says, each text once."""
    if panel.stack is not None:
        return [*panel.stack.parts, *([panel.stack.mark] if panel.stack.mark else [])]
    return list(dict.fromkeys(line.label for line in panel.lines if line.label))


def _share_a_legend(drawing: Drawing) -> bool:
    """Return True if one legend will do: it is wanted, or all of several panels have the same."""
    labels = {tuple(_labels(panel)) for panel in drawing.panels}
    return drawing.one_legend or (len(drawing.panels) > 1 and len(labels) == 1)


def _legend(figure: Figure, every: list[Axes], layout: _Layout, below: float | None) -> None:
    """Draw the legend of some panels: so many inches below the one, or below all of the figure's."""
    entries: dict[str, Any] = {}
    for axes in every:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    box = every[0].get_position()
    centre, top = 0.5, layout.below / layout.height
    if below is not None:
        left = layout.panel[0] / 2 - _LEFT
        centre, top = box.x0 + left / layout.width, box.y0 - below / layout.height
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="upper center",
        bbox_to_anchor=(centre, top),
        ncols=min(layout.legend_columns, len(entries)),
        frameon=False,
        handlelength=2.2,
        columnspacing=1.0,
        labelspacing=0.3,
        borderaxespad=0.0,
        borderpad=0.0,
    )
