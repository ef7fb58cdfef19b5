"""Philox4x64-10: random words that are a function of a counter, so that entry i's draw is the same on any thread.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The words are those of
`numpy.random.Philox`, whose counter is one ahead of the words it gives.
"""

from __future__ import annotations

import numpy as np

from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.simd import multiply_high

_FACTOR_0 = np.uint64(0xD2E7470EE14C6C93)
_FACTOR_1 = np.uint64(0xCA5A826395121157)
_STEP_0 = np.uint64(0x9E3779B97F4A7C15)
_STEP_1 = np.uint64(0xBB67AE8584CAA73B)
_ROUNDS = 10


@compiled()
def words(counter_0, counter_1, key_0, key_1):
    """Return the four random words, uint64, of the counter (counter_0, counter_1, 0, 0) under a key of two words."""
    a, b, c, d = counter_0, counter_1, np.uint64(0), np.uint64(0)
    for _ in range(_ROUNDS):
        high_0, low_0 = multiply_high(_FACTOR_0, a), _FACTOR_0 * a
        high_1, low_1 = multiply_high(_FACTOR_1, c), _FACTOR_1 * c
        a, b, c, d = high_1 ^ b ^ key_0, low_1, high_0 ^ d ^ key_1, low_0
        key_0 += _STEP_0
        key_1 += _STEP_1
    return a, b, c, d
