"""The mean of whole vectors, for tensors and steps that are not sparsified."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from mpisparse.comm import Communicator

Vector = NDArray[np.float32]

#: Entries that travel at once: 16 MiB, so that the receive buffer stays small beside the gradient.
SEGMENT = 2**22


class DenseMean(ABC):
    """Averages a vector over the ranks of `comm`. Collective."""

    #: Bytes of an entry while it travels.
    width = 4

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
        payload = segment.view(np.uint8)
        arrived = self.comm.alltoallv(payload, counts, incoming, self._room(int(incoming.sum())))
        pieces = arrived.view(np.float32).reshape(size, -1)
        total = np.zeros(pieces.shape[1], np.float32)
        for piece in pieces:
            total += piece
        total /= size
        self.comm.allgatherv(total.view(np.uint8), counts, payload)
        return int((size - 1) * counts[rank] + counts.sum() - counts[rank])

    def _room(self, total: int) -> NDArray[np.uint8]:
        """Return a receive buffer of at least `total` bytes: the last one if it is large enough."""
        if self._received.size < total:
            self._received = np.empty(total, np.uint8)
        return self._received


class BFloat16Pieces(Pieces):
    """Pieces whose entries travel as bfloat16: half the bytes, and three significant digits.

    Lossy, twice: each rank's vector is rounded to nearest (ties to even) before it is sent, and so is the mean. Sums
    are made in float32 and in rank order between the two, so all ranks get the same bits from every MPI library. What
    the roundings take away is kept nowhere.
    """

    width = 2

    def _average_segment(self, segment: Vector) -> int:
        size, rank = self.comm.size, self.comm.rank
        edges = np.arange(size + 1) * segment.size // size
        counts = np.diff(edges) * self.width
        incoming = np.full(size, counts[rank], np.int64)
        payload = _as_bytes(torch.from_numpy(segment).to(torch.bfloat16))
        arrived = self.comm.alltoallv(payload, counts, incoming, self._room(int(incoming.sum())))
        pieces = _from_bytes(arrived).view(size, int(edges[rank + 1] - edges[rank]))
        total = torch.zeros(pieces.shape[1], dtype=torch.float32, device="cpu")
        for piece in pieces:
            total += piece
        total /= size
        self.comm.allgatherv(_as_bytes(total.to(torch.bfloat16)), counts, payload)
        torch.from_numpy(segment).copy_(_from_bytes(payload))
        return int((size - 1) * counts[rank] + counts.sum() - counts[rank])


class Allreduce(DenseMean):
    """The MPI library's own Allreduce: often faster, its order of summing is not ours, and may differ with the size."""

    def average(self, vector: Vector) -> int:
        """Replace `vector` by its mean, and return the bytes that a ring would have brought: MPI tells none."""
        self.comm.allreduce(vector, equal=True)
        vector /= self.comm.size
        return 2 * (self.comm.size - 1) * vector.nbytes // self.comm.size


def _as_bytes(rounded: torch.Tensor) -> NDArray[np.uint8]:
    """Return a bfloat16 tensor as the bytes it holds: MPI has no portable 16-bit brain float, and numpy none."""
    viewed: NDArray[np.uint8] = rounded.view(torch.uint8).numpy()
    return viewed


def _from_bytes(payload: NDArray[np.uint8]) -> torch.Tensor:
    """Return bytes as the bfloat16 tensor they hold, sharing their memory."""
    return torch.from_numpy(payload.view(np.int16)).view(torch.bfloat16)


DENSE_MEANS: dict[str, type[DenseMean]] = {"pieces": Pieces, "bfloat16": BFloat16Pieces, "allreduce": Allreduce}
