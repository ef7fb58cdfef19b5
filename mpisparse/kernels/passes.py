"""Passes over whole vectors that do everything at once: add up, look for large entries, clear.

Each handles one span, in blocks that stay in the first cache. `offset` is the place of the span in the vector, so that
the indices are those of the vector. A pass counts what it finds even where `out` has no room for more.
"""

from __future__ import annotations

import numpy as np

from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.simd import at_least_mask, lowest_bit

#: Entries handled at a time: 4 KiB of each vector.
BLOCK = 1024


@compiled()
def scan(block, offset, floor, out, values, found):
    """Append index and value of entries that reach `floor` or are NaN, and return how many there are by now."""
    room = min(out.size, values.size)
    whole = block.size - block.size % 32
    for start in range(0, whole, 32):
        mask = np.uint64(at_least_mask(block, start, floor))
        mask |= np.uint64(at_least_mask(block, start + 8, floor)) << np.uint64(8)
        mask |= np.uint64(at_least_mask(block, start + 16, floor)) << np.uint64(16)
        mask |= np.uint64(at_least_mask(block, start + 24, floor)) << np.uint64(24)
        while mask:
            if found < room:
                place = start + np.int64(lowest_bit(mask))
                out[found] = offset + place
                values[found] = block[place]
            found += 1
            mask &= mask - np.uint64(1)
    for place in range(whole, block.size):
        if not abs(block[place]) < floor:
            if found < room:
                out[found] = offset + place
                values[found] = block[place]
            found += 1
    return found


@compiled()
def find(vector, offset, floor, out, values):
    """Return how many entries reach `floor` in magnitude or are NaN, with their indices, rising, and their values.

    Args:
        vector: float32 of shape (numel,), contiguous.
        offset: int64, added to every index.
        floor: float32.
        out: uint32 or uint64 of any shape (room,), for the indices; what has no room is only counted.
        values: float32 of as many.
    """
    found = 0
    for start in range(0, vector.size, BLOCK):
        found = scan(vector[start : start + BLOCK], offset + start, floor, out, values, found)
    return found


@compiled()
def add_and_find(residual, gradient, offset, floor, out, values):
    """Add the gradient to the residual, clear the gradient, and return what `find` returns of the residual."""
    found = 0
    for start in range(0, residual.size, BLOCK):
        kept, fresh = residual[start : start + BLOCK], gradient[start : start + BLOCK]
        for i in range(kept.size):
            kept[i] += fresh[i]
        fresh[:] = np.float32(0)
        found = scan(kept, offset + start, floor, out, values, found)
    return found


@compiled()
def advance_and_find(velocity, accumulated, gradient, momentum, nesterov, offset, floor, out, values):
    """Advance velocity and sum by the gradient, clear it, and return what `find` returns of the sum.

    Momentum correction: u = m u + g, v += u; looking ahead: u = m (u + g), v += u + g.

    Args:
        momentum: float32.
        nesterov: bool.
    """
    found = 0
    for start in range(0, velocity.size, BLOCK):
        speed, sums = velocity[start : start + BLOCK], accumulated[start : start + BLOCK]
        fresh = gradient[start : start + BLOCK]
        if nesterov:
            for i in range(speed.size):
                speed[i] = (speed[i] + fresh[i]) * momentum
            for i in range(speed.size):
                sums[i] = (sums[i] + speed[i]) + fresh[i]
        else:
            for i in range(speed.size):
                speed[i] = speed[i] * momentum + fresh[i]
            for i in range(speed.size):
                sums[i] += speed[i]
        fresh[:] = np.float32(0)
        found = scan(sums, offset + start, floor, out, values, found)
    return found


@compiled()
def largest_bits(vector):
    """Return the bits of the largest magnitude, int32: above 0x7f7fffff when an entry is NaN or infinite."""
    bits = vector.view(np.int32)
    largest = np.int32(0)
    for start in range(0, bits.size, BLOCK):
        block = bits[start : start + BLOCK]
        for i in range(block.size):
            largest = max(largest, block[i] & np.int32(0x7FFFFFFF))
    return largest


@compiled()
def subtract_at(vector, indices, values):
    """Subtract `values` from the entries at `indices`, which must lie in the vector and differ from one another."""
    for i in range(indices.size):
        vector[np.uint64(indices[i])] -= values[i]


@compiled()
def clear_at(vector, indices):
    """Set the entries at `indices`, which must lie in the vector, to zero."""
    for i in range(indices.size):
        vector[np.uint64(indices[i])] = np.float32(0)


@compiled()
def gather(vector, indices):
    """Return the entries at `indices`, which must lie in the vector: float32 of shape (indices.size,)."""
    values = np.empty(indices.size, np.float32)
    for i in range(indices.size):
        values[i] = vector[np.uint64(indices[i])]
    return values
