"""Where sparse begins to win: from measured times, and never beyond them without saying so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpisparse.bench.statistics import Line, fit_line
from mpisparse.bench.text import density_text, entries_text, milliseconds

Verdict = Literal["below", "always", "never", "local", "unclear"]


@dataclass(frozen=True, slots=True)
class Point:
    """The sparse exchange at one density.

    seconds: median of the whole exchange.
    local: seconds of it that are this rank's own work, whatever the network: all phases but waiting and moving bytes.
    received: bytes that come into a rank.
    """

    density: float
    seconds: float
    local: float
    received: float


@dataclass(frozen=True, slots=True)
class BreakEven:
    """How sparse compares with one dense contender at one size.

    verdict: "below" `density` sparse wins; it wins "always" or "never" at the densities measured; "local": never, as
        its local work alone takes longer than dense; "unclear": wins and losses do not lie on two sides of a density.
    density: where both take the same time; for "always" and "never" it lies outside what was measured, and is None
        where the line through the measured points gives none.
    line: sparse seconds = start + slope * bytes received, through the medians; None for one density.
    sentence: all of that for people.
    """

    against: str
    verdict: Verdict
    density: float | None
    line: Line | None
    sentence: str


def find_break_even(numel: int, against: str, dense: float, points: Sequence[Point]) -> BreakEven:
    """Return how sparse compares with a dense contender.

    Args:
        numel: entries of the vector.
        against: the dense contender's name.
        dense: median seconds of it.
        points: sparse at one or more densities.
    """
    points = sorted(points, key=lambda point: point.density)
    wins = [point.seconds < dense for point in points]
    line = fit_line([point.received for point in points], [point.seconds for point in points])
    where = f"at {entries_text(numel)} entries (against {against}, {milliseconds(dense)} ms)"
    crossing = None if line is None else _crossing(points, line, dense)
    if all(wins):
        return _one_sided("always", where, against, points, line, crossing)
    if not any(wins):
        if min(point.local for point in points) >= dense:
            local = milliseconds(min(point.local for point in points))
            words = f"the local work alone ({local} ms) exceeds dense ({milliseconds(dense)} ms)"
            sentence = f"dense wins at every density measured, {where}: {words}"
            return BreakEven(against, "local", None, line, sentence)
        return _one_sided("never", where, against, points, line, crossing)
    count = sum(wins)
    if not all(wins[:count]):
        won = ", ".join(density_text(point.density) for point, win in zip(points, wins, strict=True) if win)
        sentence = f"no clear break-even {where}: of the densities measured, sparse wins at {won} alone"
        return BreakEven(against, "unclear", None, line, sentence)
    below, above = points[count - 1].density, points[count].density
    if crossing is None or not below <= crossing <= above:
        # The line misses the points; the bracket is what was measured, and its middle the best that can be said.
        crossing = float(np.sqrt(below * above))
        between = f"{density_text(below)} and {density_text(above)}"
        return BreakEven(
            against, "below", crossing, line, f"sparse wins here below a density between {between} {where}"
        )
    sentence = f"sparse wins here below a density of about {density_text(crossing)} {where}"
    return BreakEven(against, "below", crossing, line, sentence)


def _one_sided(
    verdict: Verdict, where: str, against: str, points: Sequence[Point], line: Line | None, crossing: float | None
) -> BreakEven:
    """Return the verdict where one side won everywhere; a crossing beyond the densities measured is extrapolated."""
    winner, edge = ("sparse", points[-1]) if verdict == "always" else ("dense", points[0])
    reach = "up to" if verdict == "always" else "down to"
    measured = "at the density measured" if len(points) == 1 else "at every density measured"
    sentence = f"{winner} wins {measured}, {reach} {density_text(edge.density)}, {where}"
    beyond = crossing is not None and (crossing > edge.density if verdict == "always" else crossing < edge.density)
    if crossing is None or not beyond:
        return BreakEven(against, verdict, None, line, sentence)
    sentence += f"; extrapolated, not measured: break-even near {density_text(crossing)}"
    return BreakEven(against, verdict, crossing, line, sentence)


def _crossing(points: Sequence[Point], line: Line, dense: float) -> float | None:
    """Return the density at which the line reaches the dense time, or None if there is none in (0, 1]."""
    if line.slope <= 0:
        return None
    received = (dense - line.start) / line.slope
    first, last = points[0], points[-1]
    if received <= 0:
        return None
    if received < first.received:
        density = first.density * received / first.received
    elif received > last.received:
        density = last.density * received / last.received
    else:
        density = float(np.interp(received, [p.received for p in points], [p.density for p in points]))
    return density if density <= 1 else None
