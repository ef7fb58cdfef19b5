"""Bootstrap: intervals of medians over runs and steps, without an assumption about how times are distributed.

First runs are drawn with replacement, then in each of them steps (B. Efron and R. Tibshirani, An Introduction to the
Bootstrap, 1993). Steps that follow each other are alike: a machine is slow for a while. So blocks of successive steps
are drawn, around the end to the beginning (D. Politis and J. Romano, A Circular Block-Resampling Procedure, 1992), as
long as the run's own dependence asks for. Where steps do not depend on each other, no list of steps is made: the median
of n uniform order statistics has a Beta distribution, so that one number says which of the sorted times it falls on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: How often is drawn, which percentiles are given, and from how many repeats on an interval means something.
DRAWS, LEVEL, ENOUGH = 1000, 0.95, 3

#: Entries of lists of steps that are drawn at a time.
_AT_A_TIME = 1 << 21


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
        runs: for each run the times of its steps, in the order in which they were made; at least one of each. Times
            that only rise have lost their order, and count as independent.
        generator: where the drawing comes from.
        draws: how many.
    """
    chosen = generator.integers(len(runs), size=(draws, len(runs)))
    medians = np.empty(chosen.shape)
    for i, times in enumerate(runs):
        here = chosen == i
        count = int(np.count_nonzero(here))
        length = block_length(times)
        medians[here] = (
            _drawn(np.sort(times), generator, count) if length == 1 else _drawn_blocks(times, length, generator, count)
        )
    return np.asarray(np.median(medians, axis=1))


def block_length(times: NDArray[np.float32]) -> int:
    """Return how many successive steps are drawn together: 1 where steps do not depend on each other.

    The automatic choice for circular blocks (D. Politis and H. White, Econometric Reviews 23, 2004; corrected with
    A. Patton, 28, 2009), of whether a step is below the median: that is what the median depends on, and single steps
    that take a hundred times as long do not hide it.
    """
    n = len(times)
    low, high = float(np.min(times)), float(np.max(times))
    if n < 8 or low == high or bool((np.diff(times) >= 0).all()):
        return 1
    side = np.sign(times - np.median(times)).astype(np.float64)
    covariances = _covariances(side - side.mean(), min(n - 1, 2 * math.ceil(math.sqrt(n)) + 2 * _beyond(n)))
    if covariances[0] <= 0:
        return 1
    # The last lag that still says something: those after it lie within the noise.
    within = np.abs(covariances / covariances[0]) < 2 * math.sqrt(math.log10(n) / n)
    quiet = next((m for m in range(len(within) - _beyond(n)) if within[m + 1 : m + 1 + _beyond(n)].all()), None)
    widest = math.ceil(math.sqrt(n)) + _beyond(n)
    lags = np.arange(1, min(2 * max(1, widest if quiet is None else quiet), len(covariances) - 1) + 1)
    if quiet == 0:
        return 1
    # A flat top: all of the nearer half counts, and the farther half less and less.
    kept = np.minimum(1.0, 2.0 * (1.0 - lags / (lags[-1] + 1e-12))) * covariances[lags]
    spectrum = covariances[0] + 2 * kept.sum()
    slope = 2 * (lags * kept).sum()
    if spectrum <= 0 or slope <= 0:
        return 1
    length = (2 * slope**2 / (4 / 3 * spectrum**2) * n) ** (1 / 3)
    return int(max(1, min(math.ceil(length), math.ceil(min(3 * math.sqrt(n), n / 3)))))


def _beyond(n: int) -> int:
    """Return how many lags in a row have to lie within the noise."""
    return max(5, math.ceil(math.sqrt(math.log10(n))))


def _covariances(centred: Array, most: int) -> Array:
    """Return the covariances of a series with itself, at lags 0 to `most`."""
    n = len(centred)
    spectrum = np.fft.rfft(centred, 2 * n)
    return np.asarray(np.fft.irfft(spectrum * spectrum.conj(), 2 * n)[: most + 1] / n)


def _drawn_blocks(times: NDArray[np.float32], length: int, generator: np.random.Generator, draws: int) -> Array:
    """Return medians of as many times as there are, drawn with replacement in blocks of so many successive ones."""
    n = len(times)
    blocks = -(-n // length)
    medians = np.empty(draws)
    step = max(1, _AT_A_TIME // n)
    for begin in range(0, draws, step):
        count = min(step, draws - begin)
        starts = generator.integers(n, size=(count, blocks, 1))
        places = ((starts + np.arange(length)) % n).reshape(count, -1)[:, :n]
        medians[begin : begin + count] = np.median(times[places], axis=1)
    return medians


def _drawn(times: NDArray[np.float32], generator: np.random.Generator, draws: int) -> Array:
    """Return medians of as many times as there are, rising, drawn with replacement one by one."""
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
