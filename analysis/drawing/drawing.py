"""Drawing: what a figure shows, as data; it becomes pictures in draw.py and a table in to_csv."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field

from analysis.drawing.curve import Curve
from analysis.method import Method

COLUMNS = ("figure", "panel", "method", "var", "spa", "x", "y", "lr", "run directory", "low", "high")


@dataclass(frozen=True)
class Line:
    """A curve with what it is of.

    label: in the legend; "" leaves it out. runs: the directories that it was made from. look: over the method's own.
    """

    method: Method
    label: str
    points: Curve
    var: float | None = None
    spa: float | None = None
    lr: float | None = None
    runs: tuple[str, ...] = ()
    look: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One pair of axes, at a row and a column; its own labels and scales, if it has any, go before the figure's."""

    title: str
    row: int
    column: int
    lines: tuple[Line, ...]
    y_label: str = ""
    y_scale: str = ""
    x_label: str = ""
    x_scale: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure.

    name: of its files. experiment: to which part of the page it belongs. scales: as matplotlib knows them, and "log2".
    footnotes: small lines below. legend: one for all panels (where their lines have the same labels), or one each.
    """

    name: str
    experiment: str
    title: str
    panels: tuple[Panel, ...]
    x_label: str
    y_label: str
    x_scale: str = "linear"
    y_scale: str = "log"
    footnotes: tuple[str, ...] = ()
    one_legend: bool = False


def to_csv(drawing: Drawing) -> str:
    """Return the points of a drawing as CSV, one a row, numbers in full; what is unknown is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for panel in drawing.panels:
        for line in panel.lines:
            fixed = [drawing.name, panel.title, line.method.name, _text(line.var), _text(line.spa)]
            points = line.points
            for x, y, low, high in zip(points.x, points.y, points.low, points.high, strict=True):
                runs = " ".join(line.runs)
                writer.writerow([*fixed, _text(x), _text(y), _text(line.lr), runs, _text(low), _text(high)])
    return file.getvalue()


def _text(value: float | None) -> str:
    return "" if value is None else repr(float(value))
