"""The figures of what was measured: from a study to drawings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.bootstrap import LEVEL, Interval
from analysis.drawing.curve import Array, Curve
from analysis.drawing.drawing import Drawing, Heat, Line, Panel, Stack
from analysis.markdown import number
from analysis.report.look import PHASE_WORDS, PHASES, ideal, line, looks
from analysis.scaling import Series, Step
from analysis.study import Study

#: Maps and stacks a figure has at most.
_PANELS = 6

_LIMITS = ("value", "low", "high")

BAND = f"whiskers: {LEVEL:.0%} bootstrap intervals"


@dataclass(frozen=True)
class Measured:
    """A study with what was computed of it. name: of its files, without a suffix. looks: of its methods."""

    study: Study
    name: str
    series: tuple[Series, ...]
    looks: dict[str, dict[str, Any]]


def figures(measured: Measured) -> Iterator[Drawing]:
    """Yield the figures of a study that its runs have something for."""
    for kind in ("strong", "weak"):
        yield from scaling_figure(measured, kind)
    yield from phases_figure(measured)
    yield from balance_figure(measured)
    yield from bytes_figure(measured)
    yield from waiting_figure(measured)


def scaling_figure(measured: Measured, kind: str) -> Iterator[Drawing]:
    """Yield speed-up and efficiency against ranks, if there are methods of that kind of scaling."""
    series = [each for each in measured.series if each.kind == kind and not each.refused]
    if not series:
        return
    x = np.array(sorted({step.ranks for each in series for step in each.steps}), dtype=float)
    base = min(each.base for each in series)
    word = "speed-up" if kind == "strong" else "scaled speed-up"
    speed = [_scaling_line(measured, each, [step.speed_up for step in each.steps]) for each in series]
    efficiency = [_scaling_line(measured, each, [step.efficiency for step in each.steps]) for each in series]
    over = f"{word} over {base} rank{'s' * (base > 1)}"
    panels = (
        Panel(word, 0, 0, (ideal(x, x / base), *speed), over, "log2"),
        Panel("efficiency", 0, 1, (ideal(x, np.ones(len(x))), *efficiency), f"{word} / ideal", "from zero"),
    )
    notes = (f"each method over itself; {BAND}",)
    yield _drawing(measured, kind, f"{kind} scaling", panels, "ranks", x_scale="ranks", notes=notes)


def _scaling_line(measured: Measured, series: Series, values: Sequence[Interval]) -> Line:
    runs = tuple(str(brief.directory) for step in series.steps for brief in step.briefs)
    x = np.array([step.ranks for step in series.steps], dtype=float)
    return line(series.method, measured.looks[series.method], of_intervals(x, values), runs=runs, whiskers=True)


def of_intervals(x: Array, values: Sequence[Interval]) -> Curve:
    """Return a curve with intervals as its band."""
    columns = [np.array([getattr(value, name) for value in values]) for name in _LIMITS]
    return Curve(x, *columns)


def phases_figure(measured: Measured) -> Iterator[Drawing]:
    """Yield bars of a step's time by phase, one for each number of ranks, a panel for each method."""
    most = max((step.seconds.high for each in measured.series for step in each.steps), default=0.0)
    factor, unit = (1e3, "ms") if most < 1 else (1.0, "s")
    panels = []
    for i, series in enumerate(measured.series[:_PANELS]):
        stack = _stack(series.steps, factor, most)
        panels.append(
            Panel(series.method, i // 3, i % 3, y_label=f"time of a step ({unit})", x_label="ranks", stack=stack)
        )
    notes = (f"bars end at the median step; parts: medians by phase, in proportion; {BAND}",)
    yield _drawing(measured, "phases", "time per step by phase", tuple(panels), "ranks", notes=notes)


def _stack(steps: Sequence[Step], factor: float, most: float) -> Stack:
    medians = np.array([[np.median([b.phases[phase] for b in step.briefs]) for step in steps] for phase in PHASES])
    medians *= factor * np.array([step.seconds.value for step in steps]) / medians.sum(axis=0)
    parts = {PHASE_WORDS.get(phase, phase): medians[i] for i, phase in enumerate(PHASES)}
    middle, low, high = (factor * np.array([getattr(step.seconds, name) for step in steps]) for name in _LIMITS)
    colours = {PHASE_WORDS.get(phase, phase): colour for phase, colour in PHASES.items()}
    bars = tuple(str(step.ranks) for step in steps)
    return Stack(bars, parts, colours, 1.05 * factor * most, (middle, low, high), "median step")


def balance_figure(measured: Measured) -> Iterator[Drawing]:
    """Yield POP's load balance and communication efficiency against ranks, if ranks' files are there."""
    words = {"load_balance": "load balance", "communication_efficiency": "communication efficiency"}
    panels = []
    for column, (name, title) in enumerate(words.items()):
        lines = [_balance_line(measured, series, name) for series in measured.series]
        found = tuple(each for each in lines if len(each.points.x))
        panels.append(Panel(title, 0, column, found, title, "share"))
    if any(panel.lines for panel in panels):
        notes = ("medians over repeats; whiskers: their range",)
        yield _drawing(measured, "balance", "POP metrics", tuple(panels), "ranks", x_scale="ranks", notes=notes)


def _balance_line(measured: Measured, series: Series, name: str) -> Line:
    rows = []
    for step in series.steps:
        values = [getattr(brief.waiting, name) for brief in step.briefs if brief.waiting is not None]
        if values and step.ranks > 1:
            rows.append((step.ranks, np.median(values), min(values), max(values)))
    table = np.array(rows, dtype=float).reshape(-1, 4)
    return line(series.method, measured.looks[series.method], Curve(*table.T), whiskers=True)


def bytes_figure(measured: Measured) -> Iterator[Drawing]:
    """Yield bytes received into each rank in a step against the density sent, a line for each number of ranks."""
    by_ranks: dict[int, list[tuple[float, float]]] = {}
    dense: dict[int, float] = {}
    for brief in measured.study.briefs:
        means, ranks = brief.means, brief.ranks
        if ranks > 1:
            by_ranks.setdefault(ranks, []).append((means["count"] / means["entries"], means["received_bytes"] / ranks))
            dense[ranks] = means["dense_bytes"] / ranks
    if not by_ranks:
        return
    ranks_looks = looks(number(ranks, "rank") for ranks in sorted(by_ranks))
    lines = []
    for ranks, points in sorted(by_ranks.items()):
        name = number(ranks, "rank")
        look = ranks_looks[name]
        x, y = np.array(sorted(points)).T
        lines.append(line(name, {**look, "linestyle": "none"}, Curve(x, y, y, y), whiskers=True))
        span = np.array([min(0.5 * x.min(), 0.5), 1.0])
        flat = np.full(2, dense[ranks])
        level = {**look, "linestyle": (0, (4, 3)), "marker": "", "linewidth": 1.3}
        lines.append(line(f"{name}, dense float32 ring", level, Curve(span, flat, flat, flat)))
    panel = Panel("", 0, 0, tuple(lines), "bytes into each rank", "log", "density sent", "log")
    yield _drawing(measured, "bytes", "bytes per rank and step against density", (panel,), "density sent")


def waiting_figure(measured: Measured) -> Iterator[Drawing]:
    """Yield maps of waiting by rank and step, of the first run of each method on the most ranks."""
    panels: list[Panel] = []
    for series in measured.series:
        brief = series.steps[-1].briefs[0]
        if brief.waiting is None or brief.ranks < 2 or len(panels) == _PANELS:
            continue
        heat = Heat(1e3 * brief.waiting.map, brief.waiting.width, "waiting (ms a step)")
        title = f"{series.method}, {brief.ranks} ranks"
        panels.append(Panel(title, len(panels) // 3, len(panels) % 3, y_label="rank", x_label="step", heat=heat))
    if panels:
        notes = ('phase "agree": a rank waits there for the slowest; dark rows are the slow ranks',)
        yield _drawing(measured, "waiting", "waiting by rank", tuple(panels), "step", notes=notes)


def _drawing(
    measured: Measured,
    suffix: str,
    title: str,
    panels: tuple[Panel, ...],
    x_label: str,
    *,
    x_scale: str = "linear",
    notes: tuple[str, ...] = (),
) -> Drawing:
    return Drawing(
        name=f"{measured.name}-{suffix}",
        experiment=measured.name,
        title=f"{measured.study.name}: {title}",
        panels=panels,
        x_label=x_label,
        y_label="",
        x_scale=x_scale,
        y_scale="linear",
        footnotes=notes,
        of_rules=False,
    )
