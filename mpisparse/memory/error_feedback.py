"""ErrorFeedback: what is not sent now is added to the next gradient, so that nothing is lost, only late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpisparse.kernels.source import Added, Source
from mpisparse.memory.base import Kept, Memory, Vector, refuse_amplifying
from mpisparse.sparsifiers.base import Sparsifier


@dataclass(frozen=True, slots=True)
class ErrorFeedback(Memory):
    """Keeps a residual, in gradient units: the learning rate in force when an entry is sent is the one that scales it.

    Source: Aji and Heafield, EMNLP 2017; Stich, Cordonnier, Jaggi, NeurIPS 2018.
    """

    def start(self, numel: int, sparse_numel: int) -> Kept:
        """Return a zero residual of `sparse_numel` entries."""
        return _Residual(sparse_numel)

    def check(self, sparsifier: Sparsifier, param_groups: list[dict[str, Any]]) -> None:
        """Refuse amplifying rules."""
        refuse_amplifying(sparsifier, "error feedback")


class _Residual(Kept):
    def __init__(self, numel: int) -> None:
        self.residual = np.zeros(numel, np.float32)

    def source(self, gradient: Vector, place: slice) -> Source:
        return Added(self.residual[place], gradient)

    def whole(self, gradient: Vector, place: slice) -> None:
        gradient += self.residual[place]
        self.residual[place] = 0.0

    def vectors(self) -> dict[str, Vector]:
        return {"residual": self.residual}
