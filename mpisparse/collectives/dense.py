"""The mean of whole vectors, for tensors and steps that are not sparsified."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from mpisparse.comm import Communicator

Vector = NDArray[np.float32]

#: Entries that travel at once: 16 MiB, so that the receive buffer stays small beside the gradient.
SEGMENT = 2**22


class DenseMean(ABC):
    """Averages a vector over the ranks of `comm`. Collective."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm

    @abstractmethod
    def average(self, vector: Vector) -> int:
        """Replace `vector` by its mean over the ranks, and return the bytes that came in from others."""


class Pieces(DenseMean):
    """Each rank sums one piece of the vector, in rank order, and gives the sum to all.

    Moves as many bytes as a ring does, 2 (size - 1) / size of the vector a rank; and all ranks get the same bits from
    every MPI library, because one rank makes each sum, and in a fixed order.
    """

    def __init__(self, comm: Communicator, segment: int = SEGMENT) -> None:
        super().__init__(comm)
        self._segment = segment
        self._received = np.empty(0, np.uint8)

    def average(self, vector: Vector) -> int:
        """Replace `vector` by its mean over the ranks, and return the bytes that came in from others."""
        return sum(
            self._average_segment(vector[start : start + self._segment])
            for start in range(0, vector.size, self._segment)
        )

    def _average_segment(self, segment: Vector) -> int:
        size, rank = self.comm.size, self.comm.rank
        edges = np.arange(size + 1) * segment.size // size
        counts = np.diff(edges) * 4
        incoming = np.full(size, counts[rank], np.int64)
        if self._received.size < incoming.sum():
            self._received = np.empty(int(incoming.sum()), np.uint8)
        payload = segment.view(np.uint8)
        pieces = self.comm.alltoallv(payload, counts, incoming, self._received).view(np.float32).reshape(size, -1)
        total = np.zeros(pieces.shape[1], np.float32)
        for piece in pieces:
            total += piece
        total /= size
        self.comm.allgatherv(total.view(np.uint8), counts, payload)
        return int((size - 1) * counts[rank] + counts.sum() - counts[rank])


class Allreduce(DenseMean):
    """The MPI library's own Allreduce: often faster, its order of summing is not ours, and may differ with the size."""

    def average(self, vector: Vector) -> int:
        """Replace `vector` by its mean, and return the bytes that a ring would have brought: MPI tells none."""
        self.comm.allreduce(vector)
        vector /= self.comm.size
        return 2 * (self.comm.size - 1) * vector.nbytes // self.comm.size


DENSE_MEANS: dict[str, type[DenseMean]] = {"pieces": Pieces, "allreduce": Allreduce}
