"""TopK: the largest entries are sent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mpisparse.kernels.source import Source
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers.base import Sparsifier, Tracked
from mpisparse.sparsifiers.density import Density, check_density, density_at, fixed_density


@dataclass(frozen=True)
class TopK(Sparsifier):
    """Sends the exact values of the round(density * numel) entries of largest magnitude, at least one.

    - The count is exact whatever the ties: of entries equal in magnitude at the threshold, a random choice is sent, so
      that no index is preferred.
    - Zeros are not sent: a vector with fewer nonzero entries than places sends just those.
    - Biased: keep what is left behind with error feedback (Stich et al., NeurIPS 2018).
    """

    density: Density
    """Share of entries to send, in (0, 1], or a schedule of it; lower sends less and delays small entries more."""

    def __post_init__(self) -> None:
        check_density(self.density)

    def choose(
        self, source: Source, generator: np.random.Generator | None, tracked: Tracked | None = None
    ) -> SparseVector:
        """Return the largest entries. Random only where ties leave a choice."""
        density = fixed_density(self.density)
        if self.sends_everything:
            return source.everything()
        return source.largest(max(1, round(density * source.numel)), generator)

    def at(self, step: int) -> TopK:
        """Return the rule in force at optimizer step `step`, its density a number."""
        return replace(self, density=density_at(self.density, step)) if callable(self.density) else self

    @property
    def sends_everything(self) -> bool:
        """Return True at density 1."""
        return self.density == 1
