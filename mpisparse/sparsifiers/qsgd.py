"""QSGD: every entry becomes one of the two nearest of a few levels (Alistarh et al., NeurIPS 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpisparse import random
from mpisparse.errors import ConfigError
from mpisparse.kernels.source import Source
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers.base import Sparsifier, Tracked

#: Fewest and most bits: a sign and one level; levels that float32 holds beside a unit.
_BITS = (2, 16)


@dataclass(frozen=True)
class QSGD(Sparsifier):
    """Sends each entry g as sign(g) * level * norm / s, a level of 0 to s drawn so that the mean is g: unbiased.

    The norm is that of the entry's bucket, and s = 2**(bits - 1) - 1. Surprises first:

    - Level 0 is not sent: with few levels a result is sparse, with many it holds nearly every entry. All its values lie
      on the result's `grid`, which the wire writes in few bits.
    - The expected squared norm is at most 1 + min(n / s**2, sqrt(n) / s) times the vector's, n being the entries of a
      bucket.
    - The unit, norm / s, is rounded up to few enough bits that every value is a float32 number, before the draws: the
      rounding moves the probabilities with it, and the mean of many draws stays the vector.
    - Where the norm is beyond float32, the unit is the largest float32: every value is finite, and the mean is right.
    """

    amplifies = True
    shares_grid = True

    bits: int = 4
    """Bits of sign and level, 2 to 16; more make more levels, that is less variance and longer messages."""
    bucket: int | None = 512
    """Entries that share a norm; fewer mean less variance and more norms to send. The paper's experiments have 512;
    None is one norm for the whole vector, as its theorems and GSpar's comparison have it."""

    def __post_init__(self) -> None:
        if not _is_count(self.bits) or not _BITS[0] <= self.bits <= _BITS[1]:
            raise ConfigError(f"bits {self.bits!r} is outside 2 to 16: give the bits of sign and level, such as 4")
        if self.bucket is not None and (not _is_count(self.bucket) or self.bucket < 1):
            raise ConfigError(
                f"bucket {self.bucket!r} is no count: give how many entries share a norm, 1 or more, such as 512; or "
                "None for all of them"
            )

    @property
    def levels(self) -> int:
        """Return s, the number of levels above 0."""
        return int(2 ** (self.bits - 1) - 1)

    def choose(
        self, source: Source, generator: np.random.Generator | None, tracked: Tracked | None = None
    ) -> SparseVector:
        """Return the entries whose level is not 0."""
        draws = random.generator(0, 0, 0, 0) if generator is None else generator
        return source.draw(self.levels, self.bucket, draws)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
