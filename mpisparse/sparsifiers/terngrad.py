"""TernGrad: every entry becomes minus, nothing or plus one magnitude (Wen et al., NeurIPS 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from mpisparse import random
from mpisparse.errors import ConfigError
from mpisparse.kernels.source import Source
from mpisparse.kernels.vectors import round_up
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers.base import Sparsifier, Tracked

#: About the share of Gaussian entries that are sent, by which memory is taken.
_SENT = 1 / 6


@dataclass(frozen=True, kw_only=True)
class TernGrad(Sparsifier):
    """Sends each entry g with probability |g| / m as m with its sign, m the largest magnitude: unbiased.

    - This is GSpar's toss at the level m, where nothing is certain but the largest entries. All entries sent have the
      same magnitude, the result's `magnitude`: a sign is all they need on the wire.
    - The expected squared norm is m * ||g||_1: one entry much larger than the others adds variance to all of them.
    - The magnitude is that of each message's own vector. The paper has ranks agree on one, so that sums stay in whole
      numbers; with Allgatherv each message is decoded for itself, and nothing need be agreed on.
    - The paper selects in each layer for itself: use it with layouts of granularity "tensor".
    - The number of entries is random. Zeros are never sent; a zero vector gives an empty result.
    """

    amplifies = True
    shares_magnitude = True

    clip: float | None = None
    """Entries beyond so many standard deviations are cut down to them first: less variance, but biased, for nothing
    keeps what was cut off. The paper takes 2.5. The deviation is that from zero. None, the default, is unbiased."""

    def __post_init__(self) -> None:
        number = isinstance(self.clip, int | float) and not isinstance(self.clip, bool)
        if self.clip is not None and not (number and 0 < self.clip < math.inf):
            raise ConfigError(
                f"clip {self.clip!r} is not above 0 and finite: give standard deviations, such as 2.5, or None"
            )

    def choose(
        self, source: Source, generator: np.random.Generator | None, tracked: Tracked | None = None
    ) -> SparseVector:
        """Return a random choice of entries, all of one magnitude."""
        level = self._level(source)
        if level == 0:
            return SparseVector.empty(source.numel)
        draws = random.generator(0, 0, 0, 0) if generator is None else generator
        kept = source.toss(level, draws, _SENT * source.numel)
        return replace(kept, values=np.copysign(level, kept.values), magnitude=level)

    def _level(self, source: Source) -> np.float32:
        """Return the magnitude that is sent, 0 for a zero vector."""
        peak = source.peak()
        if self.clip is None or peak == 0:
            return peak
        return min(peak, round_up(self.clip * source.norm() / math.sqrt(source.numel)))
