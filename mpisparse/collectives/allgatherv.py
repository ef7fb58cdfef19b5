"""Allgatherv: every rank gets every rank's messages. Bytes grow with the number of ranks, the latency hardly does."""

from __future__ import annotations

import numpy as np

from mpisparse.collectives.base import Bytes, Collective
from mpisparse.collectives.flight import FAILED, cut
from mpisparse.errors import MpiSparseError


class Allgatherv(Collective):
    """The counts of all buckets in one Allgather, the messages of all buckets in one Allgatherv."""

    def gather(self, messages: list[Bytes], failure: MpiSparseError | None = None) -> list[list[Bytes]]:
        """Return for each bucket the messages of all ranks, in rank order, as views of a buffer that is used again."""
        own = [message.size if failure is None else FAILED for message in messages]
        lengths = self.comm.allgather(own, equal=True)
        if (lengths == FAILED).any():
            self.raise_everywhere(failure)
        payload = np.concatenate(messages) if len(messages) > 1 else messages[0]
        packed = self.comm.allgatherv(payload, lengths.sum(axis=1), self._room(int(lengths.sum())))
        return cut(packed, lengths)

    def _room(self, total: int) -> Bytes:
        """Return a receive buffer of at least `total` bytes: the last one if it is large enough."""
        if self._buffer.size < total:
            self._buffer = np.empty(total + total // 4, np.uint8)
        return self._buffer
