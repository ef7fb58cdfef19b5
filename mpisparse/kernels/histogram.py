"""find_cut: the last magnitude at which a monotone law holds, exactly, in linear time, without sorting the vector.

The bits of a float32 without its sign order like its magnitude. So a histogram of their high 16 bits finds the bin
that holds the cut, and a second one of that bin's low 15 bits resolves single values. Nothing is assumed of the values:
ties, geometric sequences and denormals cost the same as any.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.vectors import Vector, chunks

Floats = NDArray[np.float64]

#: Up to so many entries a sort costs less than two histograms.
SORT = 1 << 16

#: Entries counted at a time: few enough to stay in the cache, many beside the number of bins.
LENGTH = 1 << 18

LOW_BITS = 15
#: Bins of the finite magnitudes; infinity would be the first of the next.
BINS = 0x7F800000 >> LOW_BITS

_MAGNITUDE = 0x7FFFFFFF


class Split(NamedTuple):
    """Entries split at a magnitude, or at each of an array of magnitudes. Counts are floats, exact below 2**53."""

    above: Floats
    """How many are at least the magnitude."""
    total: Floats
    """The sum of the magnitudes below it."""
    squares: Floats
    """The sum of the squared magnitudes below it."""


class Cut(NamedTuple):
    """Where a law ceases to hold."""

    magnitude: float
    """One at which the law holds, with no entry between it and the end of the law; an entry's own if it ends at one."""
    above: float
    """How many entries are larger."""
    total: float
    """The sum of the magnitudes up to and including it."""
    squares: float
    """The sum of the squared magnitudes up to and including it."""


class Law(Protocol):
    """What `find_cut` looks for: something that holds up to a magnitude and at none above."""

    @property
    def moments(self) -> int:
        """Return 0 when `holds` reads counts only, 1 when it reads totals too, 2 when it reads squares as well."""

    def holds(self, magnitudes: Floats, split: Split) -> NDArray[np.bool_]:
        """Return, for each magnitude, whether the law holds there."""


class _Steps(NamedTuple):
    """Entries gathered into steps of rising magnitude."""

    magnitudes: Floats
    counts: Floats
    totals: Floats
    squares: Floats


def find_cut(magnitudes: Vector, law: Law, floor: float = 0.0, total: float = 0.0, squares: float = 0.0) -> Cut:
    """Return the cut of `law` among `magnitudes`.

    Args:
        magnitudes: float32, finite, in any order; signs do not count; all magnitudes at least `floor`.
        law: must hold at `floor`.
        floor: the magnitude at which the given entries start.
        total: the sum of the magnitudes below `floor`, of entries that are not given.
        squares: the sum of their squares.
    """
    base = Cut(floor, 0.0, total, squares)
    if magnitudes.size > SORT:
        base, magnitudes = _enter_bin(magnitudes, law, base)
    if magnitudes.size > SORT:
        steps = _count_low_bits(magnitudes)
    else:
        values, counts = np.unique(np.abs(magnitudes), return_counts=True)
        steps = _exact_steps(values.astype(np.float64), counts)
    return _cut_steps(steps, _last_step(steps, law, base), base)


def _enter_bin(magnitudes: Vector, law: Law, base: Cut) -> tuple[Cut, Vector]:
    """Return what lies above and below the bin that holds the cut, and the magnitudes inside it."""
    steps = _count_high_bits(magnitudes, law.moments)
    # Empty bins count too: the cut may lie where no entry is, and then it is found there.
    last = _last_step(steps, law, base)
    outside = Cut(
        max(float(steps.magnitudes[last]), base.magnitude),
        float(steps.counts[last + 1 :].sum()),
        base.total + float(steps.totals[:last].sum()),
        base.squares + float(steps.squares[:last].sum()),
    )
    inside = [chunk[_high_bits(chunk) == last] for _, chunk in chunks(magnitudes, LENGTH)]
    return outside, np.concatenate(inside)


def _last_step(steps: _Steps, law: Law, base: Cut) -> int:
    """Return the index of the last step at which the law holds, -1 when at none."""
    split = Split(
        base.above + np.cumsum(steps.counts[::-1])[::-1],
        base.total + _sums_before(steps.totals),
        base.squares + _sums_before(steps.squares),
    )
    holding = np.flatnonzero(law.holds(steps.magnitudes, split))
    return int(holding[-1]) if holding.size else -1


def _cut_steps(steps: _Steps, last: int, base: Cut) -> Cut:
    """Return the cut after step `last`."""
    return Cut(
        float(steps.magnitudes[last]) if last >= 0 else base.magnitude,
        base.above + float(steps.counts[last + 1 :].sum()),
        base.total + float(steps.totals[: last + 1].sum()),
        base.squares + float(steps.squares[: last + 1].sum()),
    )


def _sums_before(values: Floats) -> Floats:
    # Not cumsum - values: next to a huge step that would lose the small ones before it.
    return np.concatenate([np.zeros(1), np.cumsum(values)[:-1]])


def _high_bits(magnitudes: Vector) -> NDArray[np.uint32]:
    return (magnitudes.view(np.uint32) & np.uint32(_MAGNITUDE)) >> np.uint32(LOW_BITS)


def _count_high_bits(magnitudes: Vector, moments: int) -> _Steps:
    """Return one step a bin, at the bin's lower edge, with the sums that `moments` asks for."""
    edges = (np.arange(BINS, dtype=np.uint32) << np.uint32(LOW_BITS)).view(np.float32).astype(np.float64)
    counts = np.zeros(BINS, np.int64)
    totals, squares = np.zeros(BINS), np.zeros(BINS)
    count_high_bits(magnitudes, moments, counts, totals, squares)
    return _Steps(edges, counts.astype(np.float64), totals, squares)


@compiled()
def count_high_bits(vector, moments, counts, totals, squares):
    """Add every entry to the bin of its high bits: to counts, and as `moments` says to totals and squares.

    Args:
        vector: float32, finite. moments: 0, 1 or 2.
        counts: int64 of shape (BINS,). totals, squares: float64 of shape (BINS,).
    """
    bits = vector.view(np.uint32)
    for i in range(bits.size):
        place = (bits[i] & np.uint32(_MAGNITUDE)) >> np.uint32(LOW_BITS)
        if place >= np.uint32(counts.size):
            continue
        counts[place] += 1
        if moments >= 1:
            magnitude = np.float64(abs(vector[i]))
            totals[place] += magnitude
            if moments >= 2:
                squares[place] += magnitude * magnitude


def _count_low_bits(magnitudes: Vector) -> _Steps:
    """Return one step a distinct value, all magnitudes being of one bin."""
    counts = np.zeros(1 << LOW_BITS, np.intp)
    for _, chunk in chunks(magnitudes, LENGTH):
        counts += np.bincount(chunk.view(np.uint32) & np.uint32((1 << LOW_BITS) - 1), minlength=counts.size)
    present = np.flatnonzero(counts)
    bits = (_high_bits(magnitudes[:1]) << np.uint32(LOW_BITS)) | present.astype(np.uint32)
    return _exact_steps(bits.view(np.float32).astype(np.float64), counts[present])


def _exact_steps(values: Floats, counts: NDArray[np.intp]) -> _Steps:
    numbers = counts.astype(np.float64)
    return _Steps(values, numbers, numbers * values, numbers * values * values)
