"""find_largest: the entries of largest magnitude, with the ties at the threshold apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.histogram import Floats, Split, find_cut
from mpisparse.kernels.vectors import SMALLEST, Vector, find_at_least
from mpisparse.sparse import Indices

#: Entries looked at, at most about, to guess a floor below the threshold.
SAMPLE = 1 << 16


class Largest(NamedTuple):
    """The entries that are surely among the largest, and those that compete for the places left."""

    above: Indices
    """Those larger in magnitude than the last place, rising; fewer than were asked for, or every nonzero entry."""
    tied: Indices
    """Those as large as the last place, rising."""


@dataclass(frozen=True)
class _AtLeast:
    """Holds up to the magnitude that `count` entries reach."""

    count: int
    moments: int = 0

    def holds(self, magnitudes: Floats, split: Split) -> NDArray[np.bool_]:
        return split.above >= self.count


def find_largest(vector: Vector, count: int) -> Largest:
    """Return the `count` nonzero entries of largest magnitude, ties at the last place apart.

    Entries in `above` are all to be taken; `count - above.size` are to be taken of `tied`, which has at least as many.
    With no more than `count` nonzero entries all of them are in `above`.

    Args:
        vector: float32 of shape (numel,), finite.
        count: places to fill, at least 1.
    """
    candidates = find_at_least(vector, _guess_floor(vector, count))
    if candidates.size < count:
        # The sample misled: its floor was too high. Every nonzero entry is a candidate then.
        candidates = find_at_least(vector, SMALLEST)
    if candidates.size <= count:
        return Largest(candidates, candidates[:0])
    magnitudes = np.abs(vector[candidates])
    threshold = np.float32(find_cut(magnitudes, _AtLeast(count)).magnitude)
    return Largest(candidates[magnitudes > threshold], candidates[magnitudes == threshold])


def _guess_floor(vector: Vector, count: int) -> np.float32:
    """Return a magnitude that a few more than `count` entries should reach; a guess, to be checked."""
    # An odd stride, so that the sample does not fall in step with rows whose length is a power of two.
    sample = np.abs(vector[:: max(vector.size // SAMPLE, 16) | 1])
    expected = count * sample.size / max(vector.size, 1)
    place = sample.size - math.ceil(expected + 4 * math.sqrt(expected) + 8)
    if place < 0:
        return SMALLEST
    return max(np.float32(np.partition(sample, place)[place]), SMALLEST)
