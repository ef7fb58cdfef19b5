"""SparseVector: the one noun that travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Unsigned indices: uint32 up to 2**32 entries, uint64 above.
Indices = NDArray[np.unsignedinteger]


def index_dtype(numel: int) -> np.dtype[np.unsignedinteger]:
    """Return the narrowest index type that can name every entry of a vector of `numel` entries."""
    return np.dtype(np.uint32 if numel <= 2**32 else np.uint64)


class Grid(NamedTuple):
    """What values are multiples of: value = its sign * level * unit of its bucket, rounded to float32 once (QSGD).

    A vector is cut into buckets of `bucket` entries, the last one shorter.
    """

    units: NDArray[np.float32]
    """One a bucket, 0 or above; above 0 where the bucket has an entry."""
    bucket: int
    """Entries of a bucket, 1 to the vector's own (1 where it has none)."""
    levels: NDArray[np.uint16]
    """One an entry that is present, 1 or more."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """Some entries of a vector of `numel` entries; the others are zero, or stay behind.

    indices: uint32 (uint64 above 2**32 entries), strictly rising, each below `numel`.
    values: float32, one an index.
    magnitude: when set, the absolute value that most entries share (GSpar's sampled entries, the paper's set B):
        an encoder may write those as sign alone. Entries of any other absolute value are exact (set A).
    grid: when set, what all values are multiples of: an encoder may write signs and levels. Whoever changes indices or
        values leaves it out.
    """

    indices: Indices
    values: NDArray[np.float32]
    numel: int
    magnitude: np.float32 | None = None
    grid: Grid | None = None

    @property
    def count(self) -> int:
        """Return the number of entries present."""
        return int(self.indices.size)

    @property
    def density(self) -> float:
        """Return the share of entries present, 0.0 for a vector of no entries."""
        return self.count / self.numel if self.numel else 0.0

    def to_dense(self) -> NDArray[np.float32]:
        """Return the whole vector, float32 of shape (numel,), absent entries zero."""
        dense = np.zeros(self.numel, np.float32)
        dense[self.indices] = self.values
        return dense

    @staticmethod
    def empty(numel: int) -> SparseVector:
        """Return a vector with no entry present."""
        return SparseVector(np.empty(0, index_dtype(numel)), np.empty(0, np.float32), numel)
