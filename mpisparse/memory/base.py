"""The contract of a memory: what a rank keeps of the gradients that it did not send."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from mpisparse.errors import ConfigError
from mpisparse.kernels.anywhere import Anywhere
from mpisparse.kernels.source import Source
from mpisparse.sparsifiers.base import Sparsifier


class Kept(ABC):
    """The state of a memory: a few vectors as long as the gradient, changed in place.

    A step asks, for each bucket that is sparsified, for a `source`, selects from it and tells it what was `sent`; or it
    calls `whole`. For tensors that are always dense it calls `dense` alone. `place` is the slice of the flat buffer.
    """

    @abstractmethod
    def source(self, gradient: Anywhere, place: slice) -> Source:
        """Return what could be sent: the gradient and what was kept, together.

        The sum is made by the first look at the source, which changes this state. The gradient is zeros after `sent`.
        """

    @abstractmethod
    def whole(self, gradient: Anywhere, place: slice) -> None:
        """Change the gradient in place to what is sent when everything is: all that was kept goes with it."""

    def dense(self, gradient: Anywhere, place: slice) -> None:  # noqa: B027 - nothing to do is the common case
        """Change in place a gradient that is always sent whole."""

    @abstractmethod
    def vectors(self) -> dict[str, Anywhere]:
        """Return the state itself, by name: views, not copies. What a checkpoint stores and restores."""


class Memory(ABC):
    """Options of a memory: a frozen dataclass."""

    @abstractmethod
    def start(self, numel: int, sparse_numel: int, like: Anywhere = None) -> Kept:
        """Return a fresh state.

        Args:
            numel: entries of the whole gradient.
            sparse_numel: how many of them, from the start, are sparsified; the rest is always dense.
            like: a vector that lies where the state is to lie; on the host without one.
        """

    @abstractmethod
    def check(self, sparsifier: Sparsifier, param_groups: list[dict[str, Any]]) -> None:
        """Raise ConfigError, saying why, if this memory around `sparsifier` and under this optimizer is wrong."""


def refuse_amplifying(sparsifier: Sparsifier, memory: str) -> None:
    """Raise ConfigError if `sparsifier` scales what it sends by 1/p."""
    if sparsifier.amplifies:
        raise ConfigError(
            f"{memory} around {sparsifier!r} is wrong: that rule is unbiased by sending entries larger than they are, "
            "so the residual (entry minus what was sent) would grow without bound. Use NoMemory() with it, or TopK"
        )
