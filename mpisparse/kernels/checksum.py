"""A checksum of memory that costs one pass at memory speed: for comparing replicas, not against anybody's will."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.threads import for_each_span

#: An odd number whose bits look random: 2**64 over the golden ratio.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def checksum(memory: NDArray[np.uint8]) -> int:
    """Return a checksum of bytes, of 64 bits, the same with any number of threads.

    Each word of 64 bits is folded, which is one to one, and multiplied by an odd number of its own, which is so too,
    before all are added up. So memory that differs in one word always differs here; other differences cancel with a
    chance of about 2**-64.
    """
    whole = memory.size // 8
    words = memory[: whole * 8].view(np.uint64)
    rest = np.zeros(8, np.uint8)
    rest[: memory.size - whole * 8] = memory[whole * 8 :]
    total = sum(for_each_span(whole, lambda start, stop: int(add_up(words[start:stop], np.uint64(start)))))
    total += int(add_up(rest.view(np.uint64), np.uint64(whole)))
    # The length counts, as zeros add nothing.
    return (total + memory.size * int(_GOLDEN)) % 2**64


@compiled()
def add_up(words, start):
    """Return the sum, modulo 2**64, of folded words, each times the odd number of its place.

    Args:
        words: uint64 of shape (words,).
        start: uint64, the place of the first.
    """
    total = np.uint64(0)
    factor = (np.uint64(2) * start + np.uint64(1)) * _GOLDEN
    for i in range(words.size):
        word = words[i]
        total += (word ^ (word >> np.uint64(32))) * factor
        factor += np.uint64(2) * _GOLDEN
    return total
