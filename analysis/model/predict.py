"""Predictions of the fitted model, with what runs drawn again make of them, and of the largest rank count left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.bootstrap import Interval, interval
from analysis.model.cost import TERMS, Cost, Point, at, fit_cost
from analysis.model.fit import r_squared
from analysis.model.measure import Cell

#: How often runs are drawn again; how many ranks are predicted at most.
DRAWS, MOST_RANKS = 200, 4096


@dataclass(frozen=True)
class Fitted:
    """The model of some cells.

    cost: fitted to medians over repeats. drawn: fitted to medians over repeats drawn with replacement in each cell.
    r2: by phase and of the whole "step"; how much of the variation between cells the model explains.
    """

    cells: tuple[Cell, ...]
    cost: Cost
    drawn: tuple[Cost, ...]
    r2: dict[str, float]

    def seconds(self, point: Point) -> Interval:
        """Return the seconds of a step."""
        drawn = np.array([cost.seconds(point) for cost in self.drawn])
        return interval(self.cost.seconds(point), drawn)


@dataclass(frozen=True)
class HeldOut:
    """A prediction from smaller rank counts alone, beside what was measured. Seconds of a step."""

    method: str
    ranks: int
    predicted: Interval
    measured: float

    @property
    def error(self) -> float:
        """Return predicted over measured, less 1."""
        return self.predicted.value / self.measured - 1


def fit_cells(cells: Sequence[Cell], generator: np.random.Generator, draws: int = DRAWS) -> Fitted:
    """Return the model of `cells`."""
    points = [cell.point for cell in cells]
    measured = [cell.median() for cell in cells]
    cost = fit_cost(points, measured)
    drawn = []
    for _ in range(draws):
        again = [cell.median(generator.integers(len(cell.phases), size=len(cell.phases)).tolist()) for cell in cells]
        drawn.append(fit_cost(points, again))
    return Fitted(tuple(cells), cost, tuple(drawn), _r2(cells, measured, cost))


def hold_out(cells: Sequence[Cell], generator: np.random.Generator, draws: int = DRAWS) -> Iterator[HeldOut]:
    """Yield for each method with the largest rank count what the model of all smaller rank counts says of it.

    Nothing is yielded where there are fewer than two smaller rank counts, or none of them has an exchange.
    """
    most = max(cell.point.ranks for cell in cells)
    smaller = [cell for cell in cells if cell.point.ranks < most]
    counts = {cell.point.ranks for cell in smaller}
    if len(counts) < 2 or max(counts) < 2:
        return
    fitted = fit_cells(smaller, generator, draws)
    known = {cell.method for cell in smaller}
    for cell in cells:
        if cell.point.ranks == most and cell.method in known:
            yield HeldOut(cell.method, most, fitted.seconds(cell.point), sum(cell.median().values()))


def rank_counts(least: int, most: int = MOST_RANKS) -> list[int]:
    """Return `least` and the powers of two above it, to `most`."""
    return sorted({least, *(2**i for i in range(least.bit_length(), most.bit_length()))})


def prediction(fitted: Fitted, cell: Cell, ranks: Sequence[int], *, strong: bool) -> list[Interval]:
    """Return the seconds of a step of a cell's method on other numbers of ranks."""
    return [fitted.seconds(at(cell.point, count, strong=strong)) for count in ranks]


def _r2(cells: Sequence[Cell], measured: Sequence[dict[str, float]], cost: Cost) -> dict[str, float]:
    modelled = [cost.phases(cell.point) for cell in cells]
    found = {}
    for phase in TERMS:
        here = [i for i in range(len(cells)) if modelled[i][phase] > 0]
        pairs = np.array([(measured[i][phase], modelled[i][phase]) for i in here]).reshape(-1, 2)
        found[phase] = r_squared(pairs[:, 0], pairs[:, 1])
    whole = np.array([(sum(one.values()), sum(other.values())) for one, other in zip(measured, modelled, strict=True)])
    return {**found, "step": r_squared(whole[:, 0], whole[:, 1])}
