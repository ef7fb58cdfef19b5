"""What is said of samples: median, spread, ratios taken pair by pair, and lines through medians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Summary:
    """The middle of some numbers, and where the middle four fifths of them lie."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """y = start + slope * x."""

    start: float
    slope: float


def summarise(values: ArrayLike) -> Summary:
    """Return the median and the 10 % and 90 % quantiles of some numbers, at least one."""
    low, median, high = np.quantile(np.asarray(values, np.float64), [0.1, 0.5, 0.9])
    return Summary(float(median), float(low), float(high))


def median_ratio(ours: ArrayLike, reference: ArrayLike) -> float:
    """Return the median of the ratios of numbers that were taken one after the other.

    What slows the machine down for a while slows both of a pair, so this is steadier than the ratio of medians.
    """
    return float(np.median(np.asarray(ours, np.float64) / np.asarray(reference, np.float64)))


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Return the line of least squared relative errors through points, or None for fewer than two different x.

    Errors count in relation to y, as timing errors grow with the time: the small ones would not count at all otherwise.
    """
    if len(set(x)) < 2:
        return None
    weights = 1.0 / np.asarray(y, np.float64)
    slope, start = np.polyfit(np.asarray(x, np.float64), np.asarray(y, np.float64), 1, w=weights)
    return Line(float(start), float(slope))
