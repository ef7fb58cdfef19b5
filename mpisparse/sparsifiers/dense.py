"""Dense: everything is sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpisparse.kernels.source import Source
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers.base import Sparsifier, Tracked


@dataclass(frozen=True)
class Dense(Sparsifier):
    """Sends every entry, zeros too, as it is: the exact baseline, and the rule for short vectors."""

    def choose(
        self, source: Source, generator: np.random.Generator | None, tracked: Tracked | None = None
    ) -> SparseVector:
        """Return every entry."""
        return source.everything()

    @property
    def sends_everything(self) -> bool:
        """Return True."""
        return True
