"""Rising indices as one bit a position."""

from __future__ import annotations

import numpy as np

from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.simd import lowest_bit
from mpisparse.kernels.words import rises


@compiled()
def encode(indices, words):
    """Set the bits of the indices, and return False if they do not rise or one lies outside.

    Args:
        indices: uint32 or uint64 of shape (count,), strictly rising.
        words: uint64 of shape (words,), all zero.
    """
    if not rises(indices, np.uint64(words.size) << np.uint64(6)):
        return False
    for i in range(indices.size):
        index = np.uint64(indices[i])
        words[index >> np.uint64(6)] |= np.uint64(1) << (index & np.uint64(63))
    return True


@compiled()
def decode(words, indices):
    """Fill `indices` with the places of the bits that are set, and return False if there are more or fewer.

    Args:
        words: uint64 of shape (words,).
        indices: uint32 or uint64 of shape (count,).
    """
    count, found = indices.size, 0
    for where in range(words.size):
        word = words[where]
        base = np.uint64(where) << np.uint64(6)
        while word:
            if found >= count:
                return False
            indices[found] = base + lowest_bit(word)
            found += 1
            word &= word - np.uint64(1)
    return found == count
