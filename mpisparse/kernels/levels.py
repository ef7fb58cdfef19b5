"""The level of a vector: the one number that sets the probabilities of GSpar (Wangni et al., NeurIPS 2018).

An entry of magnitude |g| is kept with probability min(|g| / level, 1); the paper's lambda is 1 / level. The level is a
magnitude of the vector's own scale, so that it can be stored where lambda would overflow.

Each law below compares a monotone function of the level with a bound. Between neighbouring magnitudes that function has
a closed form in the counts and sums on both sides, so the stretch that holds the bound gives the level exactly. A
sample guesses a floor somewhat below the level; one pass gathers the few entries above the floor and adds up the rest.
Where the sample misled, the pass is made again, last of all with every entry above the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.find import find_all
from mpisparse.kernels.histogram import Cut, Floats, Split, find_cut
from mpisparse.kernels.passes import BLOCK, scan
from mpisparse.kernels.threads import PIECE
from mpisparse.kernels.vectors import SMALLEST, Vector, refuse_bad_entries, round_up

#: Entries looked at, at most about, to guess the level.
SAMPLE = 1 << 14

#: The part of the guess from which up entries are gathered: low enough that a sample seldom misleads.
REACH = 0.75

#: Where a sample misled: the part of an upper bound of the level, low enough for the level of most gradients.
WIDE_REACH = 1 / 8

#: Rescaling by less than this much more than 1 is no longer worth a pass.
TOLERANCE = 1e-12


class Upper(NamedTuple):
    """The entries that reach a floor, and what the others add up to."""

    members: Vector
    """The magnitudes that reach a floor."""
    total: float
    """The sum of those that do not."""
    squares: float
    """The sum of the squares of those that do not."""


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


class Parts(Protocol):
    """A vector as the level needs it; where it lies does not matter."""

    @property
    def numel(self) -> int:
        """Return the number of entries."""

    def sample(self, step: int) -> Vector:
        """Return the magnitude of every `step`-th entry, on the host."""

    def split(self, floor: np.float32, moments: int) -> Upper:
        """Return the magnitudes of at least `floor`, and sums of the others: as many as `moments` says (0, 1 or 2).

        Raises:
            NonFiniteError: an entry is NaN or infinite.
        """


#: Makes a law for a share of the vector whose squares add up to a number.
_LawOf = Callable[[float, float], _ExpectedCount | _ExtraVariance]


def find_level(vector: Parts, *, target: float | None, variance: float | None, iterations: int | None) -> float:
    """Return the level for a target count, exactly or by so many rescalings, or for a variance: one of the two."""
    if variance is not None:
        return level_for_variance(vector, variance)
    assert target is not None
    return level_for_count(vector, target) if iterations is None else level_by_scaling(vector, target, iterations)


def level_for_count(vector: Parts, target: float) -> float:
    """Return the level at which the expected number of kept entries is `target`, infinity for a zero vector.

    A target of as many entries as are nonzero, or more, gives a level at which all of them are kept.

    Args:
        vector: float32 entries, such as `HostParts`.
        target: expected entries, above 0.

    Raises:
        NonFiniteError: an entry is NaN or infinite.
    """
    return _search(vector, lambda share, _: _ExpectedCount(target * share))


def level_for_variance(vector: Parts, variance: float) -> float:
    """Return the level at which sparsifying adds `variance` times the squared norm, infinity for a zero vector.

    This is Algorithm 2 of the paper without its sort: with T1 and T2 the sums of the magnitudes and squares below the
    level, and G2 the squared norm, level = (variance * G2 + T2) / T1.

    Args:
        vector: float32 entries, such as `HostParts`.
        variance: the paper's epsilon, 0 or more; at 0 every nonzero entry is kept.

    Raises:
        NonFiniteError: an entry is NaN or infinite.
    """
    return _search(vector, lambda _, squares: _ExtraVariance(variance * squares))


def level_by_scaling(vector: Parts, target: float, iterations: int) -> float:
    """Return the level that the paper's greedy Algorithm 3 reaches, infinity for a zero vector.

    Probabilities proportional to the magnitudes are capped at 1, and those below 1 scaled up to make up for it, at most
    `iterations` times. Stopped early, fewer than `target` entries are expected.

    Args:
        vector: float32 entries, such as `HostParts`.
        target: expected entries, above 0; at most as many as are nonzero are used.
        iterations: rescalings, 0 or more; each costs one pass over the vector.

    Raises:
        NonFiniteError: an entry is NaN or infinite.
    """
    total = vector.split(np.float32(math.inf), moments=1).total
    if not total:
        return math.inf
    target = min(target, float(vector.split(SMALLEST, moments=0).members.size))
    level = total / target
    for _ in range(iterations):
        capped = vector.split(round_up(level), moments=1)
        places = target - capped.members.size
        # The paper's factor c is level * places / total: done when it is 1, which rounding may miss by a little, and
        # when rounding leaves no places for entries just below the cap.
        if capped.total >= level * max(places, 0.0) * (1 - TOLERANCE):
            break
        level = capped.total / places
    return level


def _search(vector: Parts, law_of: _LawOf) -> float:
    """Return the level of the law that `law_of` makes for this vector."""
    floor, bounded = _guess(vector, law_of), False
    while floor > SMALLEST:
        upper = vector.split(floor, law_of(1.0, 0.0).moments)
        squares = upper.squares + float(np.square(upper.members, dtype=np.float64).sum())
        law = law_of(1.0, squares)
        split = Split(np.array(float(upper.members.size)), np.array(upper.total), np.array(upper.squares))
        if law.holds(np.array(float(floor)), split):
            return law.level(find_cut(upper.members, law, float(floor), upper.total, upper.squares))
        # As if no entry reached probability 1: never too low.
        total = upper.total + float(upper.members.sum(dtype=np.float64))
        bound = 0.0 if bounded else law.level(Cut(math.inf, 0.0, total, squares))
        floor, bounded = min(np.float32(bound * WIDE_REACH), np.float32(floor / 4)), True
    members = vector.split(SMALLEST, moments=0).members
    if not members.size:
        return math.inf
    law = law_of(1.0, float(np.square(members, dtype=np.float64).sum()))
    if isinstance(law, _ExpectedCount):
        law = _ExpectedCount(min(law.target, members.size))
    return law.level(find_cut(members, law))


def _guess(vector: Parts, law_of: _LawOf) -> np.float32:
    """Return a magnitude that is likely to lie somewhat below the level; the smallest, when a guess is not worth it."""
    # An odd stride, so that the sample does not fall in step with rows whose length is a power of two.
    sample = vector.sample((vector.numel // SAMPLE) | 1)
    share = sample.size / max(vector.numel, 1)
    sample = sample[sample > 0]
    if vector.numel < SAMPLE or not sample.size or not np.isfinite(sample).all():
        return SMALLEST
    law = law_of(share, float(np.square(sample, dtype=np.float64).sum()))
    if isinstance(law, _ExpectedCount):
        law = _ExpectedCount(min(law.target, sample.size))
    with np.errstate(over="ignore"):
        return max(np.float32(law.level(find_cut(sample, law)) * REACH), SMALLEST)


class HostParts:
    """A numpy vector, float32 of shape (numel,)."""

    def __init__(self, vector: Vector) -> None:
        self._vector = vector
        self.numel = vector.size

    def sample(self, step: int) -> Vector:
        """Return the magnitude of every `step`-th entry."""
        return np.abs(self._vector[::step])

    def split(self, floor: np.float32, moments: int) -> Upper:
        """Return the magnitudes of at least `floor`, and sums of the others; see `Parts.split`."""
        # Sums of the small entries themselves: all minus the large ones would lose them in the rounding. Piece by
        # piece, so that the sums are the same on any number of threads.
        vector = self._vector
        pieces = -(-vector.size // PIECE)
        totals, squares = np.zeros(pieces), np.zeros(pieces)

        def visit(start: int, stop: int, *out: NDArray[Any]) -> int:
            places = slice(start // PIECE, -(-stop // PIECE))
            return int(split_pieces(vector[start:stop], start, floor, moments, totals[places], squares[places], *out))

        members = np.abs(find_all(vector.size, max(1024, vector.size // 32), visit)[1])
        if not np.isfinite(members).all():
            refuse_bad_entries(vector)
        return Upper(members, float(totals.sum()), float(squares.sum()))


# The sums of a block may be made in any order: that lets them be made several at a time.
@compiled(fastmath={"reassoc", "nsz"})
def split_pieces(vector, offset, floor, moments, totals, squares, out, values):
    """Return how many entries of a span reach `floor` or are NaN, as `find` does, with sums of the others.

    Args:
        vector: float32, contiguous. offset: int64, added to every index. floor: float32. moments: 0, 1 or 2.
        totals, squares: float64, one a piece: the sums of the magnitudes below `floor`, and of their squares.
        out, values: indices and values of those that reach `floor`; what has no room is only counted.
    """
    found = 0
    for piece in range(totals.size):
        total, square = 0.0, 0.0
        for start in range(piece * PIECE, min((piece + 1) * PIECE, vector.size), BLOCK):
            block = vector[start : min(start + BLOCK, vector.size)]
            if moments >= 1:
                for i in range(block.size):
                    magnitude = abs(block[i])
                    total += np.float64(magnitude if magnitude < floor else np.float32(0))
            if moments >= 2:
                for i in range(block.size):
                    magnitude = abs(block[i])
                    small = np.float64(magnitude if magnitude < floor else np.float32(0))
                    square += small * small
            found = scan(block, offset + start, floor, out, values, found)
        totals[piece], squares[piece] = total, square
    return found
