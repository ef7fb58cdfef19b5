"""NoMemory: what is not sent is forgotten. Right for unbiased rules, and for the dense baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpisparse.memory.base import Kept, Memory, Vector
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers.base import Sparsifier


@dataclass(frozen=True, slots=True)
class NoMemory(Memory):
    """Keeps nothing. Around a biased rule such as TopK it loses gradient for good: use it there to show just that."""

    def start(self, numel: int, sparse_numel: int) -> Kept:
        """Return a state without vectors."""
        return _Nothing()

    def check(self, sparsifier: Sparsifier, param_groups: list[dict[str, Any]]) -> None:
        """Accept everything."""


class _Nothing(Kept):
    def accumulate(self, gradient: Vector, place: slice) -> Vector:
        return gradient

    def sent(self, sparse: SparseVector, place: slice) -> None:
        pass

    def sent_all(self, place: slice) -> None:
        pass

    def vectors(self) -> dict[str, Vector]:
        return {}
