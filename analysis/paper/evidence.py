"""Evidence: the tuned curves and codings that claims are judged by, and the measures that several of them share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.drawing.curve import Curve
from analysis.paper.coding import Coding
from analysis.paper.curves import curve
from analysis.paper.place import Place
from analysis.paper.record import Array
from analysis.paper.tuning import Tuned

HOLDS, FAILS, NOT_MEASURED = "holds", "does not hold", "not measured"

#: A suboptimality below this is lost in the rounding of float32 parameters, and of the optimum itself.
FLOOR = 1e-9


@dataclass(frozen=True)
class Evidence:
    """What was measured: curves after the choice of their learning rates, and coding studies."""

    tuned: tuple[Tuned, ...]
    codings: tuple[Coding, ...] = ()

    def curves(self, *experiments: str) -> list[Tuned]:
        """Return the curves of some experiments, failed ones included."""
        return [each for each in self.tuned if each.place.experiment in experiments]

    def panels(self, *experiments: str) -> Iterator[tuple[Place, list[Tuned]]]:
        """Yield the panels of some experiments with their curves."""
        panels: dict[Place, list[Tuned]] = {}
        for each in self.curves(*experiments):
            panels.setdefault(each.place, []).append(each)
        yield from panels.items()


@dataclass(frozen=True)
class Finding:
    """What a claim came to. measured: in words, with the numbers. runs: how many they come from."""

    verdict: str
    measured: str
    runs: int = 0


def not_measured(why: str) -> Finding:
    """Return the finding of a claim that no run tells of."""
    return Finding(NOT_MEASURED, why)


def judged(holds: bool, measured: str, curves: Iterable[Tuned] = ()) -> Finding:
    """Return a finding whose numbers come from these curves; each run is counted once."""
    runs = {record.directory for each in curves for record in each.records}
    return Finding(HOLDS if holds else FAILS, measured, len(runs))


def family(curves: Iterable[Tuned], *names: str) -> list[Tuned]:
    """Return the curves of some families of methods."""
    return [each for each in curves if each.method.family in names]


def matching(curves: Iterable[Tuned], name: str, amount: float | None) -> Tuned | None:
    """Return the curve of a family at a density, None if there is none."""
    return next((each for each in family(curves, name) if each.method.amount == amount), None)


def reach(points: Curve, level: float) -> float:
    """Return the first x at which a curve is at `level` or below, between points in a line on a log scale; or infinity.

    Levels are raised to FLOOR, under which nothing is told apart.
    """
    level = max(level, FLOOR)
    below = np.flatnonzero(points.y <= level)
    if not len(below):
        return math.inf
    i = int(below[0])
    if i == 0:
        return float(points.x[0])
    above, here = math.log(points.y[i - 1]), math.log(max(points.y[i], FLOOR))
    share = (above - math.log(level)) / (above - here) if above > here else 1.0
    return float(points.x[i - 1] + share * (points.x[i] - points.x[i - 1]))


def slowdowns(evidence: Evidence, *experiments: str) -> list[tuple[float, float, Tuned]]:
    """Return for each sparsified curve its var, and how many times the dense one's passes it took to its own end."""
    found = []
    for _, curves in evidence.panels(*experiments):
        dense = matching(curves, "dense", None)
        for each in family(curves, "gspar", "uniform", "qsgd", "terngrad"):
            if dense is None or not dense.records or not each.records or each.var is None or each.var <= 1:
                continue
            points = curve(each.records, "passes", "suboptimality")
            baseline = reach(curve(dense.records, "passes", "suboptimality"), each.score)
            own = reach(points, each.score)
            if baseline > 0 and own > 0 and math.isfinite(baseline) and math.isfinite(own):
                found.append((each.var, own / baseline, each))
    return found


def power(var: Sequence[float], slowdown: Sequence[float]) -> tuple[float, float]:
    """Return the exponent k of slowdown = var^k by least squares of logarithms, and the r² of that fit."""
    x, y = np.log(np.asarray(var)), np.log(np.asarray(slowdown))
    k = float(x @ y / (x @ x))
    return k, _r2(y, k * x)


def straightness(x: Array, y: Array) -> tuple[float, float]:
    """Return the slope of the straight line through points, and its r²; both NaN for fewer than three points."""
    if len(x) < 3 or np.ptp(x) == 0:
        return math.nan, math.nan
    slope, base = np.polyfit(x, y, 1)
    return float(slope), _r2(y, slope * x + base)


def _r2(y: Array, fitted: Array) -> float:
    spread = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - fitted) ** 2).sum()) / spread if spread > 0 else 1.0
