"""Rising indices by blocks of 256 positions: a byte that says how many, then a byte an index; nothing straddles a byte.

A block of DENSE entries or more is written as 256 bits instead, and its byte says DENSE: then no block, full ones among
them, takes more than 33 bytes.
"""

from __future__ import annotations

import numpy as np

from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.simd import lowest_bit
from mpisparse.kernels.words import rises

#: Positions in a block.
LENGTH = 256

#: Entries from which on bits are as short as bytes.
DENSE = 32

#: Entries copied at once. What a block has too few of for that, the next ones write over.
_STRIDE = 8


@compiled()
def payload_bytes(indices):
    """Return the bytes that the blocks' entries take.

    Args:
        indices: uint32 or uint64 of shape (count,), strictly rising.
    """
    size = indices.size
    if size > DENSE:
        earlier, later = indices[:-DENSE], indices[DENSE:]
        for i in range(later.size):
            # As they rise, an index has DENSE others before it in its block if the one DENSE before it is there.
            size -= np.int64(np.uint64(later[i]) >> np.uint64(8) == np.uint64(earlier[i]) >> np.uint64(8))
    return size


@compiled()
def encode(indices, counts, payload):
    """Write the blocks, and return False if they do not fit: the indices do not rise, or lie outside.

    Args:
        indices: uint32 or uint64 of shape (count,), strictly rising.
        counts: uint8 of shape (blocks,), all zero.
        payload: uint8 of as many entries as `payload_bytes` says, all zero.
    """
    if not rises(indices, np.uint64(counts.size) << np.uint64(8)):
        return False
    if payload.size == indices.size:
        if _encode_sparse(indices, counts, payload) < DENSE:
            return True
        counts[:] = 0
        payload[:] = 0
    count, first, at = indices.size, 0, 0
    while first < count:
        block = np.uint64(indices[first]) >> np.uint64(8)
        end = first + 1
        while end < count and np.uint64(indices[end]) >> np.uint64(8) == block:
            end += 1
        taken = min(end - first, DENSE)
        if at + taken > payload.size:
            return False
        counts[block] = taken
        if taken < DENSE:
            for i in range(taken):
                payload[at + i] = indices[first + i] & np.uint8(255)
        else:
            bits = payload[at : at + DENSE]
            for i in range(first, end):
                place = np.uint8(indices[i] & np.uint8(255))
                bits[place >> 3] |= np.uint8(1 << (place & 7))
        at += taken
        first = end
    return True


@compiled()
def _encode_sparse(indices, counts, payload):
    """Write rising indices inside the blocks as if no block were dense, and return the largest count."""
    for i in range(indices.size):
        payload[i] = indices[i] & np.uint8(255)
    largest = np.uint8(0)
    for i in range(indices.size):
        block = np.uint64(indices[i]) >> np.uint64(8)
        counts[block] += np.uint8(1)
        largest = max(largest, counts[block])
    return largest


@compiled()
def decode(counts, payload, numel, indices):
    """Fill `indices` and return the bytes of payload that they took, or -1 if the blocks are not what `encode` writes.

    Args:
        counts: uint8 of shape (blocks,), which cover `numel`.
        payload: uint8 of any shape.
        numel: uint64, at most 2**62: every index must be below.
        indices: uint32 or uint64 of shape (count,).
    """
    found, at = 0, 0
    for block in range(counts.size):
        taken = np.int64(counts[block])
        base = np.uint64(block) << np.uint64(8)
        if taken <= _STRIDE and at + _STRIDE <= payload.size and found + _STRIDE <= indices.size:
            for i in range(_STRIDE):
                indices[found + i] = base | np.uint64(payload[at + i])
            found += taken
        elif taken > DENSE or at + taken > payload.size:
            return -1
        elif taken < DENSE:
            if found + taken > indices.size:
                return -1
            for i in range(taken):
                indices[found + i] = base | np.uint64(payload[at + i])
            found += taken
        else:
            end = _spread(payload[at : at + DENSE], base, indices, found)
            if end < found + DENSE:
                return -1
            found = end
        at += taken
    return at if found == indices.size and rises(indices, numel) else -1


@compiled()
def _spread(bits, base, indices, found):
    """Write the indices of the bits that are set, and return how many are found then, or -1 if there is no room."""
    for start in range(0, DENSE, 8):
        word = np.uint64(0)
        for i in range(8):
            word |= np.uint64(bits[start + i]) << np.uint64(8 * i)
        first = base + (np.uint64(start) << np.uint64(3))
        while word:
            if found >= indices.size:
                return -1
            indices[found] = first + lowest_bit(word)
            found += 1
            word &= word - np.uint64(1)
    return found
