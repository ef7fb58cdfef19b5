"""Independent choices at given probabilities: which entries win their coin toss."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.compiled import compiled
from mpisparse.kernels.passes import BLOCK
from mpisparse.kernels.philox import words
from mpisparse.kernels.simd import lowest_bit
from mpisparse.kernels.threads import for_each_span
from mpisparse.kernels.vectors import Vector, join
from mpisparse.sparse import Indices, SparseVector, index_dtype

#: Gaps drawn at a time at most.
GAPS = 1 << 20

#: Largest factor that leaves products with float32 magnitudes worth comparing in float32.
_LARGEST_FACTOR = 1e37


def toss_coins(
    vector: Vector, level: np.float32, generator: np.random.Generator, expected: float, *, clear: bool = False
) -> SparseVector:
    """Return the entries kept, each independently with probability min(|entry| / level, 1), and amplified.

    Each entry draws a uniform number in [0, 1) and is kept if that is below its probability. The first 8 bits of 32
    numbers are drawn at once, and 53 more only for the few entries that these do not rule out: that costs a small part
    of a full draw, and resolves probabilities to 2**-61. All draws are functions of the entry's place and a key, so
    that neither the number of threads nor where a vector is cut changes them.

    Args:
        vector: float32 of shape (numel,), finite.
        level: above zero, finite.
        generator: where the key of 128 bits is drawn from.
        expected: about how many entries will be kept.
        clear: leave zeros in the vector.

    Returns:
        Entries that reach the level as they are, all others as the level with their sign. `magnitude` is the level when
        there is one of these others.
    """
    keys = generator.integers(0, 2**64, 2, dtype=np.uint64)
    factor = 256 * (1 + 1e-6) / float(level)
    room = math.ceil(expected + 6 * math.sqrt(expected)) + 2 * BLOCK
    dtype = index_dtype(vector.size)

    def toss(start: int, stop: int) -> list[tuple[Indices, Vector, int]]:
        pieces = []
        while start < stop:
            indices, values = np.empty(room, dtype), np.empty(room, np.float32)
            kept, sampled, start = toss_span(
                vector,
                start,
                stop,
                level,
                factor,
                factor < _LARGEST_FACTOR,
                keys[0],
                keys[1],
                clear,
                indices,
                values,
            )
            pieces.append((indices[:kept], values[:kept], sampled))
        return pieces

    pieces = [piece for span in for_each_span(vector.size, toss) for piece in span]
    indices = [piece[0] for piece in pieces] or [np.empty(0, dtype)]
    values = [piece[1] for piece in pieces] or [np.empty(0, np.float32)]
    magnitude = level if any(piece[2] for piece in pieces) else None
    if len(pieces) == 1:
        return SparseVector(indices[0], values[0], vector.size, magnitude)
    return SparseVector(np.concatenate(indices), np.concatenate(values), vector.size, magnitude)


@compiled()
def toss_span(vector, start, stop, level, factor, narrow, key_0, key_1, clear, indices, values):
    """Return how many entries from `start` on are kept, how many of these are below the level, and where it stopped.

    That is at `stop`, or earlier for want of room.

    Args:
        vector: float32, contiguous, cleared as far as it was read if `clear`.
        start: a multiple of 32. stop: at most the vector's length.
        level: float32. factor: float64, a little more than 256 / level.
        narrow: bool; compare in float32, which the factor must allow.
        key_0, key_1: uint64.
        indices, values: what is kept, and what it becomes; BLOCK entries at least.
    """
    kept, sampled = np.uint64(0), 0
    first_bits = np.empty(BLOCK, np.uint8)
    groups = first_bits.view(np.uint64)
    open_yet = np.empty(BLOCK, np.uint8)
    flags = open_yet.view(np.uint64)
    places = np.empty(BLOCK, np.uint64)
    narrow_factor = np.float32(factor)
    while start < stop and kept + np.uint64(BLOCK) <= np.uint64(values.size):
        block = vector[start : min(start + BLOCK, stop)]
        first_group = np.uint64(start // 32)
        for group in range((block.size + 31) // 32):
            a, b, c, d = words(first_group + np.uint64(group), np.uint64(0), key_0, key_1)
            groups[4 * group], groups[4 * group + 1] = a, b
            groups[4 * group + 2], groups[4 * group + 3] = c, d
        if narrow:
            for i in range(block.size):
                open_yet[i] = np.float32(first_bits[i]) < abs(block[i]) * narrow_factor
        else:
            for i in range(block.size):
                open_yet[i] = np.float64(first_bits[i]) < np.float64(abs(block[i])) * factor
        open_yet[block.size :] = np.uint8(0)
        count = 0
        for word in range((block.size + 7) // 8):
            rest = flags[word]
            while rest:
                places[count] = np.uint64(8 * word) + (lowest_bit(rest) >> np.uint64(3))
                count += 1
                rest &= rest - np.uint64(1)
        # Apart from the search, so that the draws of several entries are made side by side.
        for i in range(count):
            place = places[i]
            index, entry = np.uint64(start) + place, block[place]
            draw, _, _, _ = words(index, np.uint64(1), key_0, key_1)
            # Subtracted, since adding the first bits to the draw would round some draws up to 1.
            chance = np.float64(abs(entry)) * 256.0 / np.float64(level) - np.float64(first_bits[place])
            indices[kept] = index
            values[kept] = entry if abs(entry) >= level else np.float32(math.copysign(level, entry))
            won = np.float64(draw >> np.uint64(11)) * 2.0**-53 < chance
            kept += np.uint64(won)
            sampled += won and abs(entry) < level
        if clear:
            block[:] = np.float32(0)
        start += BLOCK
    return np.int64(kept), sampled, min(start, stop)


def toss_equal_coins(numel: int, probability: float, generator: np.random.Generator) -> Indices:
    """Return the rising indices kept out of `numel`, each independently with the same probability.

    Draws the gaps between kept indices, which follow the geometric law: the cost is that of the indices kept.

    Args:
        numel: number of entries.
        probability: in (0, 1).
        generator: the source of the draws.
    """
    pieces: list[NDArray[np.intp]] = []
    last = -1
    while last < numel - 1:
        expected = (numel - 1 - last) * probability
        length = min(math.ceil(expected + 4 * math.sqrt(expected)) + 1, GAPS)
        # Clipped to one that leads out of the vector from anywhere, so that the sum of so many cannot overflow.
        gaps = np.minimum(generator.geometric(probability, length), numel + 1)
        kept = last + np.cumsum(gaps)
        pieces.append(kept[kept < numel])
        last = int(kept[-1])
    return join(pieces, numel)
