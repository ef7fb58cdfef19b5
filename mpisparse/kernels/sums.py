"""mean_into: the mean of several sparse vectors, in time that their entries take and not the vector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.simd import expect_write, read_float32, read_uint32, read_uint64
from mpisparse.kernels.threads import for_each_span
from mpisparse.kernels.vectors import Vector
from mpisparse.sparse import SparseVector

#: Entries of the total handled at a time: 16 KiB, so that their sums stay in the first cache from rank to rank.
REACH = 1 << 12


def mean_into(total: Vector, sparse: Sequence[SparseVector], size: int) -> int | None:
    """Add the vectors to `total`, which holds zeros, in their order, divide by `size`, and return the first bad entry.

    Bit for bit what adding the dense vectors to zeros one after the other and dividing gives, on any number of threads.
    Only entries that a vector has are touched.

    Args:
        total: float32 of shape (numel,), all zeros.
        sparse: vectors of numel entries each.
        size: what the sum is divided by, at least 1.

    Returns:
        The place of the first entry of the mean that is NaN or infinite, None when there is none.
    """
    strangers = [one.numel for one in sparse if one.numel != total.size]
    if strangers:
        raise ValueError(f"a vector of {strangers[0]} entries was to be added to one of {total.size}")
    indices = [np.ascontiguousarray(one.indices) for one in sparse]
    values = [np.ascontiguousarray(one.values) for one in sparse]
    wide = any(one.dtype == np.uint64 for one in indices)
    if wide:
        indices = [one.astype(np.uint64, copy=False) for one in indices]
    where, what = _addresses(indices), _addresses(values)

    def add(start: int, stop: int) -> int:
        begin = np.array([np.searchsorted(one, start) for one in indices], np.int64)
        end = np.array([np.searchsorted(one, stop) for one in indices], np.int64)
        return int(add_span(total, start, stop, where, what, begin, end, wide, np.float32(size)))

    bad = [place for place in for_each_span(total.size, add) if place >= 0]
    return min(bad) if bad else None


def _addresses(arrays: Sequence[NDArray[np.generic]]) -> NDArray[np.uint64]:
    return np.array([one.ctypes.data for one in arrays], np.uint64)


@compiled()
def add_span(total, start, stop, indices, values, begin, end, wide, divisor):
    """Handle the entries of `total` from `start` to `stop`, and return the first that is not finite, -1 if none.

    Args:
        total: float32, contiguous.
        indices: addresses of uint32 arrays (uint64 if `wide`), one a vector; each holds begin to end - 1 in the span.
        values: addresses of float32 arrays.
        begin: int64, changed: where each vector stands. end: int64.
        divisor: float32.
    """
    bad = np.int64(-1)
    sums = np.zeros(REACH, np.float32)
    touched = np.zeros(REACH, np.bool_)
    # One more than there are places: what is written last may not be kept.
    places = np.empty(REACH + 1, np.uint32)
    for first in range(start, stop, REACH):
        last = min(first + REACH, stop)
        count = np.uint64(0)
        for one in range(indices.size):
            entry = begin[one]
            while entry < end[one]:
                index = _index(indices[one], entry, wide)
                if index >= last:
                    break
                expect_write(total, index)
                place = np.uint64(index - first)
                sums[place] += read_float32(values[one], entry)
                # Written each time and kept only the first: a branch here would be guessed wrong too often.
                places[count] = place
                count += np.uint64(not touched[place])
                touched[place] = True
                entry += 1
            begin[one] = entry
        for i in range(count):
            place = np.uint64(places[i])
            mean = sums[place] / divisor
            total[np.uint64(first) + place] = mean
            if not np.isfinite(mean) and (bad < 0 or first + np.int64(place) < bad):
                bad = first + np.int64(place)
            sums[place] = np.float32(0)
            touched[place] = False
    return bad


@compiled()
def _index(address, place, wide):
    if wide:
        return np.int64(read_uint64(address, place))
    return np.int64(read_uint32(address, place))
