"""Vectors drawn onto a grid: every entry becomes one of the two nearest multiples of a unit, its mean itself.

This is the drawing of QSGD (Alistarh et al., NeurIPS 2017), whose unit is the norm of a bucket over the levels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.passes import BLOCK
from mpisparse.kernels.philox import words
from mpisparse.kernels.threads import PIECE, for_each_span
from mpisparse.kernels.vectors import LARGEST, Vector, refuse_bad_entries
from mpisparse.sparse import Grid, Indices, SparseVector, index_dtype

#: Bits of a float32 that count, and the exponent of the smallest.
_BITS = 24
_SMALLEST_EXPONENT = -149

#: Sums kept side by side, so that an addition need not wait for the one before it.
_LANES = 8

_Drawn = tuple[Indices, Vector, NDArray[np.uint16]]


def norms(vector: Vector, bucket: int) -> NDArray[np.float64]:
    """Return the norm of every `bucket` entries, the last of what is left: the same on any number of threads.

    Raises:
        NonFiniteError: an entry is NaN or infinite.
    """
    sums = for_each_span(vector.size, lambda start, stop: sum_squares(vector, start, stop, bucket))
    found: NDArray[np.float64] = np.sqrt(np.concatenate(sums))
    if not np.isfinite(found).all():
        refuse_bad_entries(vector)
    return found


def norm(vector: Vector) -> float:
    """Return the norm of the whole vector; see `norms`."""
    return math.sqrt(math.fsum(np.square(norms(vector, PIECE)).tolist()))


def round_units(units: NDArray[np.float64], levels: int) -> NDArray[np.float32]:
    """Return units rounded up to so few bits that `levels` of them and fewer are float32 numbers, exactly.

    An entry that is at most `levels` units is at most as many of the rounded ones, and values need no rounding, so that
    the mean of many draws stays the vector. Where `levels` units are beyond float32, the unit becomes its largest
    number: no entry is more than one, and none is drawn out of float32.
    """
    _, exponents = np.frexp(units)
    steps = np.ldexp(1.0, np.maximum(exponents - (_BITS - levels.bit_length()), _SMALLEST_EXPONENT))
    rounded = np.ceil(units / steps) * steps
    rounded[rounded * levels > float(LARGEST)] = float(LARGEST)
    return rounded.astype(np.float32)


def draw_levels(vector: Vector, levels: int, bucket: int | None, generator: np.random.Generator) -> SparseVector:
    """Return the entries that get a level above 0, each independently, with the grid that they lie on.

    An entry of x units gets one of the two whole numbers next to x, and the one above with the probability that makes
    x the mean. The first 16 bits of 16 numbers are drawn at once, and 53 more only where those leave it open. All draws
    are functions of the entry's place and a key, so that the number of threads does not change them.

    Args:
        vector: float32 of shape (numel,).
        levels: units in the norm of a bucket, 1 to 2**16 - 1.
        bucket: entries that share a unit; None: all of them.
        generator: where the key of 128 bits is drawn from.

    Raises:
        NonFiniteError: an entry is NaN or infinite.
    """
    whole = max(vector.size, 1)
    length = whole if bucket is None else min(bucket, whole)
    lengths = norms(vector, length) if length < whole else np.array([norm(vector)][: vector.size])
    units = round_units(lengths / levels, levels)
    keys = generator.integers(0, 2**64, 2, dtype=np.uint64)
    dtype = index_dtype(vector.size)

    def draw(start: int, stop: int) -> _Drawn:
        room = stop - start
        out = np.empty(room, dtype), np.empty(room, np.float32), np.empty(room, np.uint16)
        kept = draw_span(vector, start, stop, units, length, keys[0], keys[1], *out)
        return out[0][:kept], out[1][:kept], out[2][:kept]

    indices, values, drawn = _join(for_each_span(vector.size, draw))
    return SparseVector(indices, values, vector.size, grid=Grid(units, length, drawn))


def _join(pieces: list[_Drawn]) -> _Drawn:
    if len(pieces) == 1:
        return pieces[0]
    indices, values, levels = zip(*pieces, strict=True)
    return np.concatenate(indices), np.concatenate(values), np.concatenate(levels)


@compiled()
def sum_squares(vector, start, stop, bucket):
    """Return the sum of the squares of each bucket that begins from `start` on and before `stop`, float64.

    Args:
        vector: float32 of shape (numel,).
        start, stop: int64, within the vector.
        bucket: int64, 1 or more: entries of a bucket.
    """
    first, last = (start + bucket - 1) // bucket, (stop + bucket - 1) // bucket
    sums = np.empty(last - first, np.float64)
    lanes = np.empty(_LANES, np.float64)
    for where in range(first, last):
        begin = where * bucket
        part = vector[begin : begin + min(bucket, vector.size - begin)]
        lanes[:] = 0.0
        whole = part.size - part.size % _LANES
        for i in range(0, whole, _LANES):
            for lane in range(_LANES):
                entry = np.float64(part[i + lane])
                lanes[lane] += entry * entry
        for i in range(whole, part.size):
            entry = np.float64(part[i])
            lanes[i - whole] += entry * entry
        total = 0.0
        for lane in range(_LANES):
            total += lanes[lane]
        sums[where - first] = total
    return sums


@compiled()
def draw_span(vector, start, stop, units, bucket, key_0, key_1, indices, values, levels):
    """Return how many entries of a span get a level above 0, after writing which, their values and their levels.

    Args:
        vector: float32 of shape (numel,), finite.
        start, stop: int64, within the vector; `start` a multiple of 16.
        units: float32, one for every bucket of the whole vector.
        bucket: int64, 1 or more: entries of a bucket.
        key_0, key_1: uint64.
        indices, values, levels: uint32 or uint64, float32, uint16, of shape (stop - start,).
    """
    kept = np.uint64(0)
    first_bits = np.empty(BLOCK, np.uint16)
    groups = first_bits.view(np.uint64)
    multiples, sizes, chances = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    drawn = np.empty(BLOCK, np.uint16)
    while start < stop:
        block = vector[start : min(start + BLOCK, stop)]
        for group in range((block.size + 15) // 16):
            a, b, c, d = words(np.uint64(start // 16 + group), np.uint64(0), key_0, key_1)
            groups[4 * group], groups[4 * group + 1] = a, b
            groups[4 * group + 2], groups[4 * group + 3] = c, d
        measure(block, start, units, bucket, multiples, sizes)
        open_yet = np.int32(0)
        for i in range(block.size):
            below = np.floor(multiples[i])
            chances[i] = (multiples[i] - below) * 65536.0 - np.float64(first_bits[i])
            drawn[i] = np.uint16(np.int32(below) + np.int32(chances[i] >= 1.0))
            open_yet += np.int32(0.0 < chances[i] < 1.0)
        if open_yet:
            for i in range(block.size):
                if 0.0 < chances[i] < 1.0:
                    draw, _, _, _ = words(np.uint64(start + i), np.uint64(1), key_0, key_1)
                    drawn[i] += np.uint16(np.float64(draw >> np.uint64(11)) * 2.0**-53 < chances[i])
        for i in range(block.size):
            level = drawn[i]
            indices[kept] = np.uint64(start + i)
            values[kept] = np.float32(math.copysign(np.float64(level) * sizes[i], np.float64(block[i])))
            levels[kept] = level
            kept += np.uint64(level > 0)
        start += BLOCK
    return np.int64(kept)


@compiled(error_model="numpy")
def measure(block, start, units, bucket, multiples, sizes):
    """Fill in how many units each entry of a block is, and the unit; none where the unit is 0, as is the entry then."""
    place = 0
    while place < block.size:
        where = (start + place) // bucket
        end = min(block.size, (where + 1) * bucket - start)
        unit = np.float64(units[where])
        part, found = block[place:end], multiples[place:end]
        if unit > 0.0:
            for i in range(part.size):
                found[i] = np.float64(abs(part[i])) / unit
        else:
            found[:] = 0.0
        sizes[place:end] = unit
        place = end
