"""The figures of the asynchronous experiment: objective against time, and what ranks do to each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean

import numpy as np

from analysis.drawing.curve import Curve
from analysis.drawing.drawing import Drawing, Line, Panel
from analysis.method import Method
from analysis.paper.curves import curve
from analysis.paper.figures import grid_of
from analysis.paper.record import Record
from analysis.paper.tuning import Tuned

_NOT_COUNTED = "conflicts are not counted where MPI itself adds (window: accumulate)"


def svm_figures(tuned: Sequence[Tuned], footnotes: dict[str, str]) -> Iterator[Drawing]:
    """Yield objective against milliseconds, a panel for each penalty and number of ranks, and contention by ranks."""
    curves = [each for each in tuned if each.place.experiment == "svm" and each.records]
    note = (footnotes["svm"],) if footnotes.get("svm") else ()
    panels = grid_of(curves, _against_time)
    if panels:
        yield Drawing(
            name="svm",
            experiment="svm",
            title="Asynchronous SVM: objective against time",
            panels=panels,
            x_label="milliseconds",
            y_label="f(w), scale of log₂",
            y_scale="log2",
            footnotes=note,
        )
    for row in dict.fromkeys(each.place.row for each in curves):
        here = [each for each in curves if each.place.row == row]
        yield _contention(here, row[1], note)


def conflicts_per_write(record: Record) -> float | None:
    """Return the failed attempts an entry written, None where they cannot be counted."""
    conflicts, written = record.end.get("conflicts"), record.end.get("entries_written")
    return conflicts / written if conflicts is not None and written else None


def waiting_share(record: Record) -> float | None:
    """Return the part of the ranks' time that went into conflicts, or into waiting for the network."""
    waiting, wall = record.end.get("waiting_seconds"), record.end.get("wall_seconds")
    return waiting / (wall * record.ranks) if waiting is not None and wall and record.ranks else None


def mean_staleness(record: Record) -> float | None:
    """Return how many updates of others came between a rank's read and its write, on average."""
    return _staleness(record, "mean")


def _largest_staleness(record: Record) -> float | None:
    return _staleness(record, "max")


def _staleness(record: Record, key: str) -> float | None:
    value = (record.end.get("staleness") or {}).get(key)
    return None if value is None else float(value)


_Quantity = tuple[str, str, float, Callable[[Record], float | None]]
_QUANTITIES: tuple[_Quantity, ...] = (
    ("conflicts: failed attempts an entry", "an entry written", 1.0, conflicts_per_write),
    ("waiting: share of the ranks' time", "%", 100.0, waiting_share),
    ("staleness: mean", "updates by others", 1.0, mean_staleness),
    ("staleness: largest", "updates by others", 1.0, _largest_staleness),
)


def _against_time(each: Tuned) -> Line:
    points = curve(each.records, "milliseconds", "objective")
    return Line(each.method, each.legend, points, each.var, each.spa, each.lr, _directories(each.records))


def _contention(curves: Sequence[Tuned], words: str, note: tuple[str, ...]) -> Drawing:
    name = "svm-contention-" + words.removeprefix("λ = ")
    panels = tuple(
        Panel(title, place // 2, place % 2, tuple(_by_ranks(curves, factor, value)), label)
        for place, (title, label, factor, value) in enumerate(_QUANTITIES)
    )
    windows = {each.records[0].end.get("window") for each in curves}
    return Drawing(
        name=name,
        experiment="svm",
        title=f"Asynchronous SVM, {words}: what ranks do to each other",
        panels=panels,
        x_label="ranks",
        y_label="",
        x_scale="ranks",
        y_scale="from zero",
        footnotes=(*((_NOT_COUNTED,) if "accumulate" in windows else ()), *note),
        one_legend=True,
    )


def _by_ranks(curves: Sequence[Tuned], factor: float, value: Callable[[Record], float | None]) -> Iterator[Line]:
    """Yield a line for each method, with a point for each number of ranks that tells."""
    methods: dict[Method, list[Tuned]] = {}
    for each in curves:
        methods.setdefault(each.method, []).append(each)
    for method, own in methods.items():
        points = [(each.place.column[0], _mean(value(record) for record in each.records)) for each in own]
        known = sorted((ranks, found * factor) for ranks, found in points if not math.isnan(found))
        if known:
            x, y = (np.array(column, dtype=np.float64) for column in zip(*known, strict=True))
            runs = tuple(path for each in own for path in _directories(each.records))
            spa = own[0].spa
            look = {"marker": method.look["marker"] or "."}
            yield Line(method, method.legend(None, spa), Curve(x, y, y, y), own[0].var, spa, None, runs, look)


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else math.nan


def _directories(records: Iterable[Record]) -> tuple[str, ...]:
    return tuple(str(record.directory) for record in records)
