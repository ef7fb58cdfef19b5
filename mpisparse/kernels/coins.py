"""Independent choices at given probabilities: which entries win their coin toss."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.vectors import Vector, chunks, join
from mpisparse.sparse import Indices

#: Gaps drawn at a time at most.
GAPS = 1 << 20


def toss_coins(vector: Vector, level: np.float32, generator: np.random.Generator) -> Indices:
    """Return the rising indices of the entries kept, each independently with probability min(|entry| / level, 1).

    Each entry draws a uniform number in [0, 1) and is kept if that is below its probability. The first 8 bits of all
    numbers are drawn at once, and 53 more only for the few entries that these do not rule out: that costs an eighth of
    a full draw, and resolves probabilities to 2**-61.

    Args:
        vector: float32 of shape (numel,), finite.
        level: above zero, finite.
        generator: the source of the draws; how many it makes depends on them.
    """
    return join((start + _toss(chunk, level, generator) for start, chunk in chunks(vector)), vector.size)


def _toss(chunk: Vector, level: np.float32, generator: np.random.Generator) -> NDArray[np.intp]:
    words = generator.integers(0, 2**64, size=-(-chunk.size // 8), dtype=np.uint64)
    first_bits = words.view(np.uint8)[: chunk.size]
    magnitudes = np.abs(chunk)
    # A rough product, raised so that no rounding rules out an entry that the exact comparison would keep. With a tiny
    # level the factor leaves float32, and the product is taken in float64.
    factor = 256 * (1 + 1e-6) / float(level)
    with np.errstate(over="ignore"):
        rough = np.multiply(magnitudes, factor, dtype=np.float32 if factor < 1e37 else np.float64)
    open_yet = np.flatnonzero(first_bits < rough)
    scaled = magnitudes[open_yet].astype(np.float64) * 256 / float(level)
    # Subtracted, since adding the first bits to the draw would round some draws up to 1.
    kept: NDArray[np.intp] = open_yet[generator.random(open_yet.size) < scaled - first_bits[open_yet]]
    return kept


def toss_equal_coins(numel: int, probability: float, generator: np.random.Generator) -> Indices:
    """Return the rising indices kept out of `numel`, each independently with the same probability.

    Draws the gaps between kept indices, which follow the geometric law: the cost is that of the indices kept.

    Args:
        numel: number of entries.
        probability: in (0, 1).
        generator: the source of the draws.
    """
    pieces, last = [], -1
    while last < numel - 1:
        expected = (numel - 1 - last) * probability
        length = min(math.ceil(expected + 4 * math.sqrt(expected)) + 1, GAPS)
        # Clipped to one that leads out of the vector from anywhere, so that the sum of so many cannot overflow.
        gaps = np.minimum(generator.geometric(probability, length), numel + 1)
        kept = last + np.cumsum(gaps)
        pieces.append(kept[kept < numel])
        last = int(kept[-1])
    return join(pieces, numel)
