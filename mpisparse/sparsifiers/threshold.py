"""Threshold: every entry of at least a fixed magnitude is sent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpisparse.errors import ConfigError
from mpisparse.kernels.source import Source
from mpisparse.kernels.vectors import round_up
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers.base import Sparsifier, Tracked


@dataclass(frozen=True)
class Threshold(Sparsifier):
    """Sends the exact values of the entries whose magnitude is at least `threshold`.

    The number of entries follows the gradient: many when it is large, none when it is small; a vector of equal entries
    is sent whole or not at all. With error feedback and one threshold for the whole run this is the best use of a
    *total* budget of entries (Sahu et al., NeurIPS 2021), where top-k is the best use of a budget for each step.
    """

    threshold: float
    """In units of the vector, above 0; higher sends less."""

    def __post_init__(self) -> None:
        number = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        if not number or not 0 < self.threshold < math.inf:
            raise ConfigError(
                f"threshold {self.threshold!r} is not above 0 and finite: give a magnitude, such as 0.001"
            )

    def choose(
        self, source: Source, generator: np.random.Generator | None, tracked: Tracked | None = None
    ) -> SparseVector:
        """Return the entries of at least the threshold. Nothing is random."""
        floor = round_up(self.threshold)
        found = source.find(floor, max(1024, source.numel // 64))
        if found.indices is None:
            found = source.find(floor, found.number)
        return source.take(found)
