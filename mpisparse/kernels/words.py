"""What the coding kernels share: bytes as 64-bit words, whose first bit is the lowest of the first word."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.compiled import compiled

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]


def from_bytes(section: Bytes) -> Words:
    """Return a copy of `section` as little-endian words, filled up with zeros, and two words of zeros more."""
    words = zeros(section.size + 16)
    words.view(np.uint8)[: section.size] = section
    return words.view("<u8").astype(np.uint64, copy=False)


def to_bytes(words: Words, size: int) -> Bytes:
    """Return the first `size` bytes of `words`, little-endian."""
    return words.astype("<u8", copy=False).view(np.uint8)[:size]


def zeros(size: int) -> Words:
    """Return words with room for `size` bytes, all zero."""
    return np.zeros((size + 7) >> 3, np.uint64)


@compiled()
def rises(indices, numel):
    """Return whether the indices rise strictly and stay below `numel`.

    Args:
        indices: uint32 or uint64 of any shape (count,).
        numel: uint64.
    """
    if indices.size == 0:
        return True
    earlier, later = indices[:-1], indices[1:]
    falls = 0
    for i in range(later.size):
        falls += np.int64(later[i] <= earlier[i])
    return falls == 0 and np.uint64(indices[-1]) < numel
