"""What the model says of a study: the fit, predictions, the crossover, as figures and tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from analysis.bootstrap import LEVEL, Interval, interval
from analysis.drawing.curve import Curve
from analysis.drawing.drawing import Drawing, Line, Panel
from analysis.model.cost import TERMS
from analysis.model.crossover import Change, changes, crossovers
from analysis.model.measure import Cell, cells_of
from analysis.model.predict import Fitted, HeldOut, fit_cells, hold_out, prediction, rank_counts
from analysis.report.figures import Measured, of_intervals
from analysis.report.look import line, looks

#: Coefficients in words.
WORDS = {
    "alpha": "α, a round of short messages",
    "ring": "α, a round of a ring of long messages",
    "beta": "β, a byte received",
    "crowd": "γ, a byte received, for each thread more on a core",
    "turn": "an exchange, for each thread more on a core",
    "add": "γ, summing an entry that is sent whole",
    "convert": "γ, an entry to and from 16 bits",
    "select": "γ, looking at an entry of the gradient",
    "message": "writing a message",
    "encode": "γ, writing an entry sent",
    "open": "reading a message",
    "decode": "γ, adding an entry received",
    "check": "γ, looking over an entry that was sent whole",
    "step": "computing, once a step",
    "sample": "computing a sample",
    "agree": "agreeing, a round",
    "idle": "waiting, of the time computed",
}


@dataclass(frozen=True)
class Modelled:
    """The model of a study. strong: whether predictions keep the samples of all ranks together.

    shared: whether ranks that were measured shared cores, which no predicted ones do.
    ranks: what is predicted. predictions: seconds by method. densities: the crossover by method, against dense.
    """

    fitted: Fitted
    strong: bool
    shared: bool
    ranks: list[int]
    predictions: dict[str, list[Interval]]
    densities: dict[str, list[Interval]]
    changes: list[Change]
    held_out: list[HeldOut]


def model(measured: Measured, generator: np.random.Generator) -> Modelled | None:
    """Return the model of a study, None if no run has an exchange."""
    cells = cells_of(measured.study.runs)
    if not any(cell.point.ranks > 1 for cell in cells):
        return None
    fitted = fit_cells(cells, generator)
    strong = all(series.kind != "weak" for series in measured.series)
    last = {cell.method: cell for cell in cells}
    for cell in cells:
        last[cell.method] = max(last[cell.method], cell, key=lambda each: each.point.ranks)
    ranks = rank_counts(2)
    dense = last.get("dense")
    sparse = {method: cell for method, cell in last.items() if cell.point.sparse and cell.point.count}
    densities = {
        method: crossovers(fitted, cell.point, dense.point, ranks)
        for method, cell in sparse.items()
        if dense is not None
    }
    first: Cell | None = next(iter(sparse.values()), None)
    several = [2, 8, 64, 512, 4096]
    return Modelled(
        fitted=fitted,
        strong=strong,
        shared=any(cell.point.sharing > 1 for cell in cells),
        ranks=ranks,
        predictions={method: prediction(fitted, cell, ranks, strong=strong) for method, cell in last.items()},
        densities=densities,
        changes=list(changes(fitted, first.point, dense.point, several)) if first is not None and dense else [],
        held_out=list(hold_out(cells, generator)),
    )


def model_figures(measured: Measured, modelled: Modelled) -> Iterator[Drawing]:
    """Yield the fit, the predictions, and the crossover."""
    yield _fit_figure(measured, modelled)
    yield _prediction_figure(measured, modelled)
    # An axis of logarithms cannot be drawn where dense always wins, which the page says in words.
    if any(density.value > 0 for densities in modelled.densities.values() for density in densities):
        yield _crossover_figure(measured, modelled)


def _fit_figure(measured: Measured, modelled: Modelled) -> Drawing:
    """Return fitted over measured seconds: of phases, and of whole steps."""
    cells, cost = modelled.fitted.cells, modelled.fitted.cost
    phase_looks = looks(TERMS)
    by_phase = []
    for phase in TERMS:
        pairs = [(cell.median()[phase], cost.phases(cell.point)[phase]) for cell in cells]
        points = _scatter([pair for pair in pairs if pair[1] > 0])
        by_phase.append(line(phase, {**phase_looks[phase], "linestyle": "none"}, points, whiskers=True))
    whole = []
    for method in dict.fromkeys(cell.method for cell in cells):
        own = [cell for cell in cells if cell.method == method]
        points = _scatter([(sum(cell.median().values()), cost.seconds(cell.point)) for cell in own])
        whole.append(line(method, {**measured.looks[method], "linestyle": "none"}, points, whiskers=True))
    panels = (
        Panel("phases", 0, 0, (_diagonal(by_phase), *by_phase)),
        Panel(f"whole steps, r² = {modelled.fitted.r2['step']:.2f}", 0, 1, (_diagonal(whole), *whole)),
    )
    drawing = _drawing(measured, "model-fit", "the model beside what it was fitted to", panels)
    return replace(drawing, x_label="measured (s)", y_label="fitted (s)", x_scale="log", y_scale="log")


def _scatter(pairs: list[tuple[float, float]]) -> Curve:
    x, y = np.array(sorted(pairs)).reshape(-1, 2).T
    return Curve(x, y, y, y)


def _diagonal(lines: list[Line]) -> Line:
    every = np.concatenate([each.points.x for each in lines] + [each.points.y for each in lines])
    ends = np.array([every.min(), every.max()])
    return line("fitted = measured", {"color": "#888888", "linestyle": (0, (4, 3)), "marker": "", "linewidth": 1.4},
                Curve(ends, ends, ends, ends))  # fmt: skip


def _prediction_figure(measured: Measured, modelled: Modelled) -> Drawing:
    x = np.array(modelled.ranks, dtype=float)
    lines = []
    for series in measured.series:
        look = measured.looks[series.method]
        predicted = modelled.predictions[series.method]
        lines.append(line(series.method, {**look, "marker": ""}, of_intervals(x, predicted)))
        steps = [step for step in series.steps if step.ranks > 1]
        points = of_intervals(np.array([step.ranks for step in steps], dtype=float), [s.seconds for s in steps])
        lines.append(line(f"{series.method}, measured", {**look, "linestyle": "none"}, points, label="", whiskers=True))
    words = "the same samples a step in all" if modelled.strong else "the same samples a step on each rank"
    panels = (Panel("", 0, 0, tuple(lines), "time of a step (s)", "log", "ranks", "ranks"),)
    notes = [f"lines: the model, with bands of {LEVEL:.0%} over runs drawn again; markers: measured; {words}"]
    if modelled.shared:
        notes.append("lines are for ranks with cores of their own; measured ranks shared theirs")
    return _drawing(measured, "model-prediction", "predicted time of a step", panels, tuple(notes))


def _crossover_figure(measured: Measured, modelled: Modelled) -> Drawing:
    x = np.array(modelled.ranks, dtype=float)
    lines = []
    for method, densities in modelled.densities.items():
        points = of_intervals(x, densities)
        lines.append(line(f"coded as {method}", measured.looks[method], points.where(points.y > 0)))
    panels = (Panel("", 0, 0, tuple(lines), "crossover density", "log", "ranks", "ranks"),)
    notes = (
        "below its line sparse is faster than dense float32, above it dense; where a line is missing, dense always",
    )
    return _drawing(measured, "model-crossover", "the density at which dense wins", panels, notes)


def _drawing(
    measured: Measured, suffix: str, title: str, panels: tuple[Panel, ...], notes: tuple[str, ...] = ()
) -> Drawing:
    return Drawing(
        name=f"{measured.name}-{suffix}",
        experiment=measured.name,
        title=f"{measured.study.name}: {title}",
        panels=panels,
        x_label="",
        y_label="",
        footnotes=notes,
        of_rules=False,
    )


def coefficients(modelled: Modelled) -> Iterator[tuple[str, str, Interval]]:
    """Yield each coefficient in words, with its phase and its interval, in seconds; waiting is a share."""
    fitted = modelled.fitted
    for phase, names in TERMS.items():
        for name in names:
            if name in ("crowd", "turn") and not modelled.shared:
                continue
            for method in fitted.cost.select if name == "select" else [""]:
                drawn = np.array([cost.of(name, method) for cost in fitted.drawn])
                words = f"{WORDS[name]}, {method}" if method else WORDS[name]
                yield words, phase, interval(fitted.cost.of(name, method), drawn)
