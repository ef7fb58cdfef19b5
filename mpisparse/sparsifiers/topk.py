"""TopK: the largest entries are sent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mpisparse import random
from mpisparse.kernels.largest import Largest, find_largest
from mpisparse.kernels.vectors import as_vector, take, take_all
from mpisparse.sparse import Indices, SparseVector
from mpisparse.sparsifiers.base import Sparsifier, Vector
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

    def select(self, vector: Vector, generator: np.random.Generator | None = None) -> SparseVector:
        """Return the largest entries; see `Sparsifier.select`. Random only where ties leave a choice."""
        density = fixed_density(self.density)
        vector = as_vector(vector)
        if self.sends_everything:
            return take_all(vector)
        count = max(1, round(density * vector.size))
        return take(vector, _break_ties(find_largest(vector, count), count, generator))

    def at(self, step: int) -> TopK:
        """Return the rule in force at optimizer step `step`, its density a number."""
        return replace(self, density=density_at(self.density, step)) if callable(self.density) else self

    @property
    def sends_everything(self) -> bool:
        """Return True at density 1."""
        return self.density == 1


def _break_ties(largest: Largest, count: int, generator: np.random.Generator | None) -> Indices:
    """Return `count` indices, or all when fewer are nonzero: those above the threshold and a random choice at it."""
    places = count - largest.above.size
    tied = largest.tied
    if tied.size == 0:
        return largest.above
    if tied.size > places:
        draws = random.generator(0, 0, 0, 0) if generator is None else generator
        tied = tied[draws.choice(tied.size, places, replace=False, shuffle=False)]
    return np.sort(np.concatenate([largest.above, tied]))
