"""NoMemory: what is not sent is forgotten. Right for unbiased rules, and for the dense baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpisparse.kernels.anywhere import Anywhere, forgotten
from mpisparse.kernels.source import Source
from mpisparse.memory.base import Kept, Memory
from mpisparse.sparsifiers.base import Sparsifier


@dataclass(frozen=True, slots=True)
class NoMemory(Memory):
    """Keeps nothing. Around a biased rule such as TopK it loses gradient for good: use it there to show just that."""

    def start(self, numel: int, sparse_numel: int, like: Anywhere = None) -> Kept:
        """Return a state without vectors."""
        return _Nothing()

    def check(self, sparsifier: Sparsifier, param_groups: list[dict[str, Any]]) -> None:
        """Accept everything."""


class _Nothing(Kept):
    def source(self, gradient: Anywhere, place: slice) -> Source:
        return forgotten(gradient)

    def whole(self, gradient: Anywhere, place: slice) -> None:
        pass

    def vectors(self) -> dict[str, Anywhere]:
        return {}
