"""The entries of largest magnitude: a guess at where they begin, and the exact choice among what lies above it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpisparse import random
from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.histogram import Floats, Split, find_cut
from mpisparse.kernels.vectors import SMALLEST, Vector
from mpisparse.sparse import Indices

#: Entries looked at, at most about, to guess a floor below the threshold.
SAMPLE = 1 << 16

#: Shorter vectors are searched whole: a guess would cost more than it saves.
SHORT = 1 << 12


class Floor(NamedTuple):
    """A guess at a magnitude that somewhat more than a wanted number of entries reach."""

    magnitude: np.float32
    """At least the smallest magnitude above zero."""
    room: int
    """So many entries that it is very unlikely that more reach it."""


@dataclass(frozen=True)
class _AtLeast:
    """Holds up to the magnitude that `count` entries reach."""

    count: int
    moments: int = 0

    def holds(self, magnitudes: Floats, split: Split) -> NDArray[np.bool_]:
        return split.above >= self.count


def stride(numel: int) -> int:
    """Return the distance between the entries that a sample takes."""
    # Odd, so that the sample does not fall in step with rows whose length is a power of two.
    return max(numel // SAMPLE, 16) | 1


def guess_floor(sample: Vector, numel: int, count: int) -> Floor:
    """Return a floor that a few more than `count` entries should reach; a guess, to be checked.

    Args:
        sample: every `stride(numel)`-th magnitude, float32. numel: entries of the vector. count: at least 1.
    """
    if numel <= SHORT:
        return Floor(SMALLEST, numel)
    expected = count * sample.size / numel
    spread = math.sqrt(expected)
    place = sample.size - math.ceil(expected + 4 * spread + 8)
    if place < 0:
        return Floor(SMALLEST, numel)
    magnitude = max(np.float32(np.partition(sample, place)[place]), SMALLEST)
    return Floor(magnitude, min(numel, math.ceil((expected + 9 * spread + 24) * numel / sample.size)))


def keep_largest(
    indices: Indices, values: Vector, count: int, generator: np.random.Generator | None
) -> tuple[Indices, Vector]:
    """Return the `count` candidates that are largest in magnitude, in their order; all, when there are no more.

    Of entries equal in magnitude at the last place a random choice is kept, so that no index is preferred.

    Args:
        indices, values: the candidates, values finite.
        count: at least 1.
        generator: the source of the choice among equals; a fixed one without it.
    """
    if indices.size <= count:
        return indices, values
    magnitudes = np.abs(values)
    place = magnitudes.size - count
    magnitudes.partition(place)
    threshold = magnitudes[place]
    kept, theirs = np.empty_like(indices), np.empty_like(values)
    reached = keep_at_least(indices, values, threshold, kept, theirs)
    if reached == count:
        return kept[:count], theirs[:count]
    kept, theirs = kept[:reached], theirs[:reached]
    tied = np.flatnonzero(np.abs(theirs) == threshold)
    chosen = np.ones(reached, bool)
    chosen[tied] = False
    chosen[tied[choose_among_equals(tied.size, tied.size - (reached - count), generator)]] = True
    return kept[chosen], theirs[chosen]


@compiled()
def keep_at_least(indices, values, threshold, kept, theirs):
    """Return how many candidates reach the threshold; they stand at the start of `kept` and `theirs`."""
    count = 0
    for i in range(indices.size):
        # Written each time and counted only if it stays: a branch here would be guessed wrong too often.
        kept[count] = indices[i]
        theirs[count] = values[i]
        count += abs(values[i]) >= threshold
    return count


def choose_among_equals(number: int, places: int, generator: np.random.Generator | None) -> NDArray[np.int64]:
    """Return which `places` of `number` equal entries are kept; a fixed choice without a generator."""
    draws = random.generator(0, 0, 0, 0) if generator is None else generator
    return draws.choice(number, places, replace=False, shuffle=False)


def threshold_of(vector: Vector, count: int) -> np.float32:
    """Return the magnitude that just `count` entries reach, ties apart: the exact answer, in two passes.

    Args:
        vector: float32 of shape (numel,), finite, with more than `count` entries that are not zero.
    """
    return np.float32(find_cut(vector, _AtLeast(count)).magnitude)
