"""The level of a vector: the one number that sets the probabilities of GSpar (Wangni et al., NeurIPS 2018).

An entry of magnitude |g| is kept with probability min(|g| / level, 1); the paper's lambda is 1 / level. The level is a
magnitude of the vector's own scale, so that it can be stored where lambda would overflow.

Each law below compares a monotone function of the level with a bound. Between neighbouring magnitudes that function has
a closed form in the counts and sums on both sides, so the stretch that holds the bound gives the level exactly. The
first guess, as if no entry reached probability 1, is never too low, and it is right when no entry is larger. Otherwise
the entries not far below it are gathered and searched; only when the level is not among them is the whole vector
searched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.histogram import Cut, Floats, Split, find_cut
from mpisparse.kernels.vectors import SMALLEST, Vector, chunks, round_up

#: The part of the first guess from which up entries are gathered: low enough to hold the level of most gradients.
REACH = 1 / 8


#: Rescaling by less than this much more than 1 is no longer worth a pass.
TOLERANCE = 1e-12


class _Summary(NamedTuple):
    largest: float
    total: float
    squares: float


@dataclass(frozen=True)
class _ExpectedCount:
    """Holds while the probabilities add up to `target` or more: total / level + above >= target."""

    target: float
    moments: int = 1

    def holds(self, magnitudes: Floats, split: Split) -> NDArray[np.bool_]:
        return split.total >= magnitudes * (self.target - split.above)

    def level(self, cut: Cut) -> float:
        return cut.total / (self.target - cut.above)


@dataclass(frozen=True)
class _ExtraVariance:
    """Holds while the added variance, level * total - squares, is at most `budget`."""

    budget: float
    moments: int = 2

    def holds(self, magnitudes: Floats, split: Split) -> NDArray[np.bool_]:
        return magnitudes * split.total - split.squares <= self.budget

    def level(self, cut: Cut) -> float:
        return (self.budget + cut.squares) / cut.total


def level_for_count(vector: Vector, target: float) -> float:
    """Return the level at which the expected number of kept entries is `target`, infinity for a zero vector.

    A target of as many entries as are nonzero, or more, gives a level at which all of them are kept.

    Args:
        vector: float32 of shape (numel,), finite.
        target: expected entries, above 0.
    """
    summary = _summarize(vector, moments=1)
    if not summary.largest:
        return math.inf
    guess = summary.total / target
    if guess >= summary.largest:
        return guess
    return _search(vector, _ExpectedCount(target), guess)


def level_for_variance(vector: Vector, variance: float) -> float:
    """Return the level at which sparsifying adds `variance` times the squared norm, infinity for a zero vector.

    This is Algorithm 2 of the paper without its sort: with T1 and T2 the sums of the magnitudes and squares below the
    level, and G2 the squared norm, level = (variance * G2 + T2) / T1.

    Args:
        vector: float32 of shape (numel,), finite.
        variance: the paper's epsilon, 0 or more; at 0 every nonzero entry is kept.
    """
    summary = _summarize(vector, moments=2)
    if not summary.largest:
        return math.inf
    guess = (1 + variance) * summary.squares / summary.total
    # Without a budget the guess can reach a dominant entry by rounding alone, and nothing may be left to chance then.
    if variance > 0 and guess >= summary.largest:
        return guess
    return _search(vector, _ExtraVariance(variance * summary.squares), guess)


def level_by_scaling(vector: Vector, target: float, iterations: int) -> float:
    """Return the level that the paper's greedy Algorithm 3 reaches, infinity for a zero vector.

    Probabilities proportional to the magnitudes are capped at 1, and those below 1 scaled up to make up for it, at most
    `iterations` times. Stopped early, fewer than `target` entries are expected.

    Args:
        vector: float32 of shape (numel,), finite.
        target: expected entries, above 0; at most as many as are nonzero are used.
        iterations: rescalings, 0 or more; each costs one pass over the vector.
    """
    summary = _summarize(vector, moments=1)
    if not summary.largest:
        return math.inf
    target = min(target, float(np.count_nonzero(vector)))
    level = summary.total / target
    for _ in range(iterations):
        capped = _gather(vector, round_up(level), moments=1)
        places = target - capped.members.size
        # The paper's factor c is level * places / total: done when it is 1, which rounding may miss by a little, and
        # when rounding leaves no places for entries just below the cap.
        if capped.total >= level * max(places, 0.0) * (1 - TOLERANCE):
            break
        level = capped.total / places
    return level


def _search(vector: Vector, law: _ExpectedCount | _ExtraVariance, guess: float) -> float:
    """Return the level of `law`, which is at most `guess`."""
    floor = max(np.float32(guess * REACH), SMALLEST)
    upper = _gather(vector, floor, law.moments)
    split = Split(np.array(float(upper.members.size)), np.array(upper.total), np.array(upper.squares))
    if law.holds(np.array(float(floor)), split):
        return law.level(find_cut(upper.members, law, float(floor), upper.total, upper.squares))
    members = _gather(vector, SMALLEST, moments=0).members
    if isinstance(law, _ExpectedCount):
        law = _ExpectedCount(min(law.target, members.size))
    return law.level(find_cut(members, law))


class _Upper(NamedTuple):
    members: Vector
    """The magnitudes that reach a floor."""
    total: float
    """The sum of those that do not."""
    squares: float
    """The sum of the squares of those that do not."""


def _gather(vector: Vector, floor: np.float32, moments: int) -> _Upper:
    """Return the magnitudes of at least `floor`, and as many sums of the others as `moments` says (0, 1 or 2)."""
    members, total, squares = [], 0.0, 0.0
    for _, chunk in chunks(vector):
        magnitudes = np.abs(chunk)
        upper = magnitudes >= floor
        members.append(magnitudes[upper])
        magnitudes[upper] = 0
        # Sums of the small entries themselves: all minus the large ones would lose them in the rounding.
        total += float(magnitudes.sum(dtype=np.float64)) if moments >= 1 else 0.0
        squares += float(np.square(magnitudes, dtype=np.float64).sum()) if moments >= 2 else 0.0
    return _Upper(np.concatenate(members), total, squares)


def _summarize(vector: Vector, moments: int) -> _Summary:
    """Return the largest magnitude, the sum of all, and with `moments` 2 the sum of squares."""
    largest, total, squares = 0.0, 0.0, 0.0
    for _, chunk in chunks(vector):
        magnitudes = np.abs(chunk)
        largest = max(largest, float(magnitudes.max()))
        total += float(magnitudes.sum(dtype=np.float64))
        # No dot product: its rounding depends on how many threads the linear algebra library runs.
        squares += float(np.square(magnitudes, dtype=np.float64).sum()) if moments >= 2 else 0.0
    return _Summary(largest, total, squares)
