"""Drawing: what a figure shows, as data; it becomes pictures in draw.py and a table in to_csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

from analysis.drawing.curve import Array, Curve
from analysis.method import Method
from analysis.terminal import visible

#: Columns of lines, and those of them that tell of a rule and its tuning.
COLUMNS = ("figure", "panel", "method", "var", "spa", "x", "y", "lr", "run directory", "low", "high")
_OF_RULES = ("var", "spa", "lr")


@dataclass(frozen=True)
class Line:
    """A curve with what it is of.

    label: in the legend; "" leaves it out. runs: the directories that it was made from. look: over the method's own.
    whiskers: whether the band is drawn as a bar through each point, which is right where nothing lies between points.
    """

    method: Method
    label: str
    points: Curve
    var: float | None = None
    spa: float | None = None
    lr: float | None = None
    runs: tuple[str, ...] = ()
    look: dict[str, object] = field(default_factory=dict)
    whiskers: bool = False


@dataclass(frozen=True)
class Stack:
    """Bars of parts one on another.

    bars: what stands below each. parts: for each name a height a bar. top: of the axes, so that panels compare.
    marks: a point on each bar, with its limits, in three arrays of shape (bars,). mark: what it is.
    """

    bars: tuple[str, ...]
    parts: dict[str, Array]
    colours: dict[str, str]
    top: float
    marks: tuple[Array, Array, Array] | None = None
    mark: str = ""


@dataclass(frozen=True)
class Heat:
    """A map of shape (rows, columns) whose columns are `width` of x wide; NaN is grey. bar: the label of its scale."""

    values: Array
    width: float
    bar: str


@dataclass(frozen=True)
class Panel:
    """One pair of axes, at a row and a column; its own labels and scales, if it has any, go before the figure's."""

    title: str
    row: int
    column: int
    lines: tuple[Line, ...] = ()
    y_label: str = ""
    y_scale: str = ""
    x_label: str = ""
    x_scale: str = ""
    stack: Stack | None = None
    heat: Heat | None = None


@dataclass(frozen=True)
class Drawing:
    """A figure.

    name: of its files. experiment: to which part of the page it belongs. scales: as matplotlib knows them, and "log2".
    footnotes: small lines below. legend: one for all panels (where their lines have the same labels), or one each.
    of_rules: whether the CSV has columns for what is known of a rule: var, spa, lr.
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
    of_rules: bool = True


def to_csv(drawing: Drawing) -> str:
    """Return what a drawing shows as CSV, a number a row, in full; what is unknown is empty.

    Texts that a spreadsheet would take for a formula have an apostrophe before them, which it takes for text.

    Lines have the columns COLUMNS; bars have `panel`, `bar`, `part`,
    `height`; maps have `panel`, `row`, `x`, `value`.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    panels = drawing.panels
    if any(panel.stack for panel in panels):
        writer.writerow(["figure", "panel", "bar", "part", "height"])
        writer.writerows(
            [drawing.name, _cell(panel.title), *row] for panel in panels for row in _stack_rows(panel.stack)
        )
    elif any(panel.heat for panel in panels):
        writer.writerow(["figure", "panel", "row", "x", "value"])
        writer.writerows([drawing.name, _cell(panel.title), *row] for panel in panels for row in _heat_rows(panel.heat))
    else:
        rows = [row for panel in panels for line in panel.lines for row in _line_rows(drawing.name, panel.title, line)]
        kept = [i for i, name in enumerate(COLUMNS) if name not in _OF_RULES or drawing.of_rules]
        writer.writerow([COLUMNS[i] for i in kept])
        writer.writerows([row[i] for i in kept] for row in rows)
    return file.getvalue()


def _line_rows(figure: str, panel: str, line: Line) -> Iterator[list[str]]:
    fixed = [figure, _cell(panel), _cell(line.method.name), _text(line.var), _text(line.spa)]
    points, runs = line.points, _cell(" ".join(line.runs))
    for x, y, low, high in zip(points.x, points.y, points.low, points.high, strict=True):
        yield [*fixed, _text(x), _text(y), _text(line.lr), runs, _text(low), _text(high)]


def _stack_rows(stack: Stack | None) -> Iterator[list[str]]:
    for i, bar in enumerate(stack.bars if stack else ()):
        assert stack is not None
        for part, heights in stack.parts.items():
            yield [_cell(bar), _cell(part), _text(heights[i])]
        if stack.marks is not None:
            for name, values in zip((stack.mark, "low", "high"), stack.marks, strict=True):
                yield [_cell(bar), _cell(name), _text(values[i])]


def _heat_rows(heat: Heat | None) -> Iterator[list[str]]:
    for row, values in enumerate(heat.values if heat else ()):
        assert heat is not None
        for column, value in enumerate(values):
            yield [str(row), _text(column * heat.width), _text(value)]


def _cell(text: str) -> str:
    shown = visible(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def _text(value: float | None) -> str:
    return "" if value is None else repr(float(value))
