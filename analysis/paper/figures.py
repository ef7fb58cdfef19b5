"""The figures of the synchronous experiments: from tuned curves to drawings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from analysis.drawing.drawing import Drawing, Line, Panel
from analysis.paper.curves import curve
from analysis.paper.place import Label
from analysis.paper.tuning import Tuned

#: Rules of the figures against data passes, and of those against bits.
_PASSES, _BITS = ("dense", "gspar", "uniform"), ("dense", "gspar", "qsgd", "terngrad")

_SUBOPTIMALITY = "f(w) − f(w*)"
_HEADERS = "bits of all messages of the run, their fixed headers left out (with them: see page)"
_NAMES = {"sgd": "SGD", "svrg": "SVRG", "real": "Real data"}


def convex_figures(tuned: Sequence[Tuned], footnotes: dict[str, str]) -> Iterator[Drawing]:
    """Yield the figures of sgd, svrg and real: suboptimality against data passes, and against coding length.

    Args:
        tuned: curves of any experiments. footnotes: of each experiment; "" for none.
    """
    for (experiment, key, words), curves in _by_figure(tuned, ("sgd", "svrg", "real")):
        notes = [footnotes[experiment]] if footnotes.get(experiment) else []
        title = f"{_NAMES[experiment]}, {words}"
        passes = _grid([curve for curve in curves if curve.method.family not in ("qsgd", "terngrad")], "passes")
        bits = _grid([curve for curve in curves if curve.method.family != "uniform"], "bits")
        name = f"{experiment}-{key}" if experiment == "real" else experiment
        suffix = "" if experiment == "real" else f"-{key}"
        if passes:
            yield Drawing(
                name=f"{name}-passes{suffix}",
                experiment=experiment,
                title=f"{title}: suboptimality against data passes",
                panels=passes,
                x_label="data passes",
                y_label=_SUBOPTIMALITY,
                footnotes=tuple(notes),
            )
        if bits:
            yield Drawing(
                name=f"{name}-bits{suffix}",
                experiment=experiment,
                title=f"{title}: suboptimality against coding length",
                panels=bits,
                x_label="coding length (bits, without fixed headers)",
                y_label=_SUBOPTIMALITY,
                x_scale="log",
                footnotes=(_HEADERS, *notes),
            )


def cnn_figures(tuned: Sequence[Tuned], footnotes: dict[str, str]) -> Iterator[Drawing]:
    """Yield a figure for each width: training loss and test accuracy, against epochs and against bytes."""
    for (experiment, key, words), curves in _by_figure(tuned, ("cnn",)):
        panels = tuple(_cnn_panel(curves, row, column) for row in range(2) for column in range(2))
        repeats = max(len(each.records) for each in curves)
        notes = [f"mean and standard deviation of {repeats} seeds"] if repeats > 1 else []
        notes += [footnotes[experiment]] if footnotes.get(experiment) else []
        if any(panel.lines for panel in panels):
            yield Drawing(
                name=f"cnn-{key}",
                experiment=experiment,
                title=f"CIFAR-10, convolutional network of {words}",
                panels=panels,
                x_label="epochs",
                y_label="",
                footnotes=tuple(notes),
                one_legend=True,
            )


_CNN_ROWS = (("train_loss", "training loss", "log", 1.0), ("accuracy", "test accuracy (%)", "linear", 100.0))
_CNN_COLUMNS = (("epochs", "epochs", "linear"), ("bytes", "bytes received into each rank", "log"))


def _cnn_panel(curves: Sequence[Tuned], row: int, column: int) -> Panel:
    y, y_label, y_scale, factor = _CNN_ROWS[row]
    x, x_label, x_scale = _CNN_COLUMNS[column]
    lines = tuple(line for each in curves if len((line := _line(each, x, y, factor)).points.x))
    title = f"{y_label.split(' (')[0]} against {x}"
    return Panel(title, row, column, lines, y_label, y_scale, x_label, x_scale)


def _by_figure(
    tuned: Iterable[Tuned], experiments: tuple[str, ...]
) -> Iterator[tuple[tuple[str, str, str], list[Tuned]]]:
    figures: dict[tuple[str, str, str], list[Tuned]] = {}
    for each in tuned:
        if each.place.experiment in experiments and each.records:
            figures.setdefault((each.place.experiment, *each.place.figure), []).append(each)
    yield from figures.items()


def _grid(curves: Sequence[Tuned], x: str) -> tuple[Panel, ...]:
    """Return the panels of a figure that have a point: rows and columns in the order of their numbers."""
    return grid_of(curves, lambda each: _line(each, x, "suboptimality", 1.0))


def grid_of(curves: Sequence[Tuned], line: Callable[[Tuned], Line]) -> tuple[Panel, ...]:
    """Return a panel for each row and column of the curves' places, with the lines that have points."""
    lines = [(each, made) for each in curves if len((made := line(each)).points.x)]
    rows: list[Label] = sorted({each.place.row for each, _ in lines})
    columns: list[Label] = sorted({each.place.column for each, _ in lines})
    panels = []
    for place in dict.fromkeys(each.place for each, _ in lines):
        inside = tuple(made for each, made in lines if each.place == place)
        panels.append(Panel(place.panel, rows.index(place.row), columns.index(place.column), inside))
    return tuple(panels)


def _line(each: Tuned, x: str, y: str, factor: float) -> Line:
    points = curve(each.records, x, y)
    if x in ("bits", "bytes"):
        points = points.where(points.x > 0)
    runs = tuple(str(record.directory) for record in each.records)
    return Line(each.method, each.legend, points.scaled(factor), each.var, each.spa, each.lr, runs)
