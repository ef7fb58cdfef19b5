"""ErrorFeedback: what is not sent now is added to the next gradient, so that nothing is lost, only late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpisparse.kernels.anywhere import Anywhere, added, zeros
from mpisparse.kernels.source import Source
from mpisparse.memory.base import Kept, Memory, refuse_amplifying
from mpisparse.sparsifiers.base import Sparsifier


@dataclass(frozen=True, slots=True)
class ErrorFeedback(Memory):
    """Keeps a residual, in gradient units: the learning rate in force when an entry is sent is the one that scales it.

    Source: Aji and Heafield, EMNLP 2017; Stich, Cordonnier, Jaggi, NeurIPS 2018.
    """

    def start(self, numel: int, sparse_numel: int, like: Anywhere = None) -> Kept:
        """Return a zero residual of `sparse_numel` entries."""
        return _Residual(zeros(sparse_numel, like))

    def check(self, sparsifier: Sparsifier, param_groups: list[dict[str, Any]]) -> None:
        """Refuse amplifying rules."""
        refuse_amplifying(sparsifier, "error feedback")


class _Residual(Kept):
    def __init__(self, residual: Anywhere) -> None:
        self.residual = residual

    def source(self, gradient: Anywhere, place: slice) -> Source:
        return added(self.residual[place], gradient)

    def whole(self, gradient: Anywhere, place: slice) -> None:
        gradient += self.residual[place]
        self.residual[place] = 0.0

    def vectors(self) -> dict[str, Anywhere]:
        return {"residual": self.residual}
