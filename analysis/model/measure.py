"""From runs to the points that the model is fitted to: one for each method and rank count, medians over repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from analysis.brief import Brief
from analysis.model.cost import TERMS, Point


@dataclass(frozen=True)
class Cell:
    """The repeats of one method on one number of ranks.

    point: medians over the repeats. phases: for each repeat, the median seconds by phase of TERMS.
    """

    method: str
    point: Point
    phases: tuple[dict[str, float], ...]

    def median(self, chosen: Sequence[int] | None = None) -> dict[str, float]:
        """Return the medians over the repeats, or over chosen ones, by phase."""
        taken = self.phases if chosen is None else [self.phases[i] for i in chosen]
        return {phase: median([each[phase] for each in taken]) for phase in TERMS}


def cells_of(runs: dict[str, dict[int, list[Brief]]]) -> list[Cell]:
    """Return the cells of runs by method and by ranks. What tensors that are sent whole take is told by three ranks or
    more; it is the same on all."""
    cells = []
    for method, by_ranks in runs.items():
        points = {ranks: _median([_point(brief) for brief in briefs]) for ranks, briefs in by_ranks.items()}
        whole = [_whole(ranks, point, by_ranks[ranks]) for ranks, point in points.items() if ranks > 2]
        for ranks, point in points.items():
            if point.sparse and whole:
                point = _split(point, float(np.median(whole)))
            point = replace(point, method=method)
            cells.append(Cell(method, point, tuple(_phases(brief) for brief in by_ranks[ranks])))
    return cells


def _point(brief: Brief) -> Point:
    """Return the step of a run; all that it sends counts as message, or all as whole."""
    ranks, means = brief.ranks, brief.means
    payload, numel = means["payload_bytes"] / ranks, means["entries"] / ranks
    whole = brief.whole
    return Point(
        ranks=ranks,
        numel=numel,
        samples=means["samples"] / ranks,
        count=0.0 if whole else means["count"] / ranks,
        message=0.0 if whole else payload,
        whole=payload if whole else 0.0,
        width=payload / numel if whole and numel else 4.0,
        sparse=not whole,
        sharing=brief.sharing,
    )


def _median(points: Sequence[Point]) -> Point:
    def of(name: str) -> float:
        return float(np.median([getattr(point, name) for point in points]))

    first = replace(points[0], numel=of("numel"), samples=of("samples"), count=of("count"))
    return replace(first, message=of("message"), whole=of("whole"), width=of("width"), sharing=of("sharing"))


def _whole(ranks: int, point: Point, briefs: Sequence[Brief]) -> float:
    """Return the bytes of whole tensors in a sparse step: of b bytes sent, m in messages and w whole, a rank receives
    (P - 1) m + 2 (P - 1) / P w, which is another equation unless P is 2."""
    received = float(np.median([brief.means["received_bytes"] / ranks for brief in briefs]))
    whole = (point.message - received / (ranks - 1)) / (1 - 2 / ranks)
    return min(max(whole, 0.0), point.message)


def _split(point: Point, whole: float) -> Point:
    whole = min(whole, point.message, 4 * point.count)
    return replace(point, message=point.message - whole, whole=whole, count=point.count - whole / 4)


def _phases(brief: Brief) -> dict[str, float]:
    phases = brief.phases
    together = phases["data"] + phases["compute"] + phases["apply"]
    return {phase: together if phase == "compute" else phases[phase] for phase in TERMS}
