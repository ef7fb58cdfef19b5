"""The contract of a sparsifier: which entries of a vector are sent, and with which values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from mpisparse.kernels.source import HostSource, Source
from mpisparse.kernels.vectors import as_vector
from mpisparse.sparse import SparseVector

#: A float32 vector on the host, contiguous, of one dimension.
Vector = NDArray[np.float32]


@dataclass
class Tracked:
    """What a rule remembers of one bucket from step to step. Starts as nothing known."""

    threshold: float = 0.0
    """The magnitude from which on entries are sent; 0 when none is known."""
    age: int = 0
    """Steps since it was taken from an exact selection."""
    drift: float = 0.0
    """By how much its logarithm grows a step, as far as it was seen to: it does while a residual builds up."""

    def state_dict(self) -> dict[str, float]:
        """Return the state as plain numbers."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up what `state_dict` returned."""
        self.threshold, self.age = float(state["threshold"]), int(state["age"])
        self.drift = float(state["drift"])


class Sparsifier(ABC):
    """Chooses the entries that are sent. A frozen dataclass of options: no state, equal options give equal choices.

    Surprises first:

    - `select` never changes its input, and refuses NaN and infinity with `NonFiniteError`.
    - Zero entries are sent only by a rule that sends everything; a zero vector gives an empty result from every other,
      also from a rule of fixed count.
    - The number of entries may differ from step to step and from rank to rank; it may be zero.
    - All randomness comes from `generator`. Without one a fixed stream is used, so that a call alone is repeatable.
    - A rule says how it chooses in `choose`, which asks a `Source`; `select` puts the question to a plain vector.
    - `amplifies` tells the unbiased rules, whose values are scaled by 1/p: the mean of many draws is the vector, and a
      residual must not be kept around them (it would grow without bound).
    """

    #: True for an unbiased rule, whose sent values are larger than the entries they stand for.
    amplifies: bool = False

    #: True for a rule whose results carry the magnitude that most of their entries share.
    shares_magnitude: bool = False

    #: True for a rule whose results carry the grid that all of their entries lie on.
    shares_grid: bool = False

    def select(self, vector: Vector, generator: np.random.Generator | None = None) -> SparseVector:
        """Return the entries to send, indices rising.

        Args:
            vector: float32 of shape (numel,), a numpy array or anything `numpy.asarray` views without a copy, such
                as a torch CPU tensor.
            generator: the source of every random choice.

        Raises:
            NonFiniteError: the vector holds NaN or infinity.
        """
        return self.choose(HostSource(as_vector(vector)), generator)

    @abstractmethod
    def choose(
        self, source: Source, generator: np.random.Generator | None, tracked: Tracked | None = None
    ) -> SparseVector:
        """Return the entries to send, indices rising, from a source that may not have been made yet.

        Args:
            source: finite, as the exchange makes sure.
            generator: the source of every random choice.
            tracked: what the rule remembers of this bucket, which it may change. Most rules remember nothing.
        """

    def at(self, step: int) -> Sparsifier:
        """Return the rule in force at optimizer step `step` (0 is the first): itself unless it follows a schedule."""
        return self

    @property
    def sends_everything(self) -> bool:
        """Return True when every entry is sent as it is, so that the dense path gives the same result at less cost."""
        return False
