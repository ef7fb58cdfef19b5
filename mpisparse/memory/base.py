"""The contract of a memory: what a rank keeps of the gradients that it did not send."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import ConfigError
from mpisparse.sparse import SparseVector
from mpisparse.sparsifiers.base import Sparsifier

Vector = NDArray[np.float32]


class Kept(ABC):
    """The state of a memory: a few vectors as long as the gradient, changed in place.

    A step calls, for each bucket that is sparsified, `accumulate` and then exactly one of `sent` and `sent_all`; for
    tensors that are always dense, `dense` alone. `place` is the slice of the flat buffer.
    """

    @abstractmethod
    def accumulate(self, gradient: Vector, place: slice) -> Vector:
        """Return what could be sent: the gradient and what was kept, together.

        The result may be `gradient` itself or a view of this state: select from it before the next call, and never
        change it.
        """

    @abstractmethod
    def sent(self, sparse: SparseVector, place: slice) -> None:
        """Note what was sent, as the receivers will decode it: what rounding took away is kept, too."""

    @abstractmethod
    def sent_all(self, place: slice) -> None:
        """Note that everything `accumulate` returned was sent exactly."""

    def dense(self, gradient: Vector, place: slice) -> None:  # noqa: B027 - nothing to do is the common case
        """Change in place a gradient that is always sent whole."""

    @abstractmethod
    def vectors(self) -> dict[str, Vector]:
        """Return the state itself, by name: views, not copies. What a checkpoint stores and restores."""


class Memory(ABC):
    """Options of a memory: a frozen dataclass."""

    @abstractmethod
    def start(self, numel: int, sparse_numel: int) -> Kept:
        """Return a fresh state.

        Args:
            numel: entries of the whole gradient.
            sparse_numel: how many of them, from the start, are sparsified; the rest is always dense.
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
