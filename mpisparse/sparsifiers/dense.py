"""Dense: everything is sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpisparse.kernels.vectors import as_vector, take_all
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers.base import Sparsifier, Vector


@dataclass(frozen=True)
class Dense(Sparsifier):
    """Sends every entry, zeros too, as it is: the exact baseline, and the rule for short vectors."""

    def select(self, vector: Vector, generator: np.random.Generator | None = None) -> SparseVector:
        """Return every entry."""
        return take_all(as_vector(vector))

    @property
    def sends_everything(self) -> bool:
        """Return True."""
        return True
