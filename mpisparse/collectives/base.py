"""The contract of a collective: how the messages of a step travel."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from mpisparse.comm import Communicator, agreed
from mpisparse.errors import MpiSparseError

Bytes = NDArray[np.uint8]


class Collective(ABC):
    """Moves the messages of one step between the ranks of `comm`.

    Surprises first:

    - `gather` is collective: every rank calls it once a step, with one message a bucket, which may hold no entry.
    - What it returns are views of a buffer that the next call overwrites. The slot of a rank whose send fell short
      would hold bytes of an earlier step: decode with what is expected, and never skip that check.
    - `comm` should be a communicator of its own, on which nothing else travels.
    """

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self._buffer: Bytes = np.empty(0, np.uint8)

    @abstractmethod
    def gather(self, messages: list[Bytes], failure: MpiSparseError | None = None) -> list[list[Bytes]]:
        """Return for each bucket the messages of all ranks, in rank order.

        Args:
            messages: this rank's, uint8, one a bucket, at least one.
            failure: why this rank has no messages worth sending, if so; the lengths of `messages` do not matter then.

        Raises:
            MpiSparseError: the failure of a rank, on all ranks; nothing was sent.
        """

    def raise_everywhere(self, failure: MpiSparseError | None) -> None:
        """Raise on all ranks the failure of any. Collective; for when lengths have told that some rank failed."""
        with agreed(self.comm):
            if failure is not None:
                raise failure
