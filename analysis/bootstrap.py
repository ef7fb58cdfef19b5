"""Bootstrap: intervals of medians over runs and steps, without an assumption about how times are distributed.

First runs are drawn with replacement, then in each of them steps (B. Efron and R. Tibshirani, An Introduction to the
Bootstrap, 1993). The second drawing makes no list of steps: the median of n uniform order statistics has a Beta
distribution, so that one number says which of the sorted times it falls on. That is exact, and a run costs as little
with a million steps as with ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: How often is drawn, which percentiles are given, and from how many repeats on an interval means something.
DRAWS, LEVEL, ENOUGH = 1000, 0.95, 3


@dataclass(frozen=True)
class Interval:
    """A number with the limits between which it lies, at LEVEL. NaN where unknown."""

    value: float
    low: float
    high: float


def median_of(runs: Sequence[NDArray[np.float32]]) -> float:
    """Return the median over runs of each run's median step."""
    return float(np.median([np.median(times) for times in runs]))


def drawn_medians(runs: Sequence[NDArray[np.float32]], generator: np.random.Generator, draws: int = DRAWS) -> Array:
    """Return medians over runs of medians over steps, drawn again: float64 of shape (draws,).

    Args:
        runs: for each run the times of its steps, rising; at least one of each.
        generator: where the drawing comes from.
        draws: how many.
    """
    chosen = generator.integers(len(runs), size=(draws, len(runs)))
    medians = np.empty(chosen.shape)
    for i, times in enumerate(runs):
        here = chosen == i
        medians[here] = _drawn(times, generator, int(np.count_nonzero(here)))
    return np.asarray(np.median(medians, axis=1))


def _drawn(times: NDArray[np.float32], generator: np.random.Generator, draws: int) -> Array:
    """Return medians of as many times as there are, drawn with replacement."""
    n = len(times)
    below = (n + 1) // 2
    first = generator.beta(below, n + 1 - below, draws)
    # With an even number the median is the mean of the two in the middle; given one, the next is a minimum of the rest.
    second = first + (1 - first) * generator.beta(1, n - below, draws) if n % 2 == 0 else first
    places = np.minimum(np.array([first, second]) * n, n - 1).astype(np.int64)
    return np.asarray(times[places].mean(axis=0, dtype=np.float64))


def interval(value: float, drawn: Array) -> Interval:
    """Return `value` with the percentiles of what was drawn; draws that are not finite do not count."""
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def coverage(repeats: int) -> float:
    """Return the probability that the range of so many runs has the true median of runs inside: no interval that is
    made of these runs can be surer."""
    return 1 - 2.0 ** (1 - repeats)
